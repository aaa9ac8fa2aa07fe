"""The command `audiovq-player`."""

from __future__ import annotations

import argparse
import os
import secrets
import struct
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiovq_player.model import Model
from audiovq_player.player import Player, redraw

ENDINGS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
LEVELS = "one value, or one per level such as 1,0.9,0.9"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line and exit code 2, without the usage."""
        self.exit(2, f"audiovq-player: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; mistakes of the user are one line and exit code 2."""
    parser = new_parser()
    options = parser.parse_args(arguments)
    try:
        {"sample": sample, "info": info}[options.command](options)
    except BrokenPipeError:  # the reader of standard output closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (ValueError, OSError, MemoryError) as error:
        message = "too little memory for this model" if isinstance(error, MemoryError) else str(error)
        parser.error(" ".join(message.split()))
    except KeyboardInterrupt:
        parser.exit(130, "audiovq-player: stopped\n")


def new_parser() -> Parser:
    parser = Parser(prog="audiovq-player", description="Makes music with exported audiovq models, without torch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_option = {}
    for name, text in (("sample", "Make new music."), ("info", "What a model is.")):
        command = commands.add_parser(name, help=text, description=text)
        add_option[name] = command.add_argument
        command.add_argument(
            "--model", required=True, metavar="DIR", help="What `audiovq export --onnx` or --web wrote."
        )
    add = add_option["sample"]
    add("--seconds", type=float, help="Length of each piece; default 20.")
    add("--seed", type=int, help="The same seed gives the same music; default a random one.")
    add("--num", type=int, default=1, help="Number of pieces.")
    add("--label", action="append", default=[], metavar="NAME=VALUE", help="Such as genre=folk (repeatable).")
    add("--text", default="", help="A caption or lyrics, for a model trained with them.")
    add("--temperature", help=f"Above 1 wilder, below 1 tamer; {LEVELS}.")
    add("--top-k", help=f"Only the k likeliest codes, 0 for all; {LEVELS}.")
    add("--top-p", help=f"Only the likeliest codes, up to probability p; {LEVELS}.")
    add("--guidance", help=f"How closely labels and text are followed; {LEVELS}.")
    add("--given", metavar="FILE.npz", help="Codes that stay (of --codes), and -1 where they are drawn.")
    add("--from", dest="start", type=float, metavar="SECONDS", help="Draw the given codes anew from here on.")
    add("--to", dest="end", type=float, metavar="SECONDS", help="Draw the given codes anew up to here.")
    add("--codes", metavar="FILE.npz", help="Also write the codes: level_0, level_1, … and n_samples.")
    add("--out", metavar="FILE", help="WAV, FLAC or OGG file; - is standard output; default music-<seed>.wav.")
    return parser


def info(options: argparse.Namespace) -> None:
    model = Model(options.model)
    facts, size = model.facts, sum(file["bytes"] for file in model.facts["files"].values())
    print(f"{facts['name']}: {facts['sample_rate']} Hz, {facts['channels']} channel(s), {size / 1e6:.1f} MB")
    print(f"levels: {len(model.hop_lengths)}, hop lengths {', '.join(map(str, model.hop_lengths))}")
    for name, values in model.labels.items():
        print(f"label {name}: {', '.join(values)}")


def sample(options: argparse.Namespace) -> None:
    chosen: dict[str, Any] = {
        name: numbers(name, getattr(options, name)) for name in ("temperature", "top_p", "guidance")
    }
    chosen |= {"top_k": numbers("top_k", options.top_k, int), "labels": labels(options.label), "text": options.text}
    if options.num < 1:
        raise ValueError(f"--num: expected at least 1, found {options.num}")
    seed = secrets.randbelow(1_000_000_000) if options.seed is None else options.seed
    out, piped = Path(options.out or f"music-{seed}.wav"), options.out == "-"
    if piped and (options.num > 1 or sys.stdout.isatty()):
        raise ValueError("--out -: expected one piece and a pipe, such as --num 1 --out - | ffplay -")
    if not piped:
        check_output(out)
    if options.given is None and (options.start is not None or options.end is not None):
        raise ValueError("--from, --to: expected --given with the codes of a piece")
    player = Player(options.model)
    if options.given is not None:
        chosen |= given_codes(options, player)
    else:
        chosen["seconds"] = 20.0 if options.seconds is None else options.seconds
    for item in range(options.num):
        name = out if options.num == 1 else out.with_name(f"{out.stem}-{item}{out.suffix}")
        piece = player.piece(seed=seed, item=item, keep_codes=bool(options.codes), **chosen)
        n_samples, sound = piece.request.n_samples, (player.sample_rate, player.model.facts["channels"])
        if piped:
            pipe(piece.blocks(), n_samples, *sound)
        else:
            write(name, piece.blocks(), *sound)
        if options.codes:
            path = Path(options.codes)
            path = path if options.num == 1 else path.with_name(f"{path.stem}-{item}{path.suffix}")
            levels = {f"level_{i}": level for i, level in enumerate(piece.codes)}
            levels["n_samples"] = np.array(n_samples)
            np.savez_compressed(path, allow_pickle=False, **levels)
        print(f"{name}: {n_samples / player.sample_rate:g} s, seed {seed}", file=sys.stderr if piped else sys.stdout)


def pipe(blocks: Any, n_samples: int, sample_rate: int, channels: int) -> None:
    """Write blocks of a piece as 16-bit WAV to standard output as they come."""
    # Not with the module `wave`: it seeks back to the header when it is interrupted.
    frame, n_bytes = 2 * channels, min(2 * channels * n_samples, 2**32 - 37)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, sample_rate, frame * sample_rate, frame, 16)
    sys.stdout.buffer.write(struct.pack("<4sI4s", b"RIFF", 36 + n_bytes, b"WAVE") + form)
    sys.stdout.buffer.write(struct.pack("<4sI", b"data", n_bytes))
    for block in blocks:
        sys.stdout.buffer.write((block.T.clip(-1, 1) * 32768).round().clip(max=32767).astype("<i2").tobytes())
        sys.stdout.buffer.flush()


