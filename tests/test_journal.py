"""Nothing lost: whatever happens to a journal, the resumed result is the one that would have been."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT, assert_one_line_error, cli
from test_prior import make

from audiovq import Generator
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.sampling.engine import PackedEngine
from audiovq.sampling.generate import generate
from audiovq.sampling.journal import Journal
from audiovq.sampling.next_code import next_code
from audiovq.sampling.request import Request

HOPS = [256, 128, 32]
FACTS = {"items": [0, 1], "seed": 42}
SETTINGS = [SamplingConfig(), SamplingConfig(top_k=9), SamplingConfig(temperature=0.9)]


class Killed(BaseException):
    pass


@pytest.fixture
def models() -> list[Prior]:
    return [make(level) for level in range(3)]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, and a snapshot every few steps."""
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)
    monkeypatch.setattr("audiovq.sampling.journal.SNAPSHOT_SECONDS", 0.03)
    monkeypatch.setattr("audiovq.sampling.journal.TIME_SHARE", 0.3)


def holes(n_samples: int) -> list[torch.Tensor]:
    """Given codes in the beginning, the middle and at the end, and some for one of the two items only."""
    given = []
    for hop in HOPS:
        level = torch.full((2, -(-n_samples // hop)), -1)
        for start, end in ((0, 1024), (2560, 4608), (6144, 9999)):
            level[:, start // hop : end // hop] = torch.arange(level.shape[1])[start // hop : end // hop] % 20
        level[1, 5120 // hop : 5632 // hop] = 7
        given.append(level)
    return given


def run(
    models: list[Prior], folder: Path, given: list[torch.Tensor] | None = None, kill_at: int = -1
) -> list[torch.Tensor]:
    """Generate with a journal; at step `kill_at` leave on disk what a kill at that moment would leave."""
    count = 0

    def count_calls(level: int, codes: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            shutil.copytree(folder, folder.with_name("left"))
            raise Killed

    with Journal(folder) as journal:
        journal.open(FACTS)
        return generate(models, SETTINGS, Request(6700, [0, 1], 42, {"genre": 1}), given, count_calls, journal)


def kill_and_resume(
    models: list[Prior],
    folder: Path,
    given: list[torch.Tensor] | None,
    moments: list[int],
    drawn_from: list[torch.Tensor],
) -> list[torch.Tensor]:
    """The result of the last attempt, after kills at these moments."""
    for moment in moments:
        drawn_from.clear()
        try:
            result = run(models, folder, given, moment)
        except Killed:
            shutil.rmtree(folder)
            folder.with_name("left").rename(folder)
        else:
            return result
    drawn_from.clear()
    return run(models, folder, given)


@pytest.fixture
def drawn_from(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of every draw, in order."""
    seen: list[torch.Tensor] = []

    def record(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(logits.clone())
        return next_code(logits, *rest)

    monkeypatch.setattr("audiovq.sampling.generate.next_code", record)
    return seen


@pytest.mark.parametrize("with_holes", [False, True])
def test_killed_at_random_moments_the_result_is_the_same_to_the_bit(
    models: list[Prior], tmp_path: Path, with_holes: bool, drawn_from: list[torch.Tensor]
) -> None:
    """Not only the codes, which would forgive a difference in the last bits most of the time: the logits, too."""
    given = holes(6700) if with_holes else None
    whole = generate(models, SETTINGS, Request(6700, [0, 1], 42, {"genre": 1}), given)
    expected = drawn_from.copy()
    chance = random.Random(0)
    for i in range(6):
        moments = [chance.randint(1, 250) for _ in range(chance.randint(1, 3))]
        resumed = kill_and_resume(models, tmp_path / str(i) / "journal", given, moments, drawn_from)
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True)), moments
        assert all(torch.equal(a, b) for a, b in zip(expected[::-1], drawn_from[::-1], strict=False)), moments
    if given:
        for level, mask in zip(whole, given, strict=True):
            assert torch.equal(level[mask >= 0], mask[mask >= 0])


def test_a_resumed_run_draws_no_code_of_a_snapshot_again(
    models: list[Prior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_from: list[torch.Tensor]
) -> None:
    monkeypatch.setattr("audiovq.sampling.journal.SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr("audiovq.sampling.journal.TIME_SHARE", 1e9)
    with pytest.raises(Killed):
        run(models, tmp_path / "journal", None, kill_at=150)
    drawn_from.clear()
    run(models, tmp_path / "journal")
    n_codes = sum(-(-6700 // hop) for hop in HOPS)
    # Of 150 calls two end a level, and the last one comes before the journal's.
    assert len(drawn_from) == n_codes - 147


@pytest.fixture
def finished(models: list[Prior], tmp_path: Path) -> Path:
    run(models, tmp_path / "journal")
    return tmp_path / "journal"


def known(journal: Journal, facts: dict[str, Any]) -> int:
    journal.open(facts)
    return journal.n_known


def test_a_damaged_snapshot_is_not_used(models: list[Prior], finished: Path) -> None:
    whole = generate(models, SETTINGS, Request(6700, [0, 1], 42, {"genre": 1}))
    (path,) = finished.glob("*.journal")
    content = path.read_bytes()
    for damaged in (content[:-1], content + bytes(100), b"nonsense", b""):
        path.write_bytes(damaged)
        assert known(Journal(finished), FACTS) == 0
        assert all(torch.equal(a, b) for a, b in zip(whole, run(models, finished), strict=True))
        assert path.read_bytes() == content


def test_an_error_in_a_pass_over_given_codes_leaves_the_snapshot_before(
    models: list[Prior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a pass replaces entries of the cache that it would need again."""
    given, folder = holes(6700), tmp_path / "journal"
    whole = generate(models, SETTINGS, Request(6700, [0, 1], 42, {"genre": 1}), given)
    prefill, calls = PackedEngine.prefill, []

    def stop(*arguments: Any) -> torch.Tensor:
        calls.append(prefill(*arguments))
        if len(calls) == 5:
            raise Killed
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(PackedEngine, "prefill", stop)
        with pytest.raises(Killed):
            run(models, folder, given)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(models, folder, given), strict=True))


def test_other_facts_have_another_journal_and_finished_ones_are_removed(finished: Path) -> None:
    journal = Journal(finished)
    assert known(journal, {**FACTS, "seed": 43}) == 0
    assert known(journal, {**FACTS, "given": torch.zeros(3)}) == 0
    assert known(journal, {**FACTS, "given": torch.ones(3)}) == 0
    assert len(journal.remove()) == 1
    journal = Journal(finished)
    assert known(journal, FACTS) == 290
    assert journal.remove() == []
    assert not finished.exists()


def test_the_api_goes_on_too(tiny_run: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(tiny_run)
    whole = generator.sample_codes(3, seed=7, n=2)

    def stop(level: int, codes: torch.Tensor) -> None:
        if level == 1 and codes.shape[1] == 100:
            raise Killed

    with pytest.raises(Killed):
        generator.sample_codes(3, seed=7, n=2, journal=tmp_path / "journal", on_codes=stop)
    assert list((tmp_path / "journal").glob("*.journal"))
    again = generator.sample_codes(3, seed=7, n=2, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.levels, b.levels, strict=True))


KILLED = """
import sys
import audiovq.sampling.journal as journal
journal.SNAPSHOT_SECONDS, journal.TIME_SHARE = 0.01, 0.5
from audiovq.cli import main
main(sys.argv[1:])
"""


def sample_until(arguments: list[str], folder: Path, n_snapshots: int) -> bool:
    """Run `audiovq sample` in a process of its own and kill it after so many snapshots. True if killed."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stderr=subprocess.DEVNULL, cwd=ROOT)
    seen = set()
    while process.poll() is None:
        seen |= {path.stat().st_mtime_ns for path in folder.glob("*.journal")}
        if len(seen) >= n_snapshots:
            process.kill()
            process.wait()
            return True
        time.sleep(0.002)
    assert process.returncode == 0
    return False


def check_killed_commands(tiny_run: Path, tmp_path: Path, n: int) -> None:
    """Kill `n` times, each time after a random number of snapshots; one seed after the other, as long as it takes."""
    chance, killed = random.Random(1), 0
    for seed in range(4 * n):
        options = ("--model", tiny_run, "--seconds", 8, "--seed", seed, "--num", 2, "--save-codes", "--out")
        command = [str(argument) for argument in ("sample", *options, tmp_path / "x.wav")]
        while killed < n and sample_until(command, tmp_path / ".x.journal", chance.randint(2, 20)):
            killed += 1
        assert cli(*command).exit_code == 0
        assert not (tmp_path / ".x.journal").exists()
        assert cli("sample", *options, tmp_path / "whole.wav").exit_code == 0
        for i in range(2):
            a, b = (soundfile.read(tmp_path / f"{name}-{i}.wav", dtype="int16")[0] for name in ("whole", "x"))
            assert np.array_equal(a, b)
            assert (tmp_path / f"whole-{i}.codes").read_bytes() == (tmp_path / f"x-{i}.codes").read_bytes()
        if killed == n:
            return
    raise AssertionError(f"only {killed} of {n} could be killed before they were done")


def test_kill_9_and_the_same_command_again(tiny_run: Path, tmp_path: Path) -> None:
    check_killed_commands(tiny_run, tmp_path, 1)


@pytest.mark.slow
def test_kill_9_twenty_times(tiny_run: Path, tmp_path: Path) -> None:
    check_killed_commands(tiny_run, tmp_path, 20)


def test_a_journal_that_cannot_be_written_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / ".x.journal").write_text("in the way")
    options = ("--model", tiny_run, "--seconds", 1, "--seed", 5, "--out", tmp_path / "x.wav")
    assert_one_line_error(cli("sample", *options), "cannot write there", "--out")
