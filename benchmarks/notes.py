"""Are the notes heard that were asked for? Pieces with given chords or melodies, judged by transcription (basic-pitch).

    python benchmarks/notes.py runs/mine --music music/chorales/piano   # 8 pieces a way, at the guidance of the recipe
    python benchmarks/notes.py runs/mine --guidance 1 2 4 --pieces 16   # chords alone

Of the pitch classes asked for at the time of each code of level 0, the share that is heard (recall), and of those heard
the share that was asked for (precision), by chords (`--chords`), and with --music by the MIDI files beside its held-out
recordings (`"split": "valid"` in their JSON files; else all). Beside each: chance, what is heard in the piece against
what was asked for in the next one; and for recordings their own figures, as they are and through the tokenizer, which
are the most that this judge can find. Done is a recall of 90 % for chords.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from torch import Tensor

from audiovq import Generator
from audiovq.data.audio import SUFFIXES, read_audio
from audiovq.data.notes import MIDI_SUFFIXES, N_CLASSES, chord_frames, note_frames, requested_frames
from audiovq.evaluation.notes import check_installed, transcribe

PROGRESSIONS = (
    "C G/B Am F", "Am F C G", "Dm7 G7 Cmaj7 Am7", "Em C G D", "F C/E Dm Bb", "Gm Eb Bb F/A", "A E F#m D", "Bm G D A",
)  # fmt: skip
DONE = 0.9


def sounding(frames: np.ndarray) -> np.ndarray:
    """The pitch classes of frames, bool [n_frames, 12]."""
    return (frames[:, None] >> np.arange(N_CLASSES) & 1).astype(bool)


def heard(waveform: Tensor, rate: int, hop: int) -> np.ndarray:
    """The pitch classes that are transcribed at each code of level 0, bool [n_frames, 12]."""
    notes, _ = transcribe(waveform, rate)
    rows = [(start, end, round(pitch)) for start, end, pitch in notes.tolist()]
    return sounding(note_frames(rows, hop / rate, -(-waveform.shape[-1] // hop)))


def score(found: list[np.ndarray], asked: list[np.ndarray]) -> tuple[float, float]:
    """Recall and precision over all frames of all pieces."""
    pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(found, asked, strict=True)]
    both = sum(int((a & b).sum()) for a, b in pairs)
    n_found, n_asked = (sum(int(pair[i].sum()) for pair in pairs) for i in (0, 1))
    return both / max(n_asked, 1), both / max(n_found, 1)


def with_midi(folder: Path, n: int) -> list[tuple[Path, Path]]:
    """The first held-out recordings below a folder that have a MIDI file, with it."""
    pairs = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        midi = next((found for suffix in MIDI_SUFFIXES if (found := path.with_suffix(suffix)).is_file()), None)
        labels = path.with_suffix(".json")
        split = json.loads(labels.read_text()).get("split", "valid") if labels.is_file() else "valid"
        if midi and split == "valid":
            pairs.append((path, midi))
    if not pairs:
        raise SystemExit(f"{folder}: expected recordings with MIDI files of their names, found none")
    return pairs[:n]


def row(name: str, found: list[np.ndarray], asked: list[np.ndarray]) -> dict[str, float | str]:
    (recall, precision), (by_chance, _) = score(found, asked), score(found, asked[1:] + asked[:1])
    print(f"| {name} | {recall:.1%} | {precision:.1%} | {by_chance:.1%} |", flush=True)
    return {"name": name, "recall": recall, "precision": precision, "chance": by_chance}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--music", type=Path, help="recordings with MIDI files beside them")
    parser.add_argument("--guidance", type=float, nargs="*", default=[], help="default: the model's")
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=16.0)
    parser.add_argument("--label", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    options = parser.parse_args()
    check_installed()
    generator = Generator.from_pretrained(options.model)
    rate, hop, seconds = generator.sample_rate, generator.hop_lengths[0], options.seconds
    n_frames = -(-generator.n_samples(seconds) // hop)
    labels, rows = dict(label.split("=", 1) for label in options.label), []
    wanted: dict[str, list[np.ndarray]] = {"chords": []}
    for i in range(options.pieces):
        wanted["chords"].append(np.resize(chord_frames(PROGRESSIONS[i % len(PROGRESSIONS)], hop / rate), n_frames))
    print("| pitch classes | recall | precision | recall by chance |\n|---|---|---|---|")
    if options.music:
        pairs = with_midi(options.music, options.pieces)
        wanted["MIDI files"] = [requested_frames(midi, rate, hop)[:n_frames] for _, midi in pairs]
        asked = [sounding(frames) for frames in wanted["MIDI files"]]
        waves = [read_audio(path, rate, generator.tokenizer.config.channels)[0] for path, _ in pairs]
        waves = [wave[:, : n_frames * hop] for wave in waves]
        rows.append(row("recordings", [heard(wave, rate, hop) for wave in waves], asked))
        again = [generator.tokenizer.decode(generator.tokenizer.encode(wave, rate)) for wave in waves]
        rows.append(row("recordings, through the tokenizer", [heard(wave, rate, hop) for wave in again], asked))
    for way, frames in wanted.items():
        asked = [sounding(piece) for piece in frames]
        for guidance in options.guidance or [None]:
            found = []
            for i, piece in enumerate(frames):
                music = generator.sample(seconds, seed=i, notes=piece, guidance=guidance, labels=labels)[0]
                found.append(heard(music, rate, hop))
            rows.append(row(f"{way}, guidance {guidance or 'as trained'}", found, asked))
    best = max(float(r["recall"]) for r in rows if str(r["name"]).startswith("chords"))
    print(f"\nchords: {best:.1%} heard; {'done' if best >= DONE else f'{DONE:.0%} is the aim'}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