def write(path: Path, blocks: Any, sample_rate: int, channels: int) -> None:
    """Write blocks as they come; an unfinished file is removed."""
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with soundfile.SoundFile(temporary, "w", sample_rate, channels, format=ENDINGS[path.suffix.lower()]) as file:
            for block in blocks:
                file.write(block.T)
        temporary.replace(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: cannot be written ({error.error_string})") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"--out {path}: expected a name that ends in {', '.join(ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"--out {path}: expected a folder that exists, found none at {path.parent}")


def numbers(name: str, text: str | None, kind: type = float) -> list[Any] | None:
    try:
        return None if text is None else [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name.replace('_', '-')}: expected one number or one per level, found {text!r}") from None


def labels(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--label {pair}: expected NAME=VALUE, such as genre=folk")
        found[name] = value
    return found


def given_codes(options: argparse.Namespace, player: Player) -> dict[str, Any]:
    """The arguments `given` and `n_samples` of a piece."""
    if options.seconds is not None:
        raise ValueError("--seconds: expected no length with --given, which has one")
    try:
        with np.load(options.given, allow_pickle=False) as file:
            levels, n_samples = [file[f"level_{i}"] for i in range(len(player.hop_lengths))], int(file["n_samples"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile):
        n = len(player.hop_lengths)
        raise ValueError(f"--given {options.given}: expected what --codes writes, with {n} levels") from None
    if options.start is None and options.end is None:
        return {"given": levels, "n_samples": n_samples}
    length = n_samples / player.sample_rate
    start, end = options.start or 0.0, length if options.end is None else options.end
    if not 0 <= start < end <= length:
        raise ValueError(f"--from {start:g} --to {end:g}: expected a stretch within the piece of {length:g} s")
    stretch = int(start * player.sample_rate), round(end * player.sample_rate)
    return {"given": redraw(levels, player.hop_lengths, *stretch, player.multiple), "n_samples": n_samples}


if __name__ == "__main__":
    main(sys.argv[1:])
