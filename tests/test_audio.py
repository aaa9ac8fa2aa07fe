"""Reading and writing audio files of every kind, and the messages for bad ones."""

import os
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile
import torch
from conftest import TRACK, tones

from audiovq.data.audio import audio_info, downmix, has_samples, open_audio, read_audio
from audiovq.data.audio_writer import AudioWriter, write_audio
from audiovq.data.completeness import check_whole
from audiovq.data.resampling import resample

FORMATS = [
    ("a.wav", "PCM_U8", 0.02), ("a.wav", "PCM_16", 1e-4), ("a.wav", "PCM_24", 1e-6), ("a.wav", "PCM_32", 1e-6),
    ("a.wav", "FLOAT", 0.0), ("a.flac", "PCM_16", 1e-4), ("a.flac", "PCM_24", 1e-6), ("a.aiff", "PCM_16", 1e-4),
    ("a.ogg", "VORBIS", 0.1), ("a.opus", "OPUS", 0.1), ("a.mp3", "MPEG_LAYER_III", 0.1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "subtype", "tolerance"), FORMATS)
def test_reads_every_format(tmp_path: Path, name: str, subtype: str, tolerance: float) -> None:
    wave = tones(1.0, 48000, channels=2)
    kind = "OGG" if name.endswith("opus") else None
    soundfile.write(tmp_path / name, wave, 48000, subtype=subtype, format=kind)
    read, rate = read_audio(tmp_path / name)
    assert rate == 48000
    assert read.shape[0] == 2
    n = min(read.shape[1], len(wave))
    assert abs(read.shape[1] - len(wave)) <= 2400  # MP3 may be padded by a frame or two
    error = (read[:, :n] - torch.from_numpy(wave[:n].T)).abs()
    if name.endswith("mp3"):  # the encoder's delay moves it; the level stays
        assert read.std() == pytest.approx(float(wave.std()), rel=0.05)
    else:
        assert float(error.max()) <= tolerance


def test_surround_is_mixed_so_that_nothing_clips() -> None:
    full = torch.ones(6, 10)
    assert torch.allclose(downmix(full, 2), torch.ones(2, 10))
    only_left = torch.zeros(6, 4)
    only_left[0] = 1
    mixed = downmix(only_left, 2)
    assert mixed[0, 0] == pytest.approx(1 / (1 + 2 * 2**-0.5), rel=1e-6)
    assert float(mixed[1].abs().max()) == 0
    assert (
        float(downmix(torch.eye(6)[3:4].T.expand(6, 4).clone() * 0 + torch.eye(6)[3][:, None], 2).abs().max()) == 0
    )  # LFE
    assert downmix(torch.tensor([[1.0], [0.0]]), 1).item() == 0.5
    assert downmix(torch.ones(1, 3), 2).shape == (2, 3)


def test_all_values_of_16_bits_are_written_as_they_are_read(tmp_path: Path) -> None:
    values = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", values, 8000)
    write_audio(tmp_path / "b.wav", read_audio(tmp_path / "a.wav")[0], 8000)
    assert np.array_equal(soundfile.read(tmp_path / "b.wav", dtype="int16")[0], values)
    write_audio(tmp_path / "c.wav", torch.tensor([[2.0, 1.0, -1.0, -2.0]]), 8000)
    assert soundfile.read(tmp_path / "c.wav", dtype="int16")[0].tolist() == [32767, 32767, -32768, -32768]


@pytest.mark.parametrize("layout", ["3.0", "5.0", "5.1"])
def test_ogg_files_have_their_channels_at_the_same_places(tmp_path: Path, layout: str) -> None:
    """Each channel has its own pitch. Stereo of Vorbis and Opus is that of FLAC; Opus has no 3.0 in ffmpeg's encoder."""
    n = sum(map(int, layout.split(".")))
    time = np.arange(48000) / 48000
    sound = 0.1 * np.sin(2 * np.pi * np.outer(time, 300 * np.arange(1, n + 1)))
    soundfile.write(tmp_path / "raw.wav", sound, 48000)
    found = {}
    for name, codec in (("a.flac", "flac"), ("a.ogg", "libvorbis"), ("a.opus", "libopus")):
        options = ("-af", f"aformat=channel_layouts={layout}", "-c:a", codec, "-b:a", "512k")
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-guess_layout_max",
            "0",
            "-channel_layout",
            layout,
            "-i",
            tmp_path / "raw.wav",
        ]
        subprocess.run(
            [*command, *options, *(("-mapping_family", "1") if codec == "libopus" else ()), tmp_path / name], check=True
        )
        found[name] = read_audio(tmp_path / name, None, 2)[0][:, 12000:36000]
    expected = np.abs(np.fft.rfft(found["a.flac"].numpy()))[:, 150 : 150 * n + 1 : 150]
    for name in ("a.ogg", "a.opus"):
        spectrum = np.abs(np.fft.rfft(found[name].numpy()))[:, 150 : 150 * n + 1 : 150]
        assert np.allclose(spectrum, expected, atol=0.1 * expected.max()), name


