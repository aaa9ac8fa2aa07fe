"""Kills, full disks and damaged files: is anything wrong ever produced, is anything finished lost, is every error one line?

python benchmarks/faults.py [--kills 50] [--only kills disk damage] [--seed 0]

kills    train, encode and sample are killed (kill -9 and SIGTERM in turns) at random moments of their whole time and started
         again until they are done; then every file that they made must be that of an undisturbed run, and what was
         finished before a kill must not have been made again.
disk     each works on a disk that is full at some point (a tmpfs of that size; without the right to mount one, a limit on
         the size of a file): exit code 2 and one line; with more room the same command ends as undisturbed.
damage   each file of a run, and those that a command is given, is cut to a half, emptied or removed: the next command says so
         in one line with exit code 2, or makes what it would have made.

Every command is a process of its own, forked from one that has loaded the libraries.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import soundfile

from audiovq.cli import main as audiovq_main

RECIPE = """
data: {{folder: {folder}, valid_fraction: 0.25, min_seconds: 0.5}}
precision: fp32
tokenizer:
  model:
    sample_rate: 8000
    hop_lengths: [256, 128, 64]
    dim: 16
    encoder: {{n_blocks: 1}}
    decoder: {{kind: istft, dim: 16, n_blocks: 1}}
    quantizer: {{kind: ema, codebook_size: 16, codebook_dim: 4}}
  losses: {{mel_windows: [256, 512]}}
  vq_start_step: 1
  crop_seconds: 0.25
  training: {{steps: 12, batch_size: 2, log_steps: 1, evaluate_steps: 6, evaluate_batches: 1, warmup_steps: 2, checkpoint_seconds: 0}}
priors:
  - model:
      transformer: {{dim: 16, n_layers: 1, n_heads: 2, context: 32, attention_window: 16}}
      conditioners: [{{kind: label, name: genre}}, {{kind: timing}}]
    training: {{steps: 8, batch_size: 2, log_steps: 1, evaluate_steps: 4, evaluate_batches: 1, warmup_steps: 1, checkpoint_seconds: 0}}
samples: {{seconds: 0.5, n: 1}}
"""
LEFT_OUT = {".jsonl", ".png", ".html"}  # logs, pictures and pages are not compared
Command = Callable[[Path], list[str]]  # what to run, to make something in a folder


def make_music(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    t = np.arange(20000) / 8000
    for i in range(n):
        waves = [np.sin(2 * np.pi * 220 * 2 ** ((i + k) / 12) * t) * np.exp(-k * t) for k in range(1, 5)]
        soundfile.write(folder / f"{i}.wav", 0.2 * np.sum(waves, axis=0), 8000)
        (folder / f"{i}.json").write_text(f'{{"genre": "{"folk" if i % 2 else "rock"}"}}')


def start(arguments: Sequence[str], log: Path, file_limit: int | None = None) -> int:
    """A command in a process of its own, whose output goes to `log`; returns its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["audiovq", *arguments]
        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        audiovq_main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Exit code; negative is a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(arguments: Sequence[str], log: Path, file_limit: int | None = None) -> int:
    return wait(start(arguments, log, file_limit))


