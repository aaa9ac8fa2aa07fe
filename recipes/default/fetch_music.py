"""Download and render the training music of the bundled model, the same way on every Debian or Ubuntu machine.

    sudo apt-get install ffmpeg fluidsynth fluid-soundfont-gm && pip install music21 mido
    python recipes/default/fetch_music.py music

music/wide/      recordings from freely licensed games in Debian's packages: all files of 30 seconds or more, as mono FLAC
music/chorales/  Bach's four-part chorales (scores from music21's corpus), rendered by FluidSynth; one folder per timbre

Each audio file has a JSON file with its labels, as `audiovq train` reads them, and its split: by file in wide/, by tune in
chorales/. The notes of a chorale are in a MIDI file beside it, which is written for earlier renderings, too. Packages have
their licences, and CARD.md has hours and credits. What exists is not made again.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import mido
import music21
import mutagen
import numpy as np
import soundfile

SAMPLE_RATE = 44100
MIN_SECONDS = 30.0
VALID_FRACTION = 0.08

# Debian package -> style, licence. Packages with which tokenizers are evaluated are not among them.
PACKAGES = {
    "0ad-data": ("orchestral", "CC-BY-SA-3.0"),
    "wesnoth-1.16-music": ("orchestral", "GPL-2+"),
    "ufoai-music": ("electronic", "GPL-2, GPL-2+, CC-BY-3.0, CC-BY-SA-3.0 or public domain, a file"),
    "widelands-data": ("folk", "GPL-2+, some CC-BY-SA-3.0"),
    "hedgewars-data": ("mixed", "GPL-2"),
    "supertux-data": ("chip", "GPL-2+"),
    "nexuiz-music": ("electronic", "GPL-2+"),
}
SUFFIXES = {".ogg", ".oga", ".opus", ".mp3", ".flac", ".wav"}
NOT_MUSIC = ("voice", "speech", "sfx", "effect", "ambien", "sounds/", "guitar.ogg", "drums.ogg", "rhythm.ogg")

# General MIDI programs, one folder per timbre; in `many`, each voice of a chorale has a random one. The harp of
# samples/chorales is not among them, so that it shows how well the tokenizer generalises to other instruments.
TIMBRES = {"piano": (0,), "organ": (19,), "harpsichord": (6,), "guitar": (24,), "strings": (48,), "choir": (52,),
    "flute": (73,), "many": (
    0, 4, 6, 9, 11, 12, 16, 19, 21, 22, 24, 25, 26, 28, 40, 41, 42, 45, 48, 52, 54, 56, 57, 60, 61, 64, 66, 68, 70, 71, 73, 75,
    79, 80, 81, 88, 89, 104, 106, 107)}  # fmt: skip
TEMPI = ("slow", "medium", "fast")  # 72 to 82, 83 to 93 and 94 to 104 quarters a minute
SOUND_FONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command; click.ClickException with the last line of its output if it fails."""
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no output"])[-1]
        raise click.ClickException(f"{command[0]} failed: {last}")


# --- recordings -------------------------------------------------------------------------------------------------------


