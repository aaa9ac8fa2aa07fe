"""Fuzz audiovq: every damaged input must give a valid result or one readable line.

    python tests/fuzz/run.py [--cases 2000] [--seed 1] [--only audio codes] [--jobs 2]
    python tests/fuzz/run.py --seed 1 --case 137      # one case again, with its traceback

Never: another exception than ValueError, a wrong result without a word, more than 20 seconds, more than 2 GB, or a crash of
the process. Case i of a seed is always the same.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

HERE = Path(__file__).parent
MAX_SECONDS, MAX_MEGABYTES, GRACE = 20.0, 2000, 60.0
GOOD = ("used", "refused")


def outcome_of(target: str, seed: int, number: int) -> tuple[str, str]:
    """One case in this process: used, refused, or what went wrong, and a description."""
    import numpy as np
    from targets import TARGETS, Wrong

    random = np.random.default_rng([seed, number])
    with tempfile.TemporaryDirectory() as place:
        case = TARGETS[target](Path(place), random)
        before, began = _peak_megabytes(), time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case.attempt()
            outcome, text = "used", ""
        except ValueError as error:
            outcome, text = "refused", str(error)
            if "\n" in text or not text or len(text) > 1000 or (type(error) is not ValueError and not _ours(error)):
                outcome = "unreadable"
        except Wrong as error:
            outcome, text = "wrong", str(error)
        except Exception as error:
            outcome, text = "traceback", f"{type(error).__name__}: {error}"
            if os.environ.get("FUZZ_TRACEBACK"):
                traceback.print_exc()
        seconds, megabytes = time.monotonic() - began, _peak_megabytes() - before
    if seconds > MAX_SECONDS:
        outcome, text = "slow", f"{seconds:.0f} s; {text}"
    if megabytes > MAX_MEGABYTES:
        outcome, text = "memory", f"{megabytes:.0f} MB; {text}"
    return outcome, f"{case.what}: {text}"


def _ours(error: Exception) -> bool:
    return type(error).__module__.startswith("audiovq")


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def work(seed: int, targets: list[str]) -> None:
    """A worker: reads numbers of cases, prints their outcomes."""
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        number = int(line)
        outcome, text = outcome_of(targets[number % len(targets)], seed, number)
        print(f"{outcome}\t{ascii(text)[:400]}", flush=True)


class Worker:
    """A process that is started again when it crashes or hangs."""

    def __init__(self, seed: int, targets: list[str]):
        self.command = [sys.executable, __file__, "--worker", "--seed", str(seed), "--only", *targets]
        self.process: subprocess.Popen[str] | None = None

    def run(self, number: int) -> tuple[str, str]:
        if self.process is None or self.process.poll() is not None:
            options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            self.process = subprocess.Popen(self.command, **options)  # type: ignore[call-overload]
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(process.stdout.readline)
            try:
                line = answer.result(timeout=MAX_SECONDS + GRACE)
            except TimeoutError:
                process.kill()
                return "hang", f"no end after {MAX_SECONDS + GRACE:.0f} s"
        if not line:
            return "crash", f"the process ended with {process.wait()}"
        outcome, text = line.rstrip("\n").split("\t", 1)
        return outcome, text

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()


def fuzz(targets: list[str], n_cases: int, seed: int, n_jobs: int, loud: bool = True) -> dict[str, Counter[str]]:
    """Run cases 0 … n_cases - 1. Returns the number of each outcome by target."""
    counts: dict[str, Counter[str]] = {target: Counter() for target in targets}
    numbers = iter(range(n_cases))

    def job() -> None:
        worker = Worker(seed, targets)
        for number in numbers:
            outcome, text = worker.run(number)
            target = targets[number % len(targets)]
            counts[target][outcome] += 1
            if outcome not in GOOD and loud:
                print(f"case {number}, {target}: {outcome}: {text}", flush=True)
        worker.close()

    with ThreadPoolExecutor(n_jobs) as pool:
        for done in [pool.submit(job) for _ in range(n_jobs)]:
            done.result()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--case", type=int)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    from targets import TARGETS

    targets = options.only or list(TARGETS)
    if options.worker:
        work(options.seed, targets)
        return 0
    if options.case is not None:
        os.environ["FUZZ_TRACEBACK"] = "1"
        print(*outcome_of(targets[options.case % len(targets)], options.seed, options.case), sep=": ")
        return 0
    began = time.monotonic()
    counts = fuzz(targets, options.cases, options.seed, options.jobs)
    kinds = [*GOOD, *sorted({kind for row in counts.values() for kind in row} - set(GOOD))]
    print(f"\n{options.cases} cases, seed {options.seed}, {time.monotonic() - began:.0f} s\n")
    print("| | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for target, row in counts.items():
        print(f"| {target} | " + " | ".join(str(row[kind]) for kind in kinds) + " |")
    return int(any(kind not in GOOD for row in counts.values() for kind in row))


if __name__ == "__main__":
    sys.exit(main())
