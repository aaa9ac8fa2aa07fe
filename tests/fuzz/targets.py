"""What is fuzzed: for each kind of file, good ones, the damage, and what a user does with the result.

`attempt` returns if the file was used, and raises ValueError if it was refused. It raises `Wrong` if damage was used
without a word.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
import safetensors.torch
import soundfile
import torch
from mutations import Random, cut, damage, damaged_json, json_bytes, mistype, twice, twist

from audiovq import Codes, Generator, Tokenizer
from audiovq.data.audio import read_audio
from audiovq.data.data_config import DataConfig
from audiovq.data.notes import chord_frames, requested_frames
from audiovq.data.shards import Shards, ShardWriter
from audiovq.data.tracks import Scan, Track, scan
from audiovq.recipe import load_recipe
from audiovq.studio.requests import Limits
from audiovq.studio.sounds import read_codes, read_recording
from audiovq.training.logs import read_steps

ROOT = Path(__file__).parent.parent.parent
RUN = ROOT / "tests" / "fixtures" / "v0_1" / "run"
FORMATS = [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("opus", "OPUS"),
           ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16")]  # fmt: skip


class Wrong(Exception):
    """Something else than what was written came out, and nothing was said."""


@dataclass
class Case:
    """One damaged input: `attempt` uses it."""

    what: str
    attempt: Callable[[], object]


def tune(seconds: float, rate: int = 8000) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 220 * t) + 0.1 * np.sin(2 * np.pi * 330 * t) * np.exp(-t)).astype(np.float32)


def change_file(path: Path, change: Callable[[bytes, Random], bytes], random: Random) -> None:
    path.write_bytes(change(path.read_bytes(), random))


def pick(folder: Path, random: Random, pattern: str = "*") -> Path:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    return files[random.integers(len(files))]


def audio(folder: Path, random: Random) -> Case:
    kind, subtype = FORMATS[random.integers(len(FORMATS))]
    odd_rate = int(random.choice([1, 1000, 8363, 44099, 48001, 900_000]))
    rate = odd_rate if kind in {"wav", "aiff"} else 48000
    path, waveform = folder / f"a.{kind}", tune(3.0, 48000)
    container = {"ogg": "OGG", "opus": "OGG"}.get(kind, kind.upper())
    soundfile.write(path, waveform, rate, subtype=subtype, format=container)
    whole = len(path.read_bytes())
    change = [cut, damage, twice][random.choice(3, p=[0.3, 0.6, 0.1])]
    change_file(path, change, random)
    seconds = 3.0 * 48000 / rate

    def attempt() -> None:
        found, _ = read_audio(path, 16000, 1)
        missing = 1 - found.shape[-1] / (seconds * 16000)
        if change is cut and missing > 0.1 and path.stat().st_size < 0.9 * whole:
            raise Wrong(f"{kind}: {missing:.0%} of the audio is missing")
        if change is twice and missing > -0.9:
            raise Wrong(f"{kind}: the second of two joined recordings is missing")

    return Case(f"{kind} {change.__name__}", attempt)


def labels(folder: Path, random: Random) -> Case:
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", tune(1.0) * (1.0 if name == "a" else 0.5), 8000)
    (folder / "track.json").write_bytes(json_bytes({"genre": "folk", "year": 1999}))
    (folder / "a.json").write_bytes(json_bytes({"artist": "x", "split": "train"}))
    (folder / "a.txt").write_text("some words")
    (folder / "list.jsonl").write_text('{"path": "a.wav", "mood": "calm"}\n{"path": "b.wav", "mood": "wild"}\n')
    path = folder / ["track.json", "a.json", "a.txt", "list.jsonl"][random.integers(4)]
    if path.suffix == ".json" and random.random() < 0.2:
        path.write_bytes(b"[" * 200_000)
    else:
        change_file(path, damaged_json if path.suffix == ".json" else damage, random)
    config = DataConfig(folder=str(folder), min_seconds=0.1, manifest="list.jsonl")

    def attempt() -> None:
        found = scan(folder, config)
        found.save(folder / "scan")
        if Scan.load(folder / "scan").tracks != found.tracks:
            raise Wrong("the saved scan has other tracks")

    return Case(path.name, attempt)


def codes(folder: Path, random: Random) -> Case:
    rng = np.random.default_rng(0)
    levels = [torch.from_numpy(rng.integers(0, 16, 4000 // hop)) for hop in (200, 100)]
    good = Codes(levels, 4000, 8000, [200, 100], 16, 1, "0" * 64)
    path = folder / "a.codes"
    good.save(path, compress=bool(random.integers(2)))
    if random.random() < 0.3:  # a header that somebody made
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["audiovq"])
        metadata = {"audiovq": json.dumps(twist(header, random)).encode(errors="replace").decode()}
        safetensors.torch.save_file(tensors, path, metadata)
        return Case("header", lambda: Codes.load(path).seconds)
    change_file(path, damage, random)

    def attempt() -> None:
        found = Codes.load(path)
        if len(found.levels) != 2 or any(not torch.equal(a, b) for a, b in zip(found.levels, levels, strict=True)):
            raise Wrong("other codes than were saved")

    return Case("codes", attempt)


def shards(folder: Path, random: Random) -> Case:
    place = folder / "codes"
    old = Shards(RUN / "codes")  # without checksums
    writer = ShardWriter(place, dataclasses.replace(old.index, n_shards=0))
    for row in old.index.tracks:
        levels = [torch.from_numpy(old.codes(row, level)) for level in range(len(row.lengths))]
        layout = old.index.sample_rate, old.index.hop_lengths, old.index.codebook_size
        track = Track(row.path, row.sha256, layout[0], 1, row.n_samples, row.split, row.labels)
        extras = [old.frames(row, kind) for kind in old.index.extras]
        writer.add(track, Codes(levels, row.n_samples, *layout, 1, old.index.tokenizer_hash), *extras)
    writer.finish()
    expected = _all_codes(Shards(place))
    path = pick(place, random)
    if random.random() < 0.3:  # a stranger's: without checksums any codes may be meant
        content = json.loads((place / "index.json").read_text())
        content["crc32"].pop("index.json")
        content = twist(content | {"blocks": {}}, random)
        (place / "index.json").write_bytes(json_bytes(content))
        return Case("index of a stranger", lambda: _all_codes(Shards(place)))
    if path.suffix == ".json":
        change_file(path, damaged_json, random)
    elif path.suffix == ".npy" and random.random() < 0.3:  # a header that somebody made
        data = path.read_bytes()
        path.write_bytes(data[:8] + damage(data[8:120], random) + data[120:])
    else:
        change_file(path, damage, random)

    def attempt() -> None:
        found = _all_codes(Shards(place))
        if found != expected:
            raise Wrong(f"{path.name}: other codes than were written")

    return Case(path.name, attempt)


def _all_codes(opened: Shards) -> list[bytes]:
    n_levels = len(opened.index.hop_lengths)
    return [opened.codes(track, level).tobytes() for track in opened.index.tracks for level in range(n_levels)]


def model(folder: Path, random: Random) -> Case:
    for part in [*sorted(RUN.glob("prior-*")), RUN / "tokenizer"]:
        shutil.copytree(part, folder / part.name)
    path = pick(folder, random)
    if path.suffix == ".json":
        change_file(path, damaged_json, random)
    elif random.random() < 0.3:  # numbers that are not finite, with good checksums
        tensors = safetensors.torch.load_file(path)
        name = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())[0]
        tensors[name].view(-1)[0] = float("nan")
        safetensors.torch.save_file(tensors, path)
        (path.parent / "sha256.json").unlink(missing_ok=True)
    else:
        change_file(path, damage, random)
    twisted = path.suffix == ".json"
    expected = _music(RUN)

    def attempt() -> None:
        found = _music(folder)
        if found != expected and not twisted:
            raise Wrong(f"{path.relative_to(folder)}: other music than the model's")

    return Case(str(path.relative_to(folder)), attempt)


def _music(place: Path) -> bytes:
    return Generator.from_pretrained(place).sample(0.3, seed=1).numpy().tobytes()


ADDED = (
    "seed: 1\nseed: 2", "x: &x [*x]", "x: !!timestamp zz", "x: !!bool zz", "x: !!set {a}", "name: '\\x07'", "seed: 1:30", "? [a]\n: b",
    "tokenizer: {crop_seconds: 1e308}", "tokenizer: {model: {dim: 100000000}}", "samples: {n: 99999999}", "data: {folder: ~}",
    "tokenizer: {losses: {mel_windows: [-1]}}", "name: ../../x", "extends: mine.yaml", "null: 1", "x: \x07", "<<: 1", "x: !!binary é",
)  # fmt: skip


def recipe(folder: Path, random: Random) -> Case:
    names = sorted((ROOT / "recipes").glob("*.yaml"))
    source = names[random.integers(len(names))]
    text = mistype(source.read_text(), random)
    if random.random() < 0.1:  # aliases that grow without end
        text += "\na0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    if random.random() < 0.1:
        text = "a: " + "[" * 50_000
    if random.random() < 0.5:
        text += "\n" + ADDED[random.integers(len(ADDED))]
    path = folder / "mine.yaml"
    path.write_bytes(
        text.encode(errors="surrogatepass")
        if random.random() < 0.9
        else damage(text.encode("utf-8", "replace"), random)
    )
    shutil.copy(ROOT / "recipes" / "base.yaml", folder)
    return Case(source.name, lambda: load_recipe(str(path)))


def upload(folder: Path, random: Random) -> Case:
    tokenizer = Tokenizer.from_pretrained(RUN)
    kind = ["wav", "flac", "ogg", "codes"][random.integers(4)]
    path = folder / f"a.{kind}"
    if kind == "codes":
        tokenizer.encode(torch.from_numpy(tune(1.0)), 8000).save(path)
        change_file(path, damage, random)
    else:
        soundfile.write(path, tune(1.0), 8000)
        if kind == "wav" and random.random() < 0.5:  # a rate that nobody has
            data = bytearray(path.read_bytes())
            data[24:28] = struct.pack("<I", int(10 ** random.uniform(0, 9.6)) % 2**32)
            path.write_bytes(data)
        else:
            change_file(path, damage, random)

    def attempt() -> None:
        limits = Limits(max_seconds=10)
        if kind == "codes":
            read_codes(path, path.name, tokenizer, limits)
        else:
            read_recording(path.rename(folder / f"{'0' * 16}.{kind}"), "a", tokenizer, limits, lambda *_: None)

    return Case(kind, attempt)


def midi(folder: Path, random: Random) -> Case:
    """A MIDI file, or chord symbols."""
    if random.random() < 0.2:
        symbols = damage(b"C G/B Am:4 F#m7 N Bbmaj7/D:0.5", random).decode(errors="replace")
        return Case("chords", lambda: chord_frames(symbols, 0.1))
    file, path = mido.MidiFile(), folder / "a.mid"
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=400_000)])
    file.tracks.append(track)
    for pitch in range(48, 60):
        track += [mido.Message("note_on", note=pitch), mido.Message("note_off", note=pitch, time=240)]
    file.save(path)
    change_file(path, damage, random)
    return Case("midi", lambda: requested_frames(path, 8000, 800))


def logs(folder: Path, random: Random) -> Case:
    """Our own JSON lines: a line that is damaged is left out, and the others are there."""
    rows = [{"step": i, "loss": 1.0 / (i + 1), "seconds": float(i)} for i in range(20)]
    path = folder / ["metrics.jsonl", "health.jsonl"][random.integers(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    change_file(path, damage, random)
    return Case(path.name, lambda: read_steps(path))


TARGETS = {
    "audio": audio, "labels": labels, "codes": codes, "shards": shards, "model": model, "recipe": recipe,
    "upload": upload, "logs": logs, "midi": midi,
}  # fmt: skip