@pytest.mark.parametrize("rate", [1000, 8000, 8363, 22255, 44099, 44100, 48001, 96001, 768000])
def test_resampling_keeps_pitch_level_and_length(rate: int) -> None:
    t = torch.arange(rate) / rate
    out = resample(torch.sin(2 * torch.pi * 440 * t)[None], rate, 24000)
    assert out.shape[-1] == 24000
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(24000) / 24000)
    edge = max(500, 100 * 24000 // rate)  # as long as the filter
    assert float((out[0] - expected)[edge:-edge].abs().max()) < 2e-3


def test_a_file_of_any_rate_is_read_in_little_memory(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(20, 44099), 44099)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waveform, _ = read_audio(tmp_path / "a.wav", 44100)
    assert waveform.shape == (1, -(-20 * 44099 * 44100 // 44099))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("rate", [1, 999, 768001])
def test_a_rate_that_audio_does_not_have_is_named(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tones(1, 8000), rate)
    for read in (read_audio, audio_info):
        with pytest.raises(ValueError, match=rf"a\.wav: sample rate: expected .* 1000 to 768000 Hz, found {rate}$"):
            read(tmp_path / "a.wav")


def test_part_of_a_file_equals_the_same_part_of_the_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", tones(3, 22050), 22050)
    whole, _ = read_audio(tmp_path / "a.flac")
    part, _ = read_audio(tmp_path / "a.flac", start=7000, n_samples=5000)
    assert torch.equal(part, whole[:, 7000:12000])


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.mp3", "MPEG_LAYER_III"), ("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("a.wav", "GSM610"), ("a.au", "G721_32")],
)
def test_blocks_and_parts_of_any_format_are_those_of_the_whole(tmp_path: Path, name: str, subtype: str) -> None:
    """MP3 and Vorbis are not exact where a decoder begins, and others can only be decoded from the beginning."""
    path, rate = tmp_path / name, 44100 if name in {"a.mp3", "a.ogg"} else 8000
    channels = 1 if subtype in {"GSM610", "G721_32"} else 2
    soundfile.write(path, tones(12, rate, channels=channels), rate, subtype, format="OGG" if name == "a.opus" else None)
    with open_audio(path) as file:
        at_once = torch.from_numpy(file.read(12 * rate + 5000, dtype="float32", always_2d=True).T)
    whole, _ = read_audio(path)
    assert torch.equal(whole, at_once)
    assert float(whole.std()) > 0.02
    n_samples = whole.shape[1]
    for start in (1, 5000, n_samples // 6, n_samples // 2 + 1, n_samples - 2000):
        part, _ = read_audio(path, start=start, n_samples=1500)
        assert float((part - whole[:, start : start + 1500]).abs().max()) < 1e-4


def test_real_music_is_read_at_the_asked_rate() -> None:
    info = audio_info(TRACK)
    waveform, rate = read_audio(TRACK, 24000, 1)
    assert rate == 24000
    assert waveform.shape == (1, -(-info.samples * 24000 // info.sample_rate))
    assert 0.02 < float(waveform.std()) < 0.5


def bad_file(folder: Path, kind: str) -> Path:
    wave = tones(3, 44100)
    path = folder / "bad.wav"
    if kind == "text":
        path.write_text("this is not audio\n" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "nan":
        wave[1000] = np.nan
        soundfile.write(path, wave, 44100, subtype="FLOAT")
    elif kind == "truncated flac":
        path = folder / "bad.flac"
        soundfile.write(path, wave, 44100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind in {"truncated wav", "truncated aiff"}:
        path = folder / f"bad.{kind[10:]}"
        soundfile.write(path, wave, 44100)
        path.write_bytes(path.read_bytes()[:-2])
    elif kind == "truncated mp3":
        path = folder / "bad.mp3"
        soundfile.write(path, wave, 44100)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "noise bytes":
        path = folder / "bad.ogg"
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


@pytest.mark.parametrize(("kind", "message"), [
    ("text", "not audio.*: it is a text file"), ("empty", "empty file"), ("nan", "not finite"), ("truncated flac", "truncated"),
    ("truncated wav", "truncated"), ("truncated aiff", "truncated"),
    ("truncated mp3", "bad.mp3"), ("noise bytes", "not audio"),
])  # fmt: skip
def test_bad_files_are_one_readable_error(tmp_path: Path, kind: str, message: str) -> None:
    path = bad_file(tmp_path, kind)
    with pytest.raises(ValueError, match=message) as error:
        read_audio(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unknown", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00"])
def test_a_wav_from_a_pipe_that_did_not_know_its_length_is_read(tmp_path: Path, unknown: bytes) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tones(1, 8000), 8000)
    content = path.read_bytes()
    path.write_bytes(content[:4] + unknown + content[8:40] + b"\xff\xff\xff\xff" + content[44:])
    assert read_audio(path)[0].shape == (1, 8000)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_has_its_samples_to_the_last(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_audio(path, torch.from_numpy(tones(2, 8000).T), 8000)
    assert has_samples(path, 16000)
    assert not has_samples(path, 15999)
    assert not has_samples(path, 16001)
    content = path.read_bytes()
    for n in (len(content) - 2000, len(content) // 2, 50, 0):
        path.write_bytes(content[:n])
        assert not has_samples(path, 16000)


COMPRESSED = [("ogg", "VORBIS"), ("opus", "OPUS"), ("mp3", "MPEG_LAYER_III")]


@pytest.mark.parametrize(("kind", "subtype"), COMPRESSED)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.95])
def test_a_compressed_file_that_ends_early_is_named(tmp_path: Path, kind: str, subtype: str, share: float) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tones(8, 48000), 48000, subtype=subtype, format="MP3" if kind == "mp3" else "OGG")
    whole = path.read_bytes()
    pages = [i for i in range(len(whole)) if whole.startswith(b"OggS", i)]
    for end in {int(share * len(whole)), *([pages[int(share * len(pages))]] if pages else [])}:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=rf"a\.{kind}: truncated") as error:
            read_audio(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    assert read_audio(path, n_samples=1000)[0].shape == (1, 1000)
    assert abs(read_audio(path)[0].shape[1] - 8 * 48000) < 2400


@pytest.mark.parametrize(("kind", "subtype"), [("flac", "PCM_16"), ("wav", "PCM_16"), ("aiff", "PCM_16"), *COMPRESSED])
def test_joined_files_are_not_read_to_the_first_end(tmp_path: Path, kind: str, subtype: str) -> None:
    parts = []
    for seed, rate in ((1, 48000), (2, 44100)):
        path, form = tmp_path / f"{seed}.{kind}", {"opus": "OGG", "ogg": "OGG"}.get(kind)
        soundfile.write(path, tones(3, 48000, seed=seed), 48000 if kind == "opus" else rate, subtype, format=form)
        parts.append(path.read_bytes())
    for second in parts:
        (tmp_path / f"a.{kind}").write_bytes(parts[0] + second)
        with pytest.raises(ValueError, match=r"joined into one|chained Ogg|holds more than it says"):
            read_audio(tmp_path / f"a.{kind}")


def test_an_mp3_without_or_with_a_wrong_number_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, tones(8, 44100), 44100, bitrate_mode="CONSTANT", compression_level=0.5)
    whole = path.read_bytes()
    place = max(whole.find(b"Info"), whole.find(b"Xing")) + 8
    n_frames = int.from_bytes(whole[place : place + 4], "big")
    for wrong in (n_frames // 3, 3 * n_frames):
        path.write_bytes(whole[:place] + wrong.to_bytes(4, "big") + whole[place + 4 :])
        with pytest.raises(ValueError, match=f"the header says {wrong} frames, {n_frames} are there"):
            read_audio(path)
    size = whole.find(whole[:2], place)  # without the first frame, which has the header
    path.write_bytes(whole[size:] + b"TAG" + bytes(125))
    assert abs(read_audio(path)[0].shape[1] - 8 * 44100) < 5 * 1152
    path.write_bytes(whole[size : len(whole) // 2])
    with pytest.raises(ValueError, match="truncated in the middle of its last frame"):
        read_audio(path)
    soundfile.write(path, tones(8, 44100), 44100)  # variable bit rate: without the header its length is a guess
    whole = path.read_bytes()
    path.write_bytes(whole[whole.find(whole[:2], 100) :])
    with pytest.raises(ValueError, match=r"a\.mp3: damaged or joined: of \d+ samples, \d+ can be read"):
        read_audio(path)


@pytest.mark.parametrize("declared", [36 + 1_000_000, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_over_4_gigabytes_is_named(tmp_path: Path, declared: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(100), 48000, subtype="PCM_16")
    header = bytearray(path.read_bytes()[:44])
    header[4:8], header[40:44] = declared.to_bytes(4, "little"), (declared - 36).to_bytes(4, "little")
    path.write_bytes(header)
    os.truncate(path, 44 + (1 << 32) + 1_000_000)  # takes no space
    with pytest.raises(ValueError, match=r"holds more than it says: .* FLAC, RF64 or W64 if it is over 4 GB"):
        check_whole(path, 500_000)


def test_tags_behind_the_audio_are_not_audio(tmp_path: Path) -> None:
    for name, tag in (("a.wav", b"ID3" + bytes(100_000)), ("a.wav", b"xyz"), ("a.flac", bytes(128)), ("a.ogg", b"TAG")):
        soundfile.write(tmp_path / name, tones(1, 8000), 8000)
        with (tmp_path / name).open("ab") as file:
            file.write(tag)
        assert read_audio(tmp_path / name)[0].shape == (1, 8000)


@pytest.mark.parametrize(("kind", "order", "name"), [("wav", "little", b"data"), ("aiff", "big", b"SSND")])
def test_a_second_part_with_audio_is_named(
    tmp_path: Path, kind: str, order: Literal["little", "big"], name: bytes
) -> None:
    path = tmp_path / f"a.{kind}"
    soundfile.write(path, tones(1, 8000), 8000, "PCM_16")
    whole = path.read_bytes()
    chunk = whole[whole.index(name) :]
    both = whole + chunk
    path.write_bytes(both[:4] + (len(both) - 8).to_bytes(4, order) + both[8:])
    with pytest.raises(ValueError, match=rf"a\.{kind}: has 2 parts with audio"):
        read_audio(path)


@pytest.mark.parametrize("scale", [32767, 1e30])
def test_a_file_of_numbers_far_above_full_scale_is_refused(tmp_path: Path, scale: float) -> None:
    """PCM that was written as floating-point numbers and not divided."""
    soundfile.write(tmp_path / "a.wav", scale * tones(2, 8000), 8000, "FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav: expected samples in \[-1, 1\], found .*; divide them by"):
        read_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "a.wav", 4 * tones(2, 8000), 8000, "FLOAT")  # 12 dB too loud is still audio
    assert float(read_audio(tmp_path / "a.wav")[0].abs().max()) == pytest.approx(1.2)


def test_missing_file_and_folder() -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_audio("/nowhere/at-all.wav")
    with pytest.raises(ValueError, match="found a folder"):
        read_audio("/tmp")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    wave = torch.from_numpy(tones(0.5, 24000, channels=2).T.copy())
    wave[:, 0] = 3.0  # clips
    write_audio(tmp_path / f"a{suffix}", wave, 24000)
    read, rate = read_audio(tmp_path / f"a{suffix}")
    assert rate == 24000
    assert read.shape == wave.shape
    assert float((read - wave.clamp(-1, 1)).abs().max()) < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]  # no temporary file stays


def test_a_pipe_gets_a_wav_header_and_each_piece_at_once(tmp_path: Path) -> None:
    waveform = torch.from_numpy(tones(0.5, 24000, channels=2).T.copy())
    write_audio(tmp_path / "a.wav", waveform, 24000)
    with (tmp_path / "pipe.wav").open("wb") as file, AudioWriter(file, 24000, 2, n_samples=12000) as pipe:
        for end in (5000, 12000):
            pipe.write(waveform[:, pipe.n_samples : end])
            assert (tmp_path / "pipe.wav").stat().st_size == 44 + 4 * end
    whole, pieces = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("a.wav", "pipe.wav"))
    assert np.array_equal(whole, pieces)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as file, pytest.raises(ValueError, match="that reads it has stopped"):
        AudioWriter(file, 24000, 2, n_samples=12000).__enter__()


def test_writing_where_one_cannot_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.wav, \.flac, \.opus, \.mp3, \.ogg, found \.aac"):
        write_audio(tmp_path / "a.aac", torch.zeros(1, 10), 8000)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write there"):
        write_audio(tmp_path / "file" / "a.wav", torch.zeros(1, 10), 8000)


needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def by_ffmpeg(path: Path) -> torch.Tensor:
    """ffmpeg's own samples of a stereo file, [2, n]."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-f", "f32le", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return torch.from_numpy(np.frombuffer(raw, "<f4").reshape(-1, 2).T.copy())


def encoded(path: Path, *options: str) -> Path:
    """A track of samples/ in another form."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", TRACK, "-t", "4", *options, path], check=True)
    return path


@needs_ffmpeg
def test_an_opus_file_that_soundfile_refuses_in_the_middle_is_read_to_its_end(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.opus", "-c:a", "libopus", "-b:a", "510k", "-vbr", "off")
    with pytest.raises(soundfile.LibsndfileError, match="malformed"):
        list(soundfile.blocks(path, 65536))
    expected = by_ffmpeg(path)
    read, rate = read_audio(path)
    assert (rate, read.shape) == (48000, expected.shape)
    assert float((read - expected).abs().max()) < 1e-3  # two decoders; a shift by one sample would show
    assert float((read[:, 1:] - expected[:, :-1]).abs().max()) > 0.02
    middle = expected.shape[1] - 40000
    part, _ = read_audio(path, start=middle, n_samples=30000)
    assert float((part - expected[:, middle : middle + 30000]).abs().max()) < 1e-3


@needs_ffmpeg
@pytest.mark.parametrize(("name", "options"), [
    ("a.m4a", ("-c:a", "aac")), ("a.aac", ("-c:a", "aac")), ("a.wma", ("-c:a", "wmav2")), ("a.webm", ("-c:a", "copy")),
])  # fmt: skip
def test_what_only_ffmpeg_knows_has_ffmpegs_own_samples(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    path = encoded(tmp_path / name, *options)
    expected = by_ffmpeg(path)
    read, rate = read_audio(path)
    assert rate == 48000
    assert torch.equal(read, expected)
    assert torch.equal(read_audio(path, start=70001, n_samples=70000)[0], expected[:, 70001:140001])
    info = audio_info(path)
    assert (info.channels, info.sample_rate) == (2, 48000)
    assert info.samples == pytest.approx(expected.shape[1], rel=0.05)


@needs_ffmpeg
@pytest.mark.parametrize(("name", "options"), [
    ("a.m4a", ("-c:a", "aac", "-movflags", "+faststart")), ("a.wv", ("-c:a", "wavpack")), ("a.webm", ("-c:a", "copy")),
])  # fmt: skip
def test_a_part_far_into_a_file_is_at_its_place(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    """Where ffmpeg seeks, it does not decode what is before the part."""
    path = tmp_path / name
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", "-stream_loop", "9", "-i", TRACK, "-t", "40", *options, path], check=True
    )
    expected = by_ffmpeg(path)
    for start in (0, 48000, 48000 * 2 - 1, 48000 * 30 + 17):
        part = read_audio(path, start=start, n_samples=30000)[0]
        # AAC draws noise, whose place is not exact.
        assert float((part - expected[:, start : start + 30000]).abs().max()) < 1e-3
        assert float((part - expected[:, start + 1 : start + 30001]).abs().max()) > 0.005
    end, whole = expected.shape[1], read_audio(path, start=48000 * 39)[0]
    assert whole.shape[1] == end - 48000 * 39
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match=r"truncated|damaged"):
        read_audio(path, start=48000 * 38, n_samples=30000)


@needs_ffmpeg
@pytest.mark.parametrize(("name", "options"), [
    ("a.m4a", ("-c:a", "aac", "-movflags", "+faststart")), ("a.aac", ("-c:a", "aac")), ("a.webm", ("-c:a", "copy")),
])  # fmt: skip
def test_what_only_ffmpeg_knows_is_refused_if_truncated(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    path = encoded(tmp_path / name, *options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ValueError, match="truncated") as error:
        read_audio(path)
    assert "\n" not in str(error.value)


def test_without_ffmpeg_the_message_says_that_it_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = bad_file(tmp_path, "text")
    for read in (read_audio, audio_info):
        with pytest.raises(ValueError, match=r"bad\.wav: not audio .*; if it plays elsewhere, install ffmpeg"):
            read(path)


@needs_ffmpeg
def test_a_playlist_under_another_name_reaches_no_server(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        path.write_text(f"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:{server.getsockname()[1]}/a.mp3\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match=r"a\.m4a: "):
            read_audio(path)
        with pytest.raises(TimeoutError):
            server.accept()
