"""Every file that audiovq writes has a checksum, which is verified when the file is read. Older files have none."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from conftest import ROOT, assert_one_line_error, cli

from audiovq import Codes, Generator, Tokenizer, api
from audiovq.data.shards import Shards
from audiovq.pretrained import checkpoint
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import atomic_file, check_folder, write_text

OLD = ROOT / "tests" / "fixtures" / "v0_1"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("compress", [False, True])
def test_no_flipped_bit_of_a_codes_file_is_used(tmp_path: Path, compress: bool) -> None:
    levels = [torch.arange(20) % 16, torch.arange(40) % 16]
    path = tmp_path / "a.codes"
    Codes(levels, 4000, 8000, [200, 100], 16, 1, "0" * 64, "a" * 64).save(path, compress)
    whole, refused = path.read_bytes(), 0
    for place in range(len(whole)):
        flip(path, place)
        try:
            found = Codes.load(path)
            assert [level.tolist() for level in found.levels] == [level.tolist() for level in levels]
            assert (found.n_samples, found.sample_rate, found.tokenizer_hash) == (4000, 8000, "0" * 64)
        except ValueError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 0.9 * len(whole)  # the rest is white space of the header


def test_codes_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.codes"
    Codes([torch.arange(20) % 16], 4000, 8000, [200], 16, 1, "0" * 64).save(path)
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["audiovq"])
    del header["checksum"]
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"audiovq": json.dumps(header)})
    assert Codes.load(path).levels[0].tolist() == [i % 16 for i in range(20)]


@pytest.mark.parametrize(("header", "tensors"), [
    ({"n_samples": None}, {}), ({"sample_rate": "8000"}, {}), ({}, {"level.0": torch.zeros(1, dtype=torch.bfloat16)}),
    ({}, {"level.0": torch.zeros(1, 1, dtype=torch.int16)}), ({"hop_lengths": [[[256]]]}, {}),
])  # fmt: skip
def test_headers_and_types_that_nobody_wrote_are_one_line_in_every_command(
    tmp_path: Path, tiny_run: Path, header: dict[str, object], tensors: dict[str, torch.Tensor]
) -> None:
    facts = {"format": "audiovq-codes-1", "n_samples": 256, "sample_rate": 8000, "hop_lengths": [256], "channels": 1}
    facts |= {"codebook_size": 16, "tokenizer_hash": "0" * 64, **header}
    tensors = tensors or {"level.0": torch.zeros(1, dtype=torch.int16)}
    safetensors.torch.save_file(tensors, tmp_path / "a.codes", {"audiovq": json.dumps(facts)})
    for command in (
        ("info", tmp_path / "a.codes"),
        ("decode", tmp_path / "a.codes", "--model", tiny_run, "-o", tmp_path / "a.wav"),
    ):
        assert_one_line_error(cli(*command), "a.codes")


def test_a_zeroed_block_of_a_shard_is_noticed_when_it_is_read(tiny_run: Path, tmp_path: Path) -> None:
    for file in sorted((tiny_run / "codes").glob("shard-*")):
        shutil.rmtree(tmp_path / "codes", ignore_errors=True)
        shutil.copytree(tiny_run / "codes", tmp_path / "codes")
        path = tmp_path / "codes" / file.name
        data = bytearray(path.read_bytes())
        data[200:230] = bytes(30)
        path.write_bytes(data)
        shards = Shards(tmp_path / "codes")
        level = int(file.stem[-1])
        for _ in range(2):  # a block that is damaged is not taken for verified
            with pytest.raises(ValueError, match=rf"{file.name}: shard missing or damaged \(its checksum is wrong"):
                [shards.codes(track, level, 0, 5) for track in shards.index.tracks]


def test_facts_of_shards_are_verified_too(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "codes", tmp_path / "codes")
    path = tmp_path / "codes" / "index.json"
    text = path.read_text()
    path.write_text(text.replace('"sample_rate": 8000', '"sample_rate": 8001'))
    with pytest.raises(ValueError, match=r"index\.json: shard missing or damaged \(its checksum is wrong"):
        Shards(tmp_path / "codes")
    content = json.loads(text)
    old = {key: value for key, value in content.items() if key != "blocks"}
    old["crc32"].pop("index.json")
    path.write_text(json.dumps(old))
    assert len(Shards(tmp_path / "codes").index.tracks) == 4
    for hops in ([512, 128, 64], [256, 128, 32]):  # other times for the same codes
        path.write_text(json.dumps(old | {"hop_lengths": hops}))
        with pytest.raises(ValueError, match="expected its line and codes within their files"):
            Shards(tmp_path / "codes")


@pytest.mark.parametrize("part", ["tokenizer", "prior-1"])
def test_damaged_weights_are_refused_and_configs_may_be_edited(tiny_run: Path, tmp_path: Path, part: str) -> None:
    for run in (tiny_run, OLD / "run"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(run, tmp_path / "run")
        path = tmp_path / "run" / part / "model.safetensors"
        flip(path, path.stat().st_size - 3)
        with pytest.raises(ValueError, match=rf"{part}/model.safetensors: .*its checksum is not that in sha256.json"):
            Generator.from_pretrained(tmp_path / "run")
        flip(path, path.stat().st_size - 3)
        config = tmp_path / "run" / part / "config.json"
        config.write_text(config.read_text() + "\n")
        Generator.from_pretrained(tmp_path / "run")
        (path.parent / "sha256.json").unlink()  # as somebody else may send a model
        Generator.from_pretrained(tmp_path / "run")


def test_weights_that_are_not_finite_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    for part, value in (("prior-2", float("nan")), ("tokenizer", float("-inf"))):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tiny_run, tmp_path / "run")
        path = tmp_path / "run" / part / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
        tensors[name].view(-1)[0] = value
        safetensors.torch.save_file(tensors, path)
        (path.parent / "sha256.json").unlink()
        result = cli("sample", "--model", tmp_path / "run", "--seconds", 1, "--out", tmp_path / "x.wav")
        assert_one_line_error(result, f"{part}/model.safetensors", f"{name}: expected finite numbers")
        assert not list(tmp_path.glob("*.wav"))


def test_logits_that_are_not_finite_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(tiny_run)
    with torch.no_grad():
        generator.priors[1].head.weight.mul_(1e38)  # a finite weight, and logits that are not
        generator.priors[1].transformer.norm.weight.mul_(1e38)
    with pytest.raises(ValueError, match="prior 1: expected finite logits, found NaN or infinity"):
        generator.sample(1, precision="fp32")


def test_a_kill_while_a_tuned_decoder_replaces_the_other_leaves_a_tokenizer(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Tokenizer.from_pretrained(tiny_run).hash
    for n_files in range(4):
        folder = tmp_path / f"{n_files}" / "tokenizer"
        shutil.copytree(tiny_run / "tokenizer", folder)
        network = checkpoint.load_tokenizer(folder)
        with torch.no_grad():
            next(p for name, p in network.named_parameters() if ".decoder." in name).add_(0.1)
        done, real = [], Path.replace

        def replace(self: Path, target: Path, done: list = done, n: int = n_files, real: object = real) -> Path:
            if self.parent.name == ".tokenizer.tuned":
                if len(done) == n:
                    raise KeyboardInterrupt
                done.append(target)
            return real(self, target)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            if n_files < 3:
                with pytest.raises(KeyboardInterrupt):
                    checkpoint.replace_by_tuned(folder, network, 5)
            else:
                checkpoint.replace_by_tuned(folder, network, 5)
        assert isinstance(checkpoint.load_tokenizer(folder), VQVAE)
        assert Tokenizer.from_pretrained(folder).hash == expected


# --- files that are no files, rights, and what a kill leaves ------------------------------------------------------------


def test_a_pipe_in_the_place_of_a_file_does_not_hang(tiny_run: Path, tmp_path: Path) -> None:
    names = [
        *("tokenizer/model.safetensors", "tokenizer/config.json", "prior-0/model.safetensors", "codes/index.json"),
        *("codes/tracks.jsonl", "codes/tracks.npy", "codes/shard-00000-level-0.npy"),
    ]
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    for name in names:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tiny_run, tmp_path / "run")
        (tmp_path / "run" / name).unlink()
        os.mkfifo(tmp_path / "run" / name)
        signal.alarm(20)
        with pytest.raises(ValueError):  # noqa: PT011 - any line
            Shards(tmp_path / "run" / "codes") if name.startswith("codes") else Generator.from_pretrained(
                tmp_path / "run"
            )
        signal.alarm(0)


def test_files_have_the_rights_that_the_user_wants(tiny_run: Path, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        Codes([torch.arange(20) % 16], 4000, 8000, [200], 16, 1, "0" * 64).save(tmp_path / "a.codes")
        Generator.from_pretrained(tiny_run).save_pretrained(tmp_path / "model")
        os.umask(0o077)
        write_text(tmp_path / "secret", "x")
    finally:
        os.umask(old)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}
    assert rights.pop("secret") == 0o600
    assert set(rights.values()) == {0o644}


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, safetensors.numpy
from audiovq.utils.files import atomic_file
with atomic_file(Path(sys.argv[1])) as temporary:
    safetensors.numpy.save_file({"a": np.zeros(9)}, temporary)
    (temporary.parent / ".tmpxyz").touch()  # as safetensors leaves
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["a.codes", "é" * 127, "x" * 255])
def test_what_a_kill_left_is_removed_by_the_next_attempt(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -9
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    assert all(entry.name.startswith(".") for entry in tmp_path.iterdir())
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_text() == "new"
    check_folder(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


# --- which model --------------------------------------------------------------------------------------------------------


def test_one_damaged_run_does_not_break_the_others(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_run, tmp_path / "runs" / "good")
    for name, text in (("torn", '{"kind": "tok'), ("other", "[1]"), ("deep", "[" * 100_000), ("odd", '{"model": 7}')):
        shutil.copytree(tiny_run / "tokenizer", tmp_path / "runs" / name / "tokenizer")
        (tmp_path / "runs" / name / "tokenizer" / "config.json").write_text(text)
    assert api.default_model()[0] == Path("runs/good")
    said = capfd.readouterr().err
    assert all(f"left out: runs/{name}/tokenizer/config.json" in said for name in ("torn", "other", "deep", "odd"))


def test_a_missing_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("runs/none", "mine/none"):
        with pytest.raises(ValueError, match=rf"{name}: no such model; expected a run folder"):
            api.resolve_model(name)
    assert not asked
    for name, revision in (("owner/name", None), ("owner/name@refs/pr/1", "refs/pr/1"), ("mine/none@v1", "v1")):
        api.resolve_model(name)
        assert asked.pop() == (
            (name.partition("@")[0],),
            {"revision": revision, "token": None, "allow_patterns": api_patterns()},
        )


def api_patterns() -> list[str]:
    from audiovq.pretrained.locate import MODEL_FILES

    return MODEL_FILES
