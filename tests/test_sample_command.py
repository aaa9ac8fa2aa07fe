"""`audiovq sample`: editing, streaming, candidates, items over processes, any length."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_one_line_error, cli, tones

from audiovq import Codes, Generator, Tokenizer
from audiovq.api.splice import keep_original
from audiovq.pipeline.sample import LiveDecoder
from audiovq.sampling.inpainting import CodeMask

HOPS = (256, 128, 64)


def sample(run: Path, *options: object) -> str:
    result = cli("sample", "--model", run, "--seed", 1, "--save-codes", *options)
    assert result.exit_code == 0, result.output
    return result.output


def read(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="int16")[0]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "clip.wav", tones(3, 8000, seed=4), 8000)
    return tmp_path / "clip.wav"


def test_editing_a_stretch_leaves_all_else_as_it_was(tiny_run: Path, tmp_path: Path, clip: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run)
    before = tokenizer.encode_file(clip)
    sample(tiny_run, "--edit", clip, "--from", 1, "--to", 1.5, "--codes-only", "--out", tmp_path / "a.wav")
    after = Codes.load(tmp_path / "a.codes")
    start, end = 8000 // 256 * 256, 12032  # 1 and 1.5 s, outward to the top hop
    for a, b, hop in zip(before.levels, after.levels, HOPS, strict=True):
        assert torch.equal(a[: start // hop], b[: start // hop])
        assert torch.equal(a[end // hop :], b[end // hop :])
        assert not torch.equal(a, b)
    radius = tokenizer.network.decoder_radius
    original, edited = tokenizer.decode(before)[0], tokenizer.decode(after)[0]
    assert len(edited) == 24000 == soundfile.info(tmp_path / "a.wav").frames
    assert torch.allclose(original[: start - radius], edited[: start - radius], atol=1e-5)
    assert torch.allclose(original[end + radius :], edited[end + radius :], atol=1e-5)
    sample(tiny_run, "--edit", clip, "--from", 1, "--to", 1.5, "--out", tmp_path / "b.wav")
    spliced, source = read(tmp_path / "b.wav"), read(clip)
    assert np.array_equal(spliced[: start - 400], source[: start - 400])  # 50 ms of cross-fade
    assert np.array_equal(spliced[end + 400 :], source[end + 400 :])
    assert np.corrcoef(spliced[start:end], read(tmp_path / "a.wav")[start:end])[0, 1] > 0.99  # with another level


@pytest.mark.parametrize(
    "where", [("--from", 1, "--to", 1.5), ("--to", 1), ("--from", 2.5), ("--before", 1), ("--after", 1)]
)
def test_an_edited_recording_keeps_its_audio_rate_and_channels(
    tiny_run: Path, tmp_path: Path, where: tuple[object, ...]
) -> None:
    original = np.concatenate([tones(3, 44100, seed=4), 0.3 * tones(3, 44100, seed=5)], axis=1)
    soundfile.write(tmp_path / "song.flac", original, 44100)
    sample(tiny_run, "--edit", tmp_path / "song.flac", *where, "--out", tmp_path / "new.wav")
    info, source, found = soundfile.info(tmp_path / "new.wav"), read(tmp_path / "song.flac"), read(tmp_path / "new.wav")
    assert (info.samplerate, info.channels) == (44100, 2)
    second = 44100
    kept = {
        "--before": [(0, 3 * second)], "--after": [(0, 2 * second)], "--to": [(int(1.1 * second), 3 * second)],
    }.get(str(where[0]), [(0, int(0.94 * second)), (int(1.6 * second), 3 * second)])  # fmt: skip
    if where == ("--from", 2.5):
        kept = [(0, int(2.4 * second))]
    shift = len(found) - len(source) if where[0] == "--before" else 0
    assert len(found) - len(source) == pytest.approx(second if where[0] in {"--before", "--after"} else 0, abs=1500)
    for a, b in kept:
        a = a + second // 20 if shift else a  # the cross-fade
        assert np.array_equal(found[a + shift : b + shift], source[a:b])


def test_new_music_is_as_loud_as_the_decoded_neighbourhood_should_be() -> None:
    """The decoder is at a quarter of the level: the gap gets a gain of 4, unless it would clip."""
    generator = torch.Generator().manual_seed(0)
    source = 0.2 * (2 * torch.rand(2, 44100, generator=generator) - 1)
    codes = torch.arange(100)
    codes[40:60] = -1
    mask = CodeMask(8000, [codes])
    for peak, expected in ((0.05, 4.0), (0.5, 2.0)):
        decoded = torch.nn.functional.interpolate(source[None, :1], 8000)[0] / 4
        decoded[:, 3200:4800] = peak
        mixed = keep_original(decoded.split(700, dim=1), 8000, source, 44100, mask, [80])
        assert mixed.shape == source.shape
        fade, start, end = 2205, 44100 * 40 // 100, 44100 * 60 // 100
        assert torch.equal(mixed[:, : start - fade], source[:, : start - fade])
        assert torch.equal(mixed[:, end + fade :], source[:, end + fade :])
        level = mixed[:, (start + end) // 2 - 100 : (start + end) // 2 + 100].mean()
        assert float(level) == pytest.approx(expected * peak, rel=0.15)  # a step overshoots at its edges


def test_varying_rendering_anew_and_going_on_both_ways(tiny_run: Path, tmp_path: Path, clip: Path) -> None:
    sample(tiny_run, "--seconds", 2, "--out", tmp_path / "piece.wav")
    piece = Codes.load(tmp_path / "piece.codes")
    for k in (1, 2):
        again = ("--edit", tmp_path / "piece.codes", "--keep-levels", k, "--out")
        sample(tiny_run, *again, tmp_path / "same.wav")
        sample(tiny_run, *again, tmp_path / "other.wav", "--seed", 2)
        same, other = Codes.load(tmp_path / "same.codes"), Codes.load(tmp_path / "other.codes")
        assert all(torch.equal(a, b) for a, b in zip(piece.levels, same.levels, strict=True))  # the seed it came from
        for level, (a, b) in enumerate(zip(piece.levels, other.levels, strict=True)):
            assert torch.equal(a, b) == (level < k)
    options = ("--edit", clip, "--before", 1, "--after", 0.5, "--out", tmp_path / "both.wav")
    sample(tiny_run, *options)
    both, source = Codes.load(tmp_path / "both.codes"), Tokenizer.from_pretrained(tiny_run).encode_file(clip)
    assert both.n_samples == 32 * 256 + 24000 + 4000
    for a, b, hop in zip(source.levels, both.levels, HOPS, strict=True):
        n, at = 93 * (256 // hop), 32 * 256 // hop
        assert torch.equal(a[:n], b[at : at + n])


def test_the_stream_is_the_file(tiny_run: Path, tmp_path: Path) -> None:
    options = ("--seconds", 7.3, "--stream", tmp_path / "live.wav", "--out", tmp_path / "x.wav")
    sample(tiny_run, *options)
    live, whole = read(tmp_path / "live.wav"), read(tmp_path / "x.wav")
    assert len(live) == len(whole) == 58400
    assert np.abs(live.astype(int) - whole).max() <= 1
    command = [sys.executable, "-m", "audiovq", "sample", "--model", tiny_run, "--seconds", "7.3", "--seed", "1"]
    piped = subprocess.run(
        [*command, "--stream", "-", "--out", tmp_path / "y.wav"], capture_output=True, check=True, cwd=ROOT
    )
    assert piped.stdout == (tmp_path / "live.wav").read_bytes()
    assert b"y.wav" in piped.stderr


@pytest.mark.parametrize("n_levels", [1, 2, 3])
def test_streamed_pieces_are_the_whole_and_come_early(tiny_run: Path, n_levels: int) -> None:
    tokenizer = Tokenizer.from_pretrained(tiny_run)
    codes = tokenizer.encode(torch.from_numpy(tones(9.1, 8000).T.copy()), 8000)
    pieces: list[torch.Tensor] = []
    decoder = LiveDecoder(tokenizer, codes.n_samples, n_levels, pieces.append)
    windows, finest = decoder.decoder.windows, n_levels - 1
    for level in range(finest):
        decoder(level, codes.levels[level][None])
    for n_known in range(0, len(codes.levels[finest]) + 1, 7):
        decoder(finest, codes.levels[finest][None, :n_known])
        assert windows.start > n_known * HOPS[finest] - windows.step - windows.context - 1
    decoder(finest, codes.levels[finest][None])
    decoder(finest, codes.levels[finest][None])  # once more at a level's end, as `generate` does
    assert torch.allclose(torch.cat(pieces, dim=-1), tokenizer.decode(codes, n_levels), atol=1e-5)


def test_items_by_number_and_the_names_of_files(tiny_run: Path, tmp_path: Path) -> None:
    output = sample(tiny_run, "--seconds", 1, "--num", 3, "--out", tmp_path / "all.wav")
    assert (
        f"all-0.wav, all-1.wav, all-2.wav in {tmp_path}; the same command with --seed 1 makes the same music again"
        in output
    )
    sample(tiny_run, "--seconds", 1, "--index", 2, "--out", tmp_path / "one.wav")
    sample(tiny_run, "--seconds", 1, "--index", 1, "--num", 2, "--out", tmp_path / "two.wav")
    sample(tiny_run, "--seconds", 1, "--index", 2, "--out", tmp_path / "folder")
    for name in ("one.wav", "two-2.wav", "folder/music-1-2.wav"):
        assert np.array_equal(read(tmp_path / "all-2.wav"), read(tmp_path / name))
    assert np.array_equal(read(tmp_path / "all-1.wav"), read(tmp_path / "two-1.wav"))
    assert not np.array_equal(read(tmp_path / "all-1.wav"), read(tmp_path / "all-2.wav"))


def costs(generator: Generator, pieces: list[Codes], **labels: str) -> list[float]:
    return generator.bits_per_second(pieces, labels)


def test_the_best_are_those_the_model_finds_likeliest(tiny_run: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(tiny_run)
    pieces = generator.sample_codes(1, seed=1, n=5)
    expected = np.argsort(costs(generator, pieces))[:2]
    output = sample(tiny_run, "--seconds", 1, "--num", 5, "--best", 2, "--out", tmp_path / "x.wav")
    assert {path.name for path in tmp_path.glob("*.wav")} == {f"x-{i}.wav" for i in expected}
    ranks = re.findall(r"│ (\d) +│ (\d) +│ +([\d.]+)", output)
    assert [int(item) for _, item, _ in ranks] == np.argsort(costs(generator, pieces)).tolist()
    assert float(ranks[0][2]) == pytest.approx(min(costs(generator, pieces)), abs=0.006)
    folk = generator.sample_codes(1, seed=1, n=5, labels={"genre": "folk"})
    gain = np.array(costs(generator, folk)) - np.array(costs(generator, folk, genre="folk"))
    label = ("--seconds", 1, "--num", 5, "--label", "genre=folk", "--best", 1, "--out")
    assert f"--seed 1 --num 1 --index {gain.argmax()} makes" in sample(tiny_run, *label, tmp_path / "folk.wav")
    assert [path.name for path in tmp_path.glob("folk*.wav")] == [f"folk-{gain.argmax()}.wav"]


def test_a_label_has_one_value(tiny_run: Path, tmp_path: Path) -> None:
    labels = ("--label", "genre=folk", "--label", "genre=rock")
    result = cli("sample", "--model", tiny_run, "--seconds", 1, *labels, "--out", tmp_path / "x.wav")
    assert_one_line_error(result, "--label genre: expected one value, found folk and rock")


def test_codes_are_saved_though_the_audio_cannot_be_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audiovq.data.audio_writer.WAV_BYTES", 1000)
    result = cli("sample", "--model", tiny_run, "--seconds", 1, "--save-codes", "--out", tmp_path / "x.wav")
    assert_one_line_error(result, "a WAV file holds at most 4 GB")
    assert Codes.load(tmp_path / "x.codes").seconds == 1


def test_two_processes_share_the_pieces_and_make_what_one_makes(tiny_run: Path, tmp_path: Path) -> None:
    options = [str(o) for o in ("--model", tiny_run, "--seconds", 1, "--seed", 1, "--num", 5, "--best", 3, "--out")]
    assert cli("sample", *options, tmp_path / "one" / "x.wav").exit_code == 0
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "audiovq", "sample"]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, *options, str(tmp_path / "two" / "x.wav")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("chosen") == 3  # one table
    ones, twos = sorted((tmp_path / "one").iterdir()), sorted((tmp_path / "two").iterdir())
    assert [path.name for path in ones] == [path.name for path in twos]
    assert len(ones) == 3
    for one, two in zip(ones, twos, strict=True):
        assert np.array_equal(read(one), read(two))


def test_gpus_launches_as_many_processes(tiny_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """On processes without GPUs: what is tested is the launch."""
    arguments = ["sample", "--model", str(tiny_run), "--seconds", "1", "--seed", "1", "--num", "2", "--out"]
    assert cli(*arguments, tmp_path / "one" / "x.wav").exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 2)
        patch.setattr("sys.argv", ["audiovq", *arguments, str(tmp_path / "two" / "x.wav"), "--gpus", "2"])
        assert cli(*arguments, tmp_path / "two" / "x.wav", "--gpus", 2).exit_code == 0
    for i in range(2):
        assert np.array_equal(read(tmp_path / "one" / f"x-{i}.wav"), read(tmp_path / "two" / f"x-{i}.wav"))
    assert len(re.findall(r"x-\d\.wav", capfd.readouterr().out)) == 2


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--from", 1), "--edit"), (("--keep-levels", 1), "--edit"), (("--codes-only",), "--edit"),
        (("--edit", "CLIP"), "--keep-levels"), (("--edit", "CLIP", "--from", 1, "--to", 9), "the stretch must begin before it ends"),
        (("--edit", "CLIP", "--from", 2, "--to", 1), "within the piece of 3 s; found 2 to 1 s"),
        (("--edit", "CLIP", "--from", 1, "--before", 1), "before, after: expected neither a stretch nor levels"),
        (("--edit", "CLIP", "--before", -1), "before, after"),
        (("--edit", "CLIP", "--keep-levels", 4), "expected 0 to 3, found 4"),
        (("--edit", "CLIP", "--keep-levels", 3), "nothing is left to draw"),
        (("--edit", "CLIP", "--to", 1, "--seconds", 5), "leave out --seconds"),
        (("--edit", "CLIP", "--to", 1, "--prompt", "CLIP"), "expected one of them"),
        (("--keep-audio",), "use --edit, which keeps it"),
        (("--num", 2, "--stream", "x.wav"), "plays one piece"), (("--num", 2, "--best", 3), "expected 1 to 2"),
        (("--best", 0), "--best"), (("--num", 0), "--num"), (("--best", 2), "expected 1 to 1"), (("--index", -1), "--index"),
        (("--gpus", 64), "expected at most the"), (("--edit", "OTHER", "--to", 1), "those of another"),
        (("--edit", "none.wav", "--to", 1), "no such file"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(
    tiny_run: Path, tmp_path: Path, clip: Path, options: tuple[object, ...], word: str
) -> None:
    if "OTHER" in options:
        codes = Tokenizer.from_pretrained(tiny_run).encode_file(clip)
        codes.tokenizer_hash = "0" * 64
        codes.save(tmp_path / "other.codes")
    places = {"CLIP": clip, "OTHER": tmp_path / "other.codes"}
    arguments = [places.get(str(option), option) for option in options]
    assert_one_line_error(cli("sample", "--model", tiny_run, *arguments, "--out", tmp_path / "x.wav"), word)
    assert not (tmp_path / "x.wav").exists()
