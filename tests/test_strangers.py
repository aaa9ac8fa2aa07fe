"""Folders, codes files and shards from any source do no harm: bad ones are refused in one line, before memory is taken."""

import json
import pickle
import resource
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from pydantic import BaseModel

from audiovq import Codes, Generator, Tokenizer
from audiovq.data.shards import Shards
from audiovq.pretrained import checkpoint
from audiovq.prior.prior import PriorConfig
from audiovq.tokenizer.vqvae import VQVAEConfig

Change = Callable[[dict[str, Any]], object]


class Harm:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> Any:
        return (exec, ("open('harm-was-done', 'w')",))


@pytest.fixture
def model(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for part in ("tokenizer", "prior-0", "prior-1", "prior-2"):
        shutil.copytree(tiny_run / part, tmp_path / "model" / part)
    return tmp_path / "model"


def change_config(folder: Path, change: Change) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def refuse(action: Callable[[], object], *words: str) -> None:
    before = peak_megabytes()
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are looked for below
        action()
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    for word in words:
        assert word in text, text
    assert peak_megabytes() - before < 200


def test_pickles_in_the_folder_are_not_touched(model: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt", "model.pkl", "tokenizer/model.bin", "prior-0/model.pt"):
        (model / name).write_bytes(pickle.dumps(Harm()))
    assert Generator.from_pretrained(model).sample(0.2).shape == (1, 1, 1600)
    assert not Path("harm-was-done").exists()


def test_a_pickle_in_the_place_of_weights_codes_or_shards_is_refused(model: Path, tiny_run: Path) -> None:
    (model / "tokenizer" / "model.safetensors").write_bytes(pickle.dumps(Harm()))
    refuse(lambda: Tokenizer.from_pretrained(model), "missing or damaged weights")
    (model / "a.codes").write_bytes(pickle.dumps(Harm()))
    refuse(lambda: Codes.load(model / "a.codes"), "not a codes file, or damaged")
    shutil.copytree(tiny_run / "codes", model / "codes")
    (model / "codes" / "shard-00000-level-0.npy").write_bytes(pickle.dumps(Harm()))
    refuse(lambda: Shards(model / "codes"), "shard missing or damaged")
    np.save(model / "codes" / "shard-00000-level-0.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    refuse(lambda: Shards(model / "codes"), "shard missing or damaged")
    assert not Path("harm-was-done").exists()


@pytest.mark.parametrize(("change", "word"), [
    (lambda c: c["model"].update(dim=10**9), "model: dim: expected at most 65536, found 1000000000"),
    (lambda c: c["model"].update(dim=-8), "dim"),
    (lambda c: c["model"].update(dim=60000), "no network of these sizes"),
    (lambda c: c["model"].update(dim=16.5), "dim"),
    (lambda c: c["model"].update(hop_lengths=[10**12, 64]), "model: hop_lengths.0: expected at most 65536"),
    (lambda c: c["model"].update(hop_lengths=[0]), "hop_lengths"),
    (lambda c: c["model"].update(hop_lengths=[256] * 10**4), "expected 1 to 16 hop_lengths"),
    (lambda c: c["model"]["encoder"].update(n_blocks=10**9), "model: encoder.n_blocks: expected at most 256"),
    (lambda c: c["model"]["encoder"].update(block="dilated", n_blocks=64), "config.json"),
    (lambda c: c["model"]["quantizer"].update(codebook_size=65536, codebook_dim=4096), "no network of these sizes"),
    (lambda c: c["model"]["quantizer"].update(kind="evil"), "quantizer"),
    (lambda c: c["model"]["quantizer"].update(decay=float("nan")), "expected finite numbers, found NaN"),
    (lambda c: c["model"]["quantizer"].update(decay=float("inf")), "expected finite numbers, found Infinity"),
    (lambda c: c["model"].update(kernel="os.system"), "unknown key"),
    (lambda c: c.update(model=[1]), "model: expected a mapping"),
    (lambda c: c.pop("model"), "model: expected a mapping"),
    (lambda c: c.update(kind="prior"), "expected a tokenizer"),
])  # fmt: skip
def test_absurd_tokenizers_are_refused(model: Path, change: Change, word: str) -> None:
    change_config(model / "tokenizer", change)
    refuse(lambda: Tokenizer.from_pretrained(model), word)


@pytest.mark.parametrize(("change", "word"), [
    (lambda c: c["model"]["transformer"].update(n_layers=10**9), "model: transformer.n_layers: expected at most 1024"),
    (lambda c: c["model"]["transformer"].update(context=10**12), "model: transformer.context: expected at most 65536"),
    (lambda c: c["model"]["transformer"].update(dim=65536), "no network of these sizes"),
    (lambda c: c["model"]["transformer"].update(mlp_ratio=1e300), "mlp_ratio"),
    (lambda c: c["model"].update(conditioners=[{"kind": "infill", "n_codes": 10**9}]), "n_codes: expected at most 4096"),
    (lambda c: c["model"].update(conditioners=[{"kind": "label", "name": "mood"}]), "spec.vocabularies: expected one of each"),
    (lambda c: c["spec"].update(level=7), "expected a level below 3"),
    (lambda c: c["spec"].update(level=-1), "level"),
    (lambda c: c["spec"].update(codebook_size=10**12), "spec: codebook_size: expected at most 65536"),
    (lambda c: c["spec"].update(hop_lengths=[256, 100, 64]), "never rise"),
    (lambda c: c["spec"].update(tokenizer_hash="../../etc"), "tokenizer_hash"),
    (lambda c: c["spec"].update(vocabularies={"genre": ["a"] * 40}), "conditioners.0.embedding.weight: expected numbers [41, 16]"),
    (lambda c: c["spec"].update(vocabularies="os"), "vocabularies"),
    (lambda c: c["sampling"].update(temperature=-1.0), "temperature"),
    (lambda c: c["sampling"].update(top_k=10**30), "top_k"),
])  # fmt: skip
def test_absurd_priors_are_refused(model: Path, change: Change, word: str) -> None:
    change_config(model / "prior-0", change)
    refuse(lambda: Generator.from_pretrained(model), word)


def test_numbers_that_json_hides_and_bombs_are_refused(model: Path) -> None:
    path = model / "tokenizer" / "config.json"
    text = path.read_text()
    for content, word in (
        (text.replace('"decay": 0.99', '"decay": 1e999'), "expected finite numbers, found 1e999"),
        ("[" * 10**6, "damaged"),
        ("{" + '"a": 1,' * 10**7, "expected at most 16777216 bytes"),
        ('{"kind": "tokenizer", "model": ' + "9" * 10**5 + "}", "damaged"),
    ):
        assert content != text
        path.write_text(content)
        refuse(lambda: Tokenizer.from_pretrained(model), word)


def test_every_whole_number_of_a_model_has_a_limit() -> None:
    def unlimited(kind: Any) -> set[str]:
        found = set()
        for name, field in kind.model_fields.items():
            if "int" in str(field.annotation) and "Le(le=" not in repr(field):
                found.add(name)
            found |= {n for part in parts(field.annotation) for n in unlimited(part)}
        return found

    def parts(annotation: Any) -> list[Any]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return [annotation]
        return [p for a in getattr(annotation, "__args__", ()) for p in parts(a)]

    assert unlimited(VQVAEConfig) | unlimited(PriorConfig) == {"levels"}  # of FSQ, by their product


def test_weights_that_contradict_the_config_are_refused(model: Path) -> None:
    path = model / "prior-0" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    (path.parent / "sha256.json").unlink()
    for changed, word in (
        ({**weights, "extra": torch.zeros(3)}, "extra: expected none, found numbers [3]"),
        (
            {k: v for k, v in weights.items() if k != "head.weight"},
            "head.weight: expected numbers [16, 16], found none",
        ),
        ({**weights, "head.weight": torch.zeros(16, 17)}, "found numbers [16, 17]"),
        ({**weights, "head.weight": torch.zeros(16, 16, dtype=torch.int64)}, "found integers [16, 16]"),
    ):
        safetensors.torch.save_file(changed, path)
        refuse(lambda: Generator.from_pretrained(model), "weights do not fit the config", word)


def test_priors_that_contradict_their_tokenizer_or_each_other_are_refused(model: Path) -> None:
    change_config(model / "prior-1", lambda c: c["spec"].update(sample_rate=16000))
    refuse(
        lambda: Generator.from_pretrained(model),
        "prior 1: expected level, hops, rate, codes and slots (1, [256, 128, 64], 8000",
    )
    change_config(
        model / "prior-1", lambda c: c["spec"].update(sample_rate=8000, vocabularies={"genre": ["rock", "folk"]})
    )
    refuse(lambda: Generator.from_pretrained(model), "the values of label genre that prior 0 has")


# --- codes files ------------------------------------------------------------------------------------------------------


def write_codes(path: Path, header: dict[str, Any], **tensors: torch.Tensor) -> Path:
    facts = {
        "format": "audiovq-codes-1", "n_samples": 256, "sample_rate": 8000, "hop_lengths": [256], "codebook_size": 16, "channels": 1,
        "tokenizer_hash": "0" * 64, "source_sha256": "",
    }  # fmt: skip
    content = {k: v for k, v in (facts | header).items() if v is not None}
    safetensors.torch.save_file(
        tensors or {"level.0": torch.zeros(1, dtype=torch.int16)}, path, {"audiovq": json.dumps(content)}
    )
    return path


@pytest.mark.parametrize(("header", "word"), [
    ({"n_samples": -1}, "n_samples: expected greater than or equal to 1"), ({"n_samples": 10**30}, "n_samples"), ({"n_samples": "many"}, "n_samples"),
    ({"n_samples": 256.0}, "n_samples"), ({"sample_rate": 0}, "sample_rate"), ({"hop_lengths": [0]}, "hop_lengths"),
    ({"hop_lengths": []}, "hop_lengths"), ({"hop_lengths": "x"}, "hop_lengths"), ({"codebook_size": 10**9}, "codebook_size"),
    ({"tokenizer_hash": 7}, "tokenizer_hash"), ({"n_samples": 512}, "expected [2] codes a level for 512 samples, found [1]"),
    ({"n_samples": None}, "n_samples"), ({"evil": 1}, "header: evil: unknown key"),
    ({"coding": "range-1", "n_levels": 1, "checksum": "x", "n_samples": 10**14}, "with at most"),
    ({"coding": "range-1", "n_levels": 10**9, "checksum": "x"}, "n_levels"),
    ({"coding": "range-1", "n_levels": 2, "checksum": "x"}, "expected 1 levels"),
    ({"hop_lengths": ["x" * 900] * 9}, "hop_lengths.0"), ({"coding": "range-9"}, "coding: expected 'range-1'"),
])  # fmt: skip
def test_absurd_codes_files_are_refused(tmp_path: Path, header: dict[str, Any], word: str) -> None:
    path = write_codes(tmp_path / "a.codes", header)
    refuse(lambda: Codes.load(path), word)


def test_codes_out_of_range_are_refused(tmp_path: Path, tiny_run: Path) -> None:
    for value in (16, -1):
        path = write_codes(tmp_path / "a.codes", {}, **{"level.0": torch.full((1,), value, dtype=torch.int16)})
        refuse(lambda path=path: Codes.load(path), "level 0: expected codes from 0 to 15")
    tokenizer = Tokenizer.from_pretrained(tiny_run)  # the header lies about the codebook
    header = {"codebook_size": 999, "tokenizer_hash": tokenizer.hash, "hop_lengths": [256, 128, 64]}
    levels = {f"level.{i}": torch.full((2**i,), 500, dtype=torch.int16) for i in range(3)}
    codes = Codes.load(write_codes(tmp_path / "a.codes", header, **levels))
    refuse(lambda: tokenizer.decode(codes), "codes of level 0: expected codes from 0 to 15, found 500")


# --- shards -----------------------------------------------------------------------------------------------------------


def first_format(folder: Path) -> dict[str, Any]:
    """index.json of these shards as the first versions wrote it."""
    index = Shards(folder).index
    facts = {key: value for key, value in vars(index).items() if key != "tracks"}
    return facts | {"tracks": [track.model_dump() for track in index.tracks]}


@pytest.mark.parametrize(("change", "word"), [
    (lambda c: c["tracks"][0].update(path="../../etc/passwd"), "expected one within the music folder"),
    (lambda c: c["tracks"][0].update(path="/etc/passwd"), "expected one within the music folder"),
    (lambda c: c["tracks"][0].update(path="C:\\windows\\x"), "expected one within the music folder"),
    (lambda c: c["tracks"][0].update(path=7), "path: expected a valid string"),
    (lambda c: c["tracks"][0].update(offsets=[-1, 0, 0]), "offsets.0: expected greater than or equal to 0"),
    (lambda c: c["tracks"][0].update(lengths=[10**9, 1, 1]), "track 0: expected its line and codes within their files"),
    (lambda c: c["tracks"][0].update(lengths=[1, 1]), "damaged"),
    (lambda c: c["tracks"][0].update(shard="../../x"), "damaged"),
    (lambda c: c["tracks"][0].update(shard=5), "expected its line and codes"),
    (lambda c: c["tracks"][0].update(n_samples=-5), "n_samples: expected greater than 0"),
    (lambda c: c.update(n_shards="../x"), "n_shards"), (lambda c: c.update(n_shards=10**9), "n_shards"),
    (lambda c: c.update(n_shards=10**5), "shard missing"), (lambda c: c.update(chroma=7), "chroma"),
    (lambda c: c.update(hop_lengths=["../x"]), "hop_lengths"), (lambda c: c.update(evil=1), "damaged"),
    (lambda c: c.pop("tracks"), "damaged"), (lambda c: c.update(codebook_size=0), "codebook_size"),
])  # fmt: skip
def test_absurd_shard_indexes_are_refused(tiny_run: Path, tmp_path: Path, change: Change, word: str) -> None:
    shutil.copytree(tiny_run / "codes", tmp_path / "codes")
    content = first_format(tmp_path / "codes")
    change(content)
    (tmp_path / "codes" / "index.json").write_text(json.dumps(content))
    refuse(lambda: Shards(tmp_path / "codes"), word)


@pytest.mark.parametrize(("change", "word"), [
    (lambda table: table[:, :-1], "expected int64 [tracks, 11], found int64 [4, 10]"),
    (lambda table: table.astype(np.float64), "expected int64 [tracks, 11], found float64"),
    (lambda table: table - 1, "track 0: expected its line and codes"),
    (lambda table: table[:-1], "expected 4 tracks, found 3"),
    (lambda table: np.add(table, [0, 0, 0, 0, 0, 2**62, 0, 0, 2**62, 0, 0]), "expected its line and codes"),
])  # fmt: skip
def test_absurd_tables_of_tracks_are_refused(
    tiny_run: Path, tmp_path: Path, change: Callable[[Any], Any], word: str
) -> None:
    folder = tmp_path / "codes"
    shutil.copytree(tiny_run / "codes", folder)
    np.save(folder / "tracks.npy", change(np.load(folder / "tracks.npy")))
    content = json.loads((folder / "index.json").read_text())
    content["crc32"]["tracks.npy"] = zlib.crc32((folder / "tracks.npy").read_bytes())
    (folder / "index.json").write_text(json.dumps(content))
    refuse(lambda: Shards(folder), word)


def test_codes_in_shards_are_in_range(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "codes", tmp_path / "codes")
    path = tmp_path / "codes" / "shard-00000-level-0.npy"
    np.save(path, np.full_like(np.load(path), 999))
    index = json.loads((tmp_path / "codes" / "index.json").read_text())
    without = {"blocks": {}, "crc32": {k: v for k, v in index["crc32"].items() if k != "index.json"}}
    (tmp_path / "codes" / "index.json").write_text(json.dumps(index | without))
    shards = Shards(tmp_path / "codes")
    refuse(lambda: shards.codes(shards.index.tracks[0], 0), "expected codes from 0 to 15, found 999")
    np.save(path, np.load(path).astype(np.float16))  # as many bytes
    refuse(lambda: Shards(tmp_path / "codes"), "expected one row of whole numbers")


def test_a_run_that_names_places_outside_writes_nothing_there(tiny_run: Path, tmp_path: Path) -> None:
    from audiovq.data.music import Scan, table_of
    from audiovq.training.encode_stage import encode_data_set

    network = checkpoint.load_tokenizer(tiny_run / "tokenizer")
    scan = Scan.load(tiny_run / "data")
    evil = [type(track)(**{**vars(track), "sha256": "../../../evil"}) for track in scan.tracks]
    with pytest.raises(ValueError, match="expected one within the music folder"):
        encode_data_set(
            tmp_path / "a" / "codes", Scan(scan.folder, table_of(evil), []), network, 1, torch.device("cpu")
        )
    assert not list(tmp_path.rglob("*evil*"))
