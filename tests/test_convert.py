"""Files of any length at bounded memory; folders: skipped, resumed, broken; compressed codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
import soundfile
import torch
from conftest import ROOT, SAMPLES, assert_one_line_error, cli, tones
from test_audio import bad_file
from test_codes import some_codes

from audiovq import Tokenizer, api
from audiovq.api.convert import Decoding, Encoding, convert_folder, mirrored
from audiovq.data import audio, audio_writer, entropy
from audiovq.data.audio import audio_info, read_audio
from audiovq.data.audio_writer import AudioWriter, write_audio
from audiovq.data.codes import Codes, read_header
from audiovq.data.resampling import resample
from audiovq.data.tracks import DataConfig, scan
from audiovq.pipeline.samples import reconstruct_samples
from audiovq.pretrained import checkpoint
from audiovq.recipe import SamplesConfig, load_recipe
from audiovq.report.clips import _reconstructions
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import file_sha256

# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tiny_run: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_run, "cpu")


def test_a_file_gives_the_codes_of_its_waveform_and_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tones(31, 44100, channels=2), 44100)
    waveform, rate = read_audio(tmp_path / "a.flac")
    seconds: list[float] = []
    codes = tokenizer.encode_file(tmp_path / "a.flac", seconds.append)
    assert sum(seconds) == pytest.approx(31)
    assert codes.source_sha256 == file_sha256(tmp_path / "a.flac")
    whole = tokenizer.encode(waveform, rate)
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, whole.levels, strict=True))
    with torch.no_grad():  # and those of the network on the whole
        at_rate = resample(audio.downmix(waveform, 1), rate, 8000)
        naive = tokenizer.network.encode(at_rate[None])
    assert all(torch.equal(a, b[0]) for a, b in zip(codes.levels, naive, strict=True))
    tokenizer.decode_file(codes, tmp_path / "b.wav")
    write_audio(tmp_path / "c.wav", tokenizer.decode(codes), 8000)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()


def write_both(file: AudioWriter, first: torch.Tensor, second: torch.Tensor) -> None:
    file.write(first)
    file.write(second)


def test_a_file_of_many_channels_is_encoded_as_their_mean(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As the scan before training uses it: 7.1 and microphone arrays."""
    tracks = np.concatenate([tones(1, 8000, seed=seed) for seed in range(8)], axis=1)
    soundfile.write(tmp_path / "many.wav", tracks, 8000, "FLOAT")
    expected = tokenizer.encode(tracks.mean(axis=1), 8000)
    found = tokenizer.encode_file(tmp_path / "many.wav")
    assert found.n_samples == expected.n_samples
    agreement = [float((a == b).float().mean()) for a, b in zip(found.levels, expected.levels, strict=True)]
    assert min(agreement) > 0.97  # sums in another order