def fetch_package(package: str, folder: Path) -> None:
    """The package's music as mono FLAC with labels and licence in `folder`, which exists only when complete."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{package}.") as place:
        work = Path(place)
        work.chmod(0o755)
        run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
        run("dpkg-deb", "-x", next(work.glob("*.deb")), work / "x")
        for archive in [p for p in (work / "x").rglob("*") if p.suffix.lower() in {".pk3", ".zip"} and p.is_file()]:
            shutil.unpack_archive(archive, f"{archive}.d", "zip")
        out = work / "out"
        out.mkdir()
        for licence in (work / "x").rglob("copyright"):
            shutil.copy(licence, out / "LICENCE")
        sources = [p for p in sorted((work / "x").rglob("*")) if is_music(p, work / "x")]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda path: convert(path, out, package, path.relative_to(work / "x")), sources))
        out.rename(folder)
    click.echo(f"{package}: {len(list(folder.glob('*.flac')))} files", err=True)


def is_music(path: Path, root: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    if any(word in str(path.relative_to(root)).lower() for word in NOT_MUSIC):
        return False
    try:
        file = mutagen.File(path)  # type: ignore[attr-defined]
    except mutagen.MutagenError:  # type: ignore[attr-defined]
        return False
    return file is not None and file.info.length >= MIN_SECONDS


def convert(path: Path, out: Path, package: str, name: Path) -> None:
    target = (
        out / f"{''.join(c if c.isalnum() else '-' for c in str(name.with_suffix('')).lower())[-90:].strip('-')}.flac"
    )
    run("ffmpeg", "-loglevel", "error", "-y", "-threads", "1", "-i", path, "-map", "0:a:0", "-vn", "-ac", "1",
        "-ar", str(SAMPLE_RATE), "-sample_fmt", "s16", target)  # fmt: skip
    tags = mutagen.File(path, easy=True) or {}  # type: ignore[attr-defined]
    credits = {key: tags[key][0] for key in ("artist", "title") if key in tags}
    style, licence = PACKAGES[package]
    labels = {"package": package, "genre": style, "licence": licence, **credits}
    labels["split"] = split_of(f"{package}/{name}")
    target.with_suffix(".json").write_text(json.dumps(labels, ensure_ascii=False, indent=1))


def split_of(key: str) -> str:
    """train or valid, as a function of the name only."""
    return "valid" if int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 16**8 < VALID_FRACTION else "train"


# --- chorales ---------------------------------------------------------------------------------------------------------


@dataclass
class Chorale:
    name: str  # bwv10.7
    mode: str  # major or minor, estimated from the score
    notes: list[tuple[float, float, int, int]]  # start and length in quarters, MIDI pitch, voice (0 soprano … 3 bass)
    tune: str = ""  # name of the first chorale with this melody

    def melody(self) -> list[int]:
        """Intervals of the soprano from quarter to quarter, which do not depend on key and ornaments."""
        soprano = [(b, b + n, p) for b, n, p, voice in self.notes if voice == 0]
        at = [next((p for b, e, p in soprano if b <= q < e), 0) for q in range(16)]
        return [b - a for a, b in itertools.pairwise(at)]


def read_chorales(cache: Path) -> list[Chorale]:
    """All four-part chorales of music21's corpus; parsing takes minutes, so they are cached in a file."""
    if not cache.exists():
        paths = sorted(
            {Path(p).name: p for p in music21.corpus.getComposer("bach") if str(p).endswith(".mxl")}.values()
        )
        with click.progressbar(paths, label="read scores", file=sys.stderr) as bar:
            found = [chorale for path in bar if (chorale := read_chorale(path))]
        cache.write_text(json.dumps([asdict(chorale) for chorale in with_tunes(found)]))
    return [Chorale(**fields) for fields in json.loads(cache.read_text())]


def read_chorale(path: Path) -> Chorale | None:
    score = music21.corpus.parse(str(path))
    if not isinstance(score, music21.stream.Score) or len(score.parts) != 4:
        return None
    notes = []
    for voice, part in enumerate(score.parts):
        for note in part.stripTies().flatten().notes:
            pitches = [p.midi for p in note.pitches]
            notes += [(float(note.offset), float(note.quarterLength), max(pitches), voice)] if pitches else []
    length = max((begin + n for begin, n, _, _ in notes), default=0.0)
    if length < 24:
        return None
    return Chorale(path.stem, score.analyze("key").mode, sorted(notes))


def with_tunes(chorales: list[Chorale]) -> list[Chorale]:
    """Give chorales whose melodies begin alike the same tune, so that no melody is in both splits."""
    melodies = [chorale.melody() for chorale in chorales]
    for i, chorale in enumerate(chorales):
        alike = (j for j in range(i) if difflib.SequenceMatcher(None, melodies[i], melodies[j]).ratio() > 0.75)
        first = next(alike, None)
        chorale.tune = chorale.name if first is None else chorales[first].tune
    return chorales


