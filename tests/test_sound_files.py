"""What `audiovq sample` writes: formats, bits, tags, loudness; and stereo from the training to the file."""

from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
import torch
from conftest import TINY, assert_one_line_error, cli, tones

from audiovq import Generator, Tokenizer
from audiovq.data.audio import read_audio
from audiovq.data.audio_writer import AudioWriter, write_audio
from audiovq.evaluation.loudness import loudness
from audiovq.pretrained.export import export_model


@pytest.mark.parametrize(("name", "form", "subtype", "rate"), [
    ("a.wav", "WAV", "PCM_16", 8000), ("a.flac", "FLAC", "PCM_16", 8000), ("a.opus", "OGG", "OPUS", 8000), ("a.OGG", "OGG", "OPUS", 8000),
    ("a.mp3", "MP3", "MPEG_LAYER_III", 16000),
])  # fmt: skip
def test_each_format_has_the_sound_and_its_tags(
    tiny_run: Path, tmp_path: Path, name: str, form: str, subtype: str, rate: int
) -> None:
    made = ("--seconds", 1, "--seed", 3, "--label", "genre=folk", "--out", tmp_path / name)
    export_model(str(tiny_run), tmp_path / "módel", license="cc-by-4.0")
    assert cli("sample", "--model", tmp_path / "módel", *made).exit_code == 0
    with soundfile.SoundFile(tmp_path / name) as file:
        assert (file.format, file.subtype, file.samplerate) == (form, subtype, rate)
        tags = file.copy_metadata()
    assert tags["title"] == "a"
    assert tags["comment"] == "módel, seed 3, genre folk; licence of the model: cc-by-4.0"
    assert tags["software"].startswith("audiovq")
    assert mutagen.File(tmp_path / name) is not None  # type: ignore[attr-defined]
    expected = Generator.from_pretrained(tiny_run).sample(1, seed=3, labels={"genre": "folk"})[0]
    found, _ = read_audio(tmp_path / name, 8000)
    if subtype == "PCM_16":
        assert torch.equal((found * 32768).round(), (expected * 32768).round().clamp(max=32767))
    else:
        n = min(found.shape[1], 8000)
        assert abs(found.shape[1] - 8000) < 1300  # MP3 has whole frames
        spectra = [torch.fft.rfft(wave[0, :n]).abs()[: n // 8] for wave in (found, expected)]
        assert float(torch.corrcoef(torch.stack(spectra))[0, 1]) > 0.9


def test_pieces_of_any_size_are_written_as_the_whole(tmp_path: Path) -> None:
    wave = torch.from_numpy(tones(1.1, 11025, channels=2).T.copy())
    for suffix in (".mp3", ".flac"):  # the first is resampled to 16 kHz
        write_audio(tmp_path / f"whole{suffix}", wave, 11025)
        with AudioWriter(tmp_path / f"pieces{suffix}", 11025, 2) as file:
            for piece in wave.split(1000, dim=-1):
                file.write(piece)
        whole, pieces = (read_audio(tmp_path / f"{name}{suffix}")[0] for name in ("whole", "pieces"))
        assert torch.equal(whole, pieces)


def test_24_bits_and_loudness_of_samples(tiny_run: Path, tmp_path: Path) -> None:
    made = ("sample", "--model", tiny_run, "--seconds", 1, "--seed", 3)
    plain = Generator.from_pretrained(tiny_run).sample(1, seed=3)[0]
    assert cli(*made, "--bits", 24, "--out", tmp_path / "a.flac").exit_code == 0
    assert soundfile.info(tmp_path / "a.flac").subtype == "PCM_24"
    assert np.abs(soundfile.read(tmp_path / "a.flac")[0] - plain[0].numpy()).max() < 2**-22
    target = round(loudness(plain, 8000) - 6, 1)
    assert cli(*made, "--lufs", target, "--out", tmp_path / "b.wav").exit_code == 0
    assert loudness(read_audio(tmp_path / "b.wav")[0], 8000) == pytest.approx(target, abs=0.1)
    assert cli(*made, "--num", 2, "--out", tmp_path / "two.flac").exit_code == 0
    with soundfile.SoundFile(tmp_path / "two-1.flac") as file:  # what makes it again
        assert file.comment.endswith("seed 3, item 1")
    result = cli(*made, "--lufs", 0, "--out", tmp_path / "c.wav")
    assert "LUFS instead of 0: louder, its peaks would exceed -1 dBFS" in result.output
    assert float(read_audio(tmp_path / "c.wav")[0].abs().max()) == pytest.approx(10 ** (-1 / 20), abs=1e-3)


def test_what_a_format_cannot_have_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    made = ("sample", "--model", tiny_run, "--seconds", 1)
    assert_one_line_error(cli(*made, "--out", tmp_path / "a.aac"), "ends in .wav, .flac, .opus, .mp3, .ogg, found .aac")
    assert_one_line_error(
        cli(*made, "--bits", 24, "--out", tmp_path / "a.mp3"), "--bits: of WAV and FLAC files, found .mp3"
    )
    assert_one_line_error(cli(*made, "--lufs", -14, "--stream", tmp_path / "a.wav"), "--lufs needs a whole piece")
    (tmp_path / "a.opus").write_text("mine")
    assert_one_line_error(cli(*made, "--out", tmp_path / "a.opus"), "a file of another kind")
    assert (tmp_path / "a.opus").read_text() == "mine"


@pytest.fixture(scope="module")
def stereo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on tracks whose right channel is another tune than the left one."""
    folder = tmp_path_factory.mktemp("stereo")
    for i in range(3):
        both = np.concatenate([tones(2.5, 8000, seed=i), 0.5 * tones(2.5, 8000, seed=9 + i)], axis=1)
        (folder / "music").mkdir(exist_ok=True)
        soundfile.write(folder / "music" / f"{i}.wav", both, 8000)
    (folder / "stereo.yaml").write_text(
        TINY.format(folder=folder / "music").replace(
            "    dim: 16\n    whiten", "    channels: 2\n    dim: 16\n    whiten"
        )
    )
    assert cli("train", folder / "stereo.yaml", "--out", folder / "run").exit_code == 0
    return folder / "run"


def test_stereo_is_trained_encoded_sampled_and_written(stereo_run: Path, tmp_path: Path) -> None:
    tokenizer, song = Tokenizer.from_pretrained(stereo_run), stereo_run.parent / "music" / "0.wav"
    assert tokenizer.config.channels == 2
    wave, _ = read_audio(song)
    codes, swapped = tokenizer.encode(wave, 8000), tokenizer.encode(wave.flip(0), 8000)
    assert codes.channels == 2
    assert any(not torch.equal(a, b) for a, b in zip(codes.levels, swapped.levels, strict=True))
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (2, 20000)
    assert not torch.equal(decoded[0], decoded[1])
    for name in ("a.wav", "a.opus", "a.mp3"):
        assert (
            cli("sample", "--model", stereo_run, "--seconds", 1, "--seed", 1, "--out", tmp_path / name).exit_code == 0
        )
        assert soundfile.info(tmp_path / name).channels == 2
    expected = Generator.from_pretrained(stereo_run).sample(1, seed=1)[0]
    assert torch.equal((read_audio(tmp_path / "a.wav")[0] * 32768).round(), (expected * 32768).round().clamp(max=32767))
    assert not torch.equal(expected[0], expected[1])
    edit = (
        "sample",
        "--model",
        stereo_run,
        "--edit",
        song,
        "--from",
        1,
        "--to",
        1.5,
        "--lufs",
        -20,
        "--out",
        tmp_path / "b.flac",
    )
    assert cli(*edit).exit_code == 0
    assert soundfile.info(tmp_path / "b.flac").channels == 2
    assert tokenizer.encode(tones(1, 8000)[:, 0], 8000).channels == 2  # mono is taken, too
    assert cli("encode", song, "-o", tmp_path / "a.codes", "--model", stereo_run).exit_code == 0
    assert cli("decode", tmp_path / "a.codes", "-o", tmp_path / "d.mp3", "--model", stereo_run).exit_code == 0
    assert soundfile.info(tmp_path / "d.mp3").channels == 2
    assert (
        cli("decode", tmp_path / "a.codes", "-o", tmp_path / "d.mp3", "--model", stereo_run).exit_code == 0
    )  # its own file