def test_written_in_pieces_is_written_at_once_and_never_half(tmp_path: Path) -> None:
    wave = torch.from_numpy(tones(1, 8000, channels=2).T.copy())
    write_audio(tmp_path / "whole.flac", wave, 8000)
    with AudioWriter(tmp_path / "pieces.flac", 8000, 2, tags={"comment": "audiovq of this"}) as file:
        for piece in wave.split(777, dim=1):
            file.write(piece)
    whole, pieces = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("whole.flac", "pieces.flac"))
    assert np.array_equal(whole, pieces)
    assert audio_info(tmp_path / "pieces.flac").tags["comment"] == "audiovq of this"
    with pytest.raises(Exception, match="Wrong shape"), AudioWriter(tmp_path / "half.wav", 8000, 2) as file:
        write_both(file, wave, torch.zeros(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pieces.flac", "whole.flac"]


def test_more_than_a_wav_file_holds_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a\.wav: a WAV file holds at most 4 GB.*\.flac"):
        AudioWriter(tmp_path / "a.wav", 44100, 2, 1 << 30)
    with AudioWriter(tmp_path / "a.flac", 44100, 2, 1 << 30) as file:
        file.write(torch.zeros(2, 10))
    monkeypatch.setattr(audio_writer, "WAV_BYTES", 1000)
    with pytest.raises(ValueError, match="4 GB"), AudioWriter(tmp_path / "b.wav", 44100, 2) as file:
        write_both(file, torch.zeros(2, 200), torch.zeros(2, 100))
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]


PEAK = """
import json, resource, sys
from audiovq.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as error:
        assert not error.code, error.code
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def peak_megabytes(*commands: tuple[object, ...]) -> list[int]:
    """Largest memory so far after each of the commands, which run one after the other in a process of their own."""
    lists = [[str(part) for part in command] for command in commands]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK, json.dumps(lists)], capture_output=True, text=True, cwd=ROOT, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines() if line.isdecimal()]


def peaks_of_both_ways(folder: Path, model: Path, *sources: Path) -> list[int]:
    """Encode and decode files; their lengths must come back. The largest memory so far after each of them."""
    commands, backs = [], [folder / f"{source.stem}-back.wav" for source in sources]
    for source, back in zip(sources, backs, strict=True):
        codes = folder / f"{source.stem}.codes"
        commands.append(("encode", source, "-o", codes, "--model", model))
        commands.append(("decode", codes, "-o", back, "--model", model))
    peaks = peak_megabytes(*commands)
    assert len(peaks) == len(commands)
    for source, back in zip(sources, backs, strict=True):
        assert soundfile.info(back).duration == pytest.approx(soundfile.info(source).duration, abs=1e-3)
    return peaks[1::2]


def long_file(path: Path, seconds: int, rate: int = 44100) -> Path:
    """Stereo music of any length, written in pieces."""
    ten_seconds = torch.from_numpy(tones(10, rate, channels=2).T.copy())
    with AudioWriter(path, rate, 2) as file:
        for _ in range(seconds // 10):
            file.write(ten_seconds)
    return path


def test_memory_does_not_grow_with_length(tiny_run: Path, tmp_path: Path) -> None:
    """Six minutes of 44.1 kHz stereo would be 127 MB at once."""
    files = [long_file(tmp_path / f"{seconds}.flac", seconds) for seconds in (60, 360)]
    short, long = peaks_of_both_ways(tmp_path, tiny_run, *files)
    assert long - short < 45, (short, long)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "bundled"])
def test_three_hours_fit_into_one_and_a_half_gigabytes(model: str, tiny_run: Path, tmp_path: Path) -> None:
    source = tiny_run if model == "tiny" else api.bundled_model()
    assert max(peaks_of_both_ways(tmp_path, source, long_file(tmp_path / "long.flac", 3 * 3600))) < 1500


@pytest.mark.slow
def test_a_tokenizer_of_the_music_recipe_fits_too(tmp_path: Path) -> None:
    """At random weights, for one minute: its windows are as large as in three hours."""
    checkpoint.save_tokenizer(tmp_path / "t", VQVAE(load_recipe("music", data="x").tokenizer.model).eval())
    assert max(peaks_of_both_ways(tmp_path, tmp_path / "t", long_file(tmp_path / "a.flac", 60))) < 1500


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good files in a tree, two that differ in their suffix alone, and broken ones."""
    folder = tmp_path / "in"
    (folder / "album").mkdir(parents=True)
    soundfile.write(folder / "a.wav", tones(1, 8000, seed=1), 8000)
    soundfile.write(folder / "a.flac", tones(1, 8000, seed=2), 8000)
    soundfile.write(folder / "album" / "b.wav", tones(2, 16000, seed=3), 16000)
    return folder


def stamps(out: Path) -> dict[str, int]:
    return {p.relative_to(out).as_posix(): p.stat().st_mtime_ns for p in sorted(out.rglob("*")) if p.is_file()}


def test_a_folder_is_mirrored_and_what_is_done_is_skipped(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "codes", ("--model", tiny_run)
    result = cli("encode", folder, "-o", out, *model)
    assert result.exit_code == 0, result.output
    assert "3 files encoded, 0 were done before" in result.output
    first = stamps(out)
    assert list(first) == ["a.flac.codes", "a.wav.codes", "album/b.codes"]
    alone = Tokenizer.from_pretrained(tiny_run).encode_file(folder / "album" / "b.wav")
    assert all(torch.equal(a, b) for a, b in zip(Codes.load(out / "album/b.codes").levels, alone.levels, strict=True))
    assert "0 files encoded, 3 were done before" in cli("encode", folder, "-o", out, *model).output
    assert stamps(out) == first
    soundfile.write(folder / "a.wav", tones(1, 8000, seed=9), 8000)  # another source
    (out / "album" / "b.codes").unlink()
    assert "2 files encoded, 1 were done before" in cli("encode", folder, "-o", out, *model).output
    assert stamps(out)["a.flac.codes"] == first["a.flac.codes"]
    assert "3 files encoded" in cli("encode", folder, "-o", out, *model, "--compress").output  # other than before
    back = tmp_path / "back"
    result = cli("decode", out, "-o", back, *model, "--format", "flac")
    assert result.exit_code == 0, result.output
    assert list(stamps(back)) == ["a.flac.flac", "a.wav.flac", "album/b.flac"]
    assert soundfile.info(back / "album" / "b.flac").frames == 16000
    before = stamps(back)
    assert "0 files decoded, 3 were done before" in cli("decode", out, "-o", back, *model, "--format", "flac").output
    assert stamps(back) == before
    cut = min(back.rglob("*.flac"))
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    assert "1 files decoded, 2 were done before" in cli("decode", out, "-o", back, *model, "--format", "flac").output
    assert cut.read_bytes() == whole
    assert "3 files decoded" in cli("decode", out, "-o", back, *model, "--format", "flac", "--levels", 1).output
    tuned = Tokenizer.from_pretrained(tiny_run)
    for parameter in tuned.network.groups[0].decoder.parameters():
        parameter.data *= 1.01
    tuned.save_pretrained(tmp_path / "tuned")  # the same codes sound otherwise
    again = cli("decode", out, "-o", back, "--model", tmp_path / "tuned", "--format", "flac", "--levels", 1)
    assert "3 files decoded, 0 were done before" in again.output


def test_broken_files_are_set_aside_and_the_others_go_on(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    bad_file(folder, "text")
    bad_file(folder / "album", "truncated flac")
    out, model = tmp_path / "codes", ("--model", tiny_run)
    result = cli("encode", folder, "-o", out, *model)
    assert_one_line_error(result, "3 files encoded", "2 of 5 could not be encoded")
    assert list(stamps(out)) == ["a.flac.codes", "a.wav.codes", "album/b.codes"]
    (out / "a.wav.codes").write_bytes(b"x" * 300)
    shutil.copy(folder / "a.wav", tmp_path / "mine.wav")
    (tmp_path / "back" / "album").mkdir(parents=True)
    shutil.copy(folder / "a.wav", tmp_path / "back" / "album" / "b.wav")  # somebody's music in the way
    result = cli("decode", out, "-o", tmp_path / "back", *model)
    assert_one_line_error(result, "1 files decoded", "2 of 3 could not be decoded")
    assert (tmp_path / "back" / "album" / "b.wav").read_bytes() == (folder / "a.wav").read_bytes()
    (tmp_path / "none").mkdir()
    assert_one_line_error(cli("encode", tmp_path / "none", "-o", out, *model), "nothing there to encode")


def test_what_is_set_aside_is_one_line(tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    bad_file(folder, "text")
    command = [sys.executable, "-m", "audiovq", "encode", str(folder), "-o", str(tmp_path / "o"), "--model", str(tiny_run)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "bad.wav" in line]
    reason = "not audio that can be read (WAV, FLAC, OGG, Opus, MP3, AIFF): it is a text file"
    assert line.startswith(f"set aside: {folder / 'bad.wav'}: {reason}")  # and what ffmpeg says, or that it is missing


def test_ctrl_c_loses_nothing_finished(tiny_run: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    soundfile.write(folder / "0.wav", tones(1, 8000), 8000)
    long_file(folder / "1.wav", 1000, 16000)
    command = [sys.executable, "-m", "audiovq", "encode", str(folder), "-o", str(out), "--model", str(tiny_run)]
    default = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # jobs in the background inherit SIG_IGN
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=default)
    for _ in range(1200):
        if (out / "0.codes").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "audiovq: stopped"
    assert [p.name for p in out.iterdir()] == ["0.codes"]
    assert len(Codes.load(out / "0.codes").levels) == 3


def test_names_below_the_other_folder() -> None:
    sources = [Path("m/a/x.wav"), Path("m/a/x.mp3"), Path("m/x.wav"), Path("m/b.c.wav")]
    assert [target.as_posix() for _, target in mirrored(sources, Path("m"), Path("o"), ".codes")] == [
        "o/a/x.wav.codes", "o/a/x.mp3.codes", "o/x.codes", "o/b.c.codes",
    ]  # fmt: skip
    sources = [Path("m/a.wav"), Path("m/a.flac"), Path("m/a.wav.mp3"), Path("m/a.mp3")]
    assert len({target for _, target in mirrored(sources, Path("m"), Path("o"), ".codes")}) == 4


def test_names_of_any_kind_are_encoded_and_decoded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    names = [b"\xe9.wav", b"x" * 251 + b".wav", "é".encode() * 125 + b".wav", b"x" * 250 + b"y.wav", b".a b'\n.wav"[1:]]
    (tmp_path / "music").mkdir()
    for i, name in enumerate(names):
        write_audio(tmp_path / "a.wav", torch.from_numpy(tones(1, 8000, seed=i).T), 8000)
        os.rename(tmp_path / "a.wav", os.fsencode(tmp_path / "music") + b"/" + name)
    done = convert_folder(Encoding(tokenizer, compress=False), tmp_path / "music", tmp_path / "codes")
    assert (len(done["files"]), done["set_aside"]) == (5, [])
    done = convert_folder(Decoding(tokenizer, None), tmp_path / "codes", tmp_path / "back")
    assert (len(done["files"]), done["set_aside"]) == (5, [])
    for folder, suffix in (("codes", b".codes"), ("back", b".wav")):
        found = os.listdir(os.fsencode(tmp_path / folder))
        assert {b"\xe9" + suffix, b"a b'\n" + suffix} <= set(found)
        assert len(found) == 5
        assert max(map(len, found)) <= 255


@pytest.mark.parametrize("names", [[b"A/01", b"B/01", b"1-01"], [b"\xe9"], [b"x" * 251], ["é".encode() * 125, b"b"]])
def test_samples_of_held_out_tracks_of_any_name_are_all_there(
    tokenizer: Tokenizer, tmp_path: Path, names: list[bytes]
) -> None:
    waveforms = {}
    for i, name in enumerate(names):
        write_audio(tmp_path / "a.wav", torch.from_numpy(tones(1, 8000, seed=i).T), 8000)
        waveforms[i] = read_audio(tmp_path / "a.wav")[0]
        path = Path(os.fsdecode(os.fsencode(tmp_path / "music") + b"/" + name + b".wav"))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(tmp_path / "a.wav", path)
    found = scan(tmp_path / "music", DataConfig(valid_fraction=0))
    samples = SamplesConfig(n=len(names), seconds=1.0)
    reconstruct_samples(tmp_path / "out", tokenizer.network, found, samples, tokenizer.device)
    groups = _reconstructions(tmp_path / "out", None)
    assert len(groups) == len(names)
    assert {len(group.clips) for group in groups} == {tokenizer.config.n_levels + 1}
    sources = [read_audio(group.clips[0].path)[0] for group in groups]
    assert all(any(torch.equal(waveform, source) for source in sources) for waveform in waveforms.values())


OUTPUTS = [
    ("encode song.wav -o song.wav", "song.wav: is an input"),
    ("encode song.wav -o link.codes", "link.codes: is an input"),
    ("encode song.wav -o other.wav", "other.wav: exists, and is no codes file"),
    ("encode song.wav -o notes.codes", "notes.codes: exists, and is no codes file"),
    ("decode song.codes -o other.wav", "other.wav: exists, and was not decoded by audiovq"),
    ("decode song.codes -o notes.wav", "notes.wav: exists, and is a file of another kind"),
    ("sample --seconds 1 --prompt song.wav --out song.wav", "song.wav: is an input"),
    ("sample --seconds 1 --prompt song.codes --save-codes --out song.flac", "song.codes: is an input"),
    ("sample --seconds 1 --out notes.wav", "notes.wav: exists, and is a file of another kind"),
    ("sample --seconds 1 --out new.wav --stream notes.txt", "notes.txt: exists, and is a file of another kind"),
    ("sample --seconds 1 --num 2 --prompt piece-1.wav --out piece.wav", "piece-1.wav: is an input"),
    ("report {run} --out other.wav", "other.wav: exists, and is a file of another kind"),
    ("recipes --json=other.wav", "other.wav: exists, and is a file of another kind"),
]


@pytest.mark.parametrize(("command", "message"), OUTPUTS)
def test_an_output_never_replaces_an_input_or_a_file_of_another_kind(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("song.wav", "other.wav", "piece-1.wav"):
        soundfile.write(name, tones(2, 8000), 8000)
    Path("link.codes").symlink_to("song.wav")
    some_codes().save("song.codes")
    for name in ("notes.codes", "notes.wav", "notes.txt"):
        Path(name).write_text("my notes")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    model = [] if command.startswith(("report", "recipes")) else ["--model", str(tiny_run)]
    words = [word.format(run=tiny_run) for word in command.split()]
    assert_one_line_error(cli(*words, *model), message)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- compressed codes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 7, 1024, 65536])
@pytest.mark.parametrize("n_samples", [1, 300, 9000])
def test_compressed_codes_come_back_exactly(tmp_path: Path, size: int, n_samples: int) -> None:
    codes = some_codes(n_samples, size)
    codes.save(tmp_path / "x.codes", compress=True)
    again = Codes.load(tmp_path / "x.codes")
    assert all(torch.equal(a, b) and b.dtype == torch.int64 for a, b in zip(codes.levels, again.levels, strict=True))
    assert {k: v for k, v in vars(again).items() if k != "levels"} == {
        k: v for k, v in vars(codes).items() if k != "levels"
    }


def test_a_prefix_of_levels_and_one_constant_level(tmp_path: Path) -> None:
    codes = some_codes(9000)
    codes.levels = [codes.levels[0], torch.full_like(codes.levels[1], 5)]
    codes.save(tmp_path / "x.codes", compress=True)
    assert all(torch.equal(a, b) for a, b in zip(Codes.load(tmp_path / "x.codes").levels, codes.levels, strict=True))


def test_the_bits_are_those_of_every_version_and_machine() -> None:
    """If this fails, codes files that were compressed before cannot be read any more: `CODING` needs a new name."""
    levels = [np.arange(6) % 3, np.array([1, 1, 4, 1, 1, 4, 4, 1, 1, 4, 1, 1])]
    data = entropy.compress(levels, [2, 1], 5)
    assert data.tobytes().hex() == "d3535e22a522b249"
    for a, b in zip(entropy.decompress(data, [6, 12], [2, 1], 5), levels, strict=True):
        assert np.array_equal(a, b)


def test_the_coder_spends_what_the_model_says_and_the_model_is_normalised() -> None:
    random = np.random.default_rng(0)
    level = np.minimum(random.geometric(0.1, 4000) - 1, 63)
    model, bits = entropy.LevelModel(64, 2), 0.0
    previous = 64
    for code in level.tolist():
        frequencies = model.frequencies((0, previous))
        assert frequencies.min() > 0
        assert abs(int(frequencies.sum()) - (1 << 24)) < 1 << 10
        bits -= float(np.log2(frequencies[code] / frequencies.sum()))
        model.learn((0, previous), code)
        previous = code
    assert len(entropy.compress([level], [1], 64)) * 8 == pytest.approx(bits, abs=64)
    p = np.bincount(level) / len(level)
    entropy_bits = -float((p[p > 0] * np.log2(p[p > 0])).sum()) * len(level)
    assert entropy_bits < bits < 1.08 * entropy_bits  # independent codes: no less than their entropy, hardly more


def test_real_codes_get_smaller_and_the_rates_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, soundfile.read(SAMPLES / "chorales" / "bwv-354.opus", frames=48000 * 25)[0], 48000)
    model = ("--model", api.bundled_model())
    config = checkpoint.load_tokenizer(api.bundled_model() / "tokenizer").config
    raw = sum(config.code_rates) * config.bits_per_code / 1000
    result = cli("encode", path, "-o", tmp_path / "x.codes", "--compress", *model)
    assert result.exit_code == 0, result.output
    facts = json.loads(cli("info", tmp_path / "x.codes").output)
    assert facts["kbps_raw"] == pytest.approx(raw, abs=0.01)
    assert facts["coding"] == "range-1"
    size = (tmp_path / "x.codes").stat().st_size
    assert facts["kbps_file"] == pytest.approx(8 * size / facts["seconds"] / 1000)
    assert f"{facts['kbps_raw']:.2f} kbps, {facts['kbps_file']:.2f} kbps with the header" in result.output
    with safetensors.safe_open(tmp_path / "x.codes", "np") as file:
        assert 8 * len(file.get_tensor("compressed")) < 0.85 * 1000 * facts["kbps_raw"] * facts["seconds"]
    Codes.load(tmp_path / "x.codes").save(tmp_path / "plain.codes")
    assert read_header(tmp_path / "plain.codes").coding is None


def test_damaged_compressed_codes_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.codes"
    some_codes(20000).save(path, compress=True)
    whole = path.read_bytes()
    for at in (-1, -40, -200, -len(whole) // 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        path.write_bytes(bytes(damaged))
        with pytest.raises(ValueError, match=r"x\.codes.*damaged") as error:
            Codes.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole.replace(b"range-1", b"range-9"))
    with pytest.raises(ValueError, match="coding: expected 'range-1', found 'range-9'"):
        Codes.load(path)