def render(chorale: Chorale, timbre: str, folder: Path) -> None:
    """Render a chorale in a timbre as mono FLAC with labels; tempo and key are random functions of the name."""
    target, score = folder / f"{chorale.name}.flac", folder / f"{chorale.name}.mid"
    if target.with_suffix(".json").exists() and score.exists():
        return
    drawn = hashlib.sha256(f"{chorale.name}/{timbre}".encode()).digest()
    tempo, shift = 72 + drawn[0] % 33, drawn[1] % 7 - 3
    programs = TIMBRES[timbre]
    write_midi(score, chorale, [programs[byte % len(programs)] for byte in drawn[2:6]], tempo, shift)
    if target.with_suffix(".json").exists():
        return
    with tempfile.TemporaryDirectory() as work:
        wav = Path(work) / "score.wav"
        run("fluidsynth", "-ni", "-g", "0.6", "-r", str(SAMPLE_RATE), "-F", wav, SOUND_FONT, score)
        stereo, _ = soundfile.read(wav, dtype="float32")
    mono = stereo.mean(axis=1)
    loud = np.flatnonzero(np.abs(mono) > 1e-3)
    mono = mono[: loud[-1] + 1] if len(loud) else mono
    fade = np.linspace(1, 0, min(len(mono), SAMPLE_RATE // 2), dtype=np.float32)
    mono[-len(fade) :] *= fade
    soundfile.write(target, mono * (0.7 / np.abs(mono).max()), SAMPLE_RATE, subtype="PCM_16")
    labels = {"timbre": timbre, "mode": chorale.mode, "tempo": TEMPI[(tempo - 72) // 11], "bpm": str(tempo),
              "title": chorale.name, "artist": "J. S. Bach",
              "licence": "composition: public domain; sound font: MIT", "split": split_of(chorale.tune)}  # fmt: skip
    target.with_suffix(".json").write_text(json.dumps(labels, indent=1))


def write_midi(path: Path, chorale: Chorale, programs: list[int], tempo: int, shift: int) -> None:
    file, track = mido.MidiFile(ticks_per_beat=480), mido.MidiTrack()
    file.tracks.append(track)
    track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)))
    track.extend(
        mido.Message("program_change", channel=voice, program=program) for voice, program in enumerate(programs)
    )
    events = []
    for begin, length, pitch, voice in chorale.notes:
        if length < 0.1:  # grace notes would end before they begin, and never stop
            continue
        events.append((round(480 * begin), 1, pitch + shift, voice))
        events.append((round(480 * (begin + length)) - 8, 0, pitch + shift, voice))  # a gap before repeated notes
    now = 0
    for tick, on, pitch, voice in sorted(events):
        kind, velocity = ("note_on", 80) if on else ("note_off", 0)
        track.append(mido.Message(kind, channel=voice, note=pitch, velocity=velocity, time=tick - now))
        now = tick
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(path)


# --- card -------------------------------------------------------------------------------------------------------------


def write_card(folder: Path) -> None:
    """Write CARD.md with hours, licences and credits of all music below `folder`."""
    hours: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    credit: dict[str, set[str]] = defaultdict(set)
    licences: dict[str, str] = {}
    for path in sorted(folder.rglob("*.flac")):
        labels, group = json.loads(path.with_suffix(".json").read_text()), str(path.parent.relative_to(folder))
        info = soundfile.info(path)
        hours[group][labels["split"]] += info.frames / info.samplerate / 3600
        hours[group]["files"] += 1
        licences[group] = labels["licence"]
        credit[group].add(labels.get("artist", ""))
    lines = [
        "# Music\n",
        "| folder | files | hours to train | held out | licence | artists named in the files |",
        "|---|---|---|---|---|---|",
    ]
    for group, count in sorted(hours.items()):
        artists = ", ".join(sorted(name for name in credit[group] if name))
        lines.append(
            f"| {group} | {count['files']:.0f} | {count['train']:.2f} | {count['valid']:.2f} | {licences[group]} | {artists} |"
        )
    total = [sum(count[split] for count in hours.values()) for split in ("train", "valid")]
    lines.append(f"| together | {sum(c['files'] for c in hours.values()):.0f} | {total[0]:.2f} | {total[1]:.2f} | | |")
    (folder / "CARD.md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


def chosen(given: tuple[str, ...], known: Iterable[str], what: str) -> list[str]:
    unknown = [name for name in given if name not in known]
    if unknown:
        raise click.UsageError(f"{what} {unknown[0]}: expected one of {', '.join(known)}")
    return list(given or known)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--package", "packages", multiple=True, help="Only these packages; default all.")
@click.option("--timbre", "timbres", multiple=True, help="Only these timbres; default all.")
@click.option("--only", type=click.Choice(["wide", "chorales"]), help="Leave out the other part.")
def main(folder: Path, packages: tuple[str, ...], timbres: tuple[str, ...], only: str | None) -> None:
    """Fetch, render and label the music of the bundled model below FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    if only != "chorales":
        (folder / "wide").mkdir(exist_ok=True)
        for package in chosen(packages, PACKAGES, "--package"):
            fetch_package(package, folder.resolve() / "wide" / package)
    if only != "wide":
        chorales = read_chorales(folder / ".chorales.json")
        for timbre in chosen(timbres, TIMBRES, "--timbre"):
            place = folder / "chorales" / timbre
            place.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda chorale, p=place, t=timbre: render(chorale, t, p), chorales))
            click.echo(f"{timbre}: {len(chorales)} chorales", err=True)
    write_card(folder)


if __name__ == "__main__":
    main()