def is_one_line(log: Path) -> bool:
    text = log.read_text(errors="replace")
    return sum(line.startswith("audiovq: ") for line in text.splitlines()) == 1 and "Traceback" not in text


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that counts, and the files left over that should not be there."""
    # A killed writer leaves its lock, which the next writer takes over; a finished run has no next writer.
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    found = (path for path in files if path.suffix not in LEFT_OUT)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if not {"training", "metrics"} & set(path.parts)
    }


def finished(folder: Path) -> dict[Path, int]:
    """When each thing that counts as finished was made. Pieces of music may be written again, so of their codes it is the
    content."""
    marks = [
        *folder.glob("tokenizer/config.json"),
        *folder.glob("codes/index.json"),
        *folder.glob("prior-*/config.json"),
    ]
    codes = list(folder.rglob("*.codes"))
    pieces = {path: zlib.crc32(path.read_bytes()) for path in codes if path.with_suffix(".wav").exists()}
    return {path: path.stat().st_mtime_ns for path in (*marks, *codes)} | pieces


class Faults:
    """Counts by kind; problems are printed with the command's output."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random, self.counts = folder, random.Random(seed), Counter[str]()
        self.log = folder / "log"
        make_music(folder / "music", 4)
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder / "music"))
        self.reference = folder / "reference"
        self.commands: dict[str, Command] = {
            "train": lambda out: ["train", str(folder / "recipe.yaml"), "--out", str(out)],
            "encode": lambda out: ["encode", str(folder / "music"), "-o", str(out), "--model", self.model],
            "sample": lambda out: [
                "sample", "--model", self.model, "--seconds", "6", "--seed", "3", "--num", "2", "--save-codes", "--out",
                str(out / "x.wav"),
            ],
        }  # fmt: skip
        self.seconds: dict[str, float] = {}
        for name, command in self.commands.items():
            began = time.monotonic()
            if run(command(self.reference / name), self.log):
                raise SystemExit(self.log.read_text())
            self.seconds[name] = time.monotonic() - began
        self.expected = {name: contents(self.reference / name) for name in self.commands}

    @property
    def model(self) -> str:
        return str(self.reference / "train")

    def count(self, kind: str, good: bool, what: str) -> None:
        self.counts[f"{kind}: {what}" if good else f"{kind}: WRONG, {what}"] += 1
        if not good:
            print(f"WRONG {kind}, {what}:\n{self.log.read_text(errors='replace')[-2000:]}", flush=True)

    def compare(self, kind: str, name: str, out: Path, but: str = "") -> None:
        """Args: but: a file that was damaged, and may be left as it is where it is not needed."""
        found, expected = contents(out), self.expected[name]
        odd = [path for path in {*found, *expected} - {but} if found.get(path) != expected.get(path)]
        self.count(kind, not odd, f"other files: {', '.join(sorted(odd)[:6])}" if odd else "ends as undisturbed")

    def kills(self, name: str, n: int) -> None:
        killed = 0
        while killed < n:
            out, marks, began_with = self.folder / f"killed-{name}", {}, killed
            shutil.rmtree(out, ignore_errors=True)
            while True:
                began = time.monotonic()
                child = start(self.commands[name](out), self.log)
                left_alone = killed == n
                end = began + (np.inf if left_alone else self.random.uniform(0, self.seconds[name]))
                while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
                    time.sleep(0.002)
                if done[0]:
                    if killed == began_with:  # all in one go; the first run was slower, as it compiled
                        self.seconds[name] = min(self.seconds[name], time.monotonic() - began)
                    break
                number = self.random.choice([signal.SIGKILL, signal.SIGTERM])
                os.kill(child, number)
                code = wait(child)
                if code == 0:  # it was done just then
                    break
                killed += 1
                polite = code == 128 + signal.SIGTERM and is_one_line(self.log)
                self.count(f"{name}, {number.name}", code == -number or polite, "stopped")
                now = finished(out)
                lost = [path for path, made in marks.items() if now.get(path) != made]
                self.count(name, not lost, f"lost {lost}" if lost else "finished work is safe")
                marks = now
            code = os.waitstatus_to_exitcode(done[1]) if done[0] else code
            self.count(name, code == 0, f"the last attempt ends with {code}") if code else None
            self.compare(name, name, out)

    def full_disk(self, name: str, sizes: Sequence[float]) -> None:
        whole = sum(path.stat().st_size for path in (self.reference / name).rglob("*") if path.is_file())
        for share in sizes:
            out = self.folder / "disk"
            out.mkdir()
            mounted = _mount(out, int(share * whole))
            try:
                limit = None if mounted else max(1, int(share * whole / 8))
                code = run(self.commands[name](out / name), self.log, limit)
                kind = f"{name}, {'full disk' if mounted else 'file size limit'}"
                self.count(kind, code == 0 or (code == 2 and is_one_line(self.log)), f"exit code {code}")
                if mounted:
                    subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
                code = run(self.commands[name](out / name), self.log)
                self.count(kind, code == 0, f"with more room, exit code {code}")
                self.compare(kind, name, out / name)
            finally:
                if mounted:
                    subprocess.run(["umount", str(out)], check=True)
                shutil.rmtree(out)

    def damage(self) -> None:
        """A run whose last prior is missing is gone on with; a whole one is sampled from."""
        run_files = [
            "recipe.yaml", "data/tracks.jsonl", "data/report.json", "tokenizer/config.json", "tokenizer/model.safetensors",
            "codes/index.json", "codes/tracks.jsonl", "codes/tracks.npy", "codes/shard-00000-level-1.npy",
            "prior-0/config.json", "prior-1/model.safetensors", "training/tokenizer/checkpoints/*/state.safetensors",
            "training/prior-1/checkpoints/*/state.safetensors", "training/prior-1/metrics.jsonl",
        ]  # fmt: skip
        for name in run_files:
            for how in ("half", "empty", "gone"):
                out = self._copy_of("train")
                shutil.rmtree(out / "prior-2")
                _damage(next(iter(out.glob(name))), how)
                self._judge(f"train, {how}", "train", out, self.commands["train"](out), but=name)
        for name in (
            "tokenizer/model.safetensors",
            "prior-1/config.json",
            "prior-2/model.safetensors",
        ):
            for how in ("half", "empty", "gone"):
                model, out = self._copy_of("train"), self.folder / "sampled"
                _damage(model / name, how)
                shutil.rmtree(out, ignore_errors=True)
                command = self.commands["sample"](out)
                self._judge(f"sample, {how}", "sample", out, [model if x == self.model else x for x in command])
        for how in ("half", "empty", "gone"):
            for name in ("encode/1.codes", "sample/x-0.wav"):
                given, out = self.folder / f"given{Path(name).suffix}", self.folder / "used"
                shutil.copy(self.reference / name, given)
                _damage(given, how)
                shutil.rmtree(out, ignore_errors=True)
                verb, target = ("decode", "a.wav") if given.suffix == ".codes" else ("encode", "a.codes")
                self._judge(f"{verb}, {how}", None, out, [verb, given, "-o", out / target, "--model", self.model])
            for name in ("1.codes",):  # a result that was damaged later
                out = self._copy_of("encode")
                _damage(out / name, how)
                self._judge(f"encode again, {how}", "encode", out, self.commands["encode"](out))
        self._decoded_again()

    def _decoded_again(self) -> None:
        whole, out = self.folder / "decoded", self.folder / "decoded-again"
        command = ["decode", self.reference / "encode", "--model", self.model, "--format", "flac", "-o"]
        assert run([*map(str, command), str(whole)], self.log) == 0, self.log.read_text()
        self.expected["decode"] = contents(whole)
        for how in ("half", "empty", "gone"):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(whole, out)
            _damage(out / "1.flac", how)
            self._judge(f"decode again, {how}", "decode", out, [*command, out])

    def _copy_of(self, name: str) -> Path:
        out = self.folder / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.reference / name, out)
        return out

    def _judge(self, kind: str, name: str | None, out: Path, command: Sequence[object], but: str = "") -> None:
        code = run([str(part) for part in command], self.log)
        if code == 2:
            self.count(kind, is_one_line(self.log), "refused in one line")
            return
        self.count(kind, code == 0 and name is not None, f"exit code {code}") if code or name is None else None
        if name is not None:
            self.compare(kind, name, out, but)


def _damage(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 if how == "half" else 0])


def _mount(folder: Path, size: int) -> bool:
    """A small disk; False if that is not allowed here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def shares(n: int, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    for i, name in enumerate(names):
        yield name, n // len(names) + (i < n % len(names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of all three commands together")
    parser.add_argument("--only", nargs="+", choices=["kills", "disk", "damage"], default=["kills", "disk", "damage"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder).resolve(), options.seed)
        print(
            "undisturbed: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in faults.seconds.items()),
            flush=True,
        )
        if "kills" in options.only:
            for name, n in shares(options.kills, ["train", "sample", "encode"]):
                faults.kills(name, n)
        if "disk" in options.only:
            faults.full_disk("train", (0.02, 0.2, 0.5, 0.8))
            faults.full_disk("encode", (0.5,))
            faults.full_disk("sample", (0.1, 0.7))
        if "damage" in options.only:
            faults.damage()
        for what, n in sorted(faults.counts.items()):
            print(f"{n:4} × {what}")
        wrong = sum(n for what, n in faults.counts.items() if "WRONG" in what)
        print(f"{sum(faults.counts.values())} checks, {wrong} wrong")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
