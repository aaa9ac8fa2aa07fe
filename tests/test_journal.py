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
from audiovq.sampling import journal as journal_module
from audiovq.sampling.generate import generate
from audiovq.sampling.journal import Journal, JournalFolder
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
    """Small blocks, and a write every few steps."""
    monkeypatch.setattr("audiovq.sampling.decode_state.BLOCK", 16)
    monkeypatch.setattr("audiovq.sampling.journal.FLUSH_SECONDS", 0.03)
    monkeypatch.setattr("audiovq.sampling.journal.CACHE_SHARE", 0.3)


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

    with JournalFolder(folder) as journals:
        return generate(
            models, SETTINGS, Request(6700, [0, 1], 42, {"genre": 1}), given, count_calls, journals.open(FACTS)
        )


def kill_and_resume(
    models: list[Prior], place: Path, given: list[torch.Tensor] | None, moments: list[int], cut: int,
    drawn_from: list[torch.Tensor],
) -> list[torch.Tensor]:  # fmt: skip
    """The result of the last attempt, after kills at these moments; each cuts so many bytes off the journal."""
    folder = place / "journal"
    for moment in moments:
        drawn_from.clear()
        try:
            result = run(models, folder, given, moment)
        except Killed:
            shutil.rmtree(folder)
            folder.with_name("left").rename(folder)
            for path in folder.glob("*.codes"):
                path.write_bytes(path.read_bytes()[: -cut or None])
        else:
            shutil.rmtree(folder)
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
        place = tmp_path / str(i)
        place.mkdir()
        resumed = kill_and_resume(models, place, given, moments, chance.choice([0, 0, 1, 9, 50]), drawn_from)
        assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True)), moments
        assert all(torch.equal(a, b) for a, b in zip(expected[::-1], drawn_from[::-1], strict=False)), moments
    if given:
        for level, mask in zip(whole, given, strict=True):
            assert torch.equal(level[mask >= 0], mask[mask >= 0])


def test_a_resumed_run_feeds_few_codes_again_and_draws_none_twice(
    models: list[Prior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_from: list[torch.Tensor]
) -> None:
    monkeypatch.setattr("audiovq.sampling.journal.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("audiovq.sampling.journal.CACHE_SHARE", 1e9)
    with pytest.raises(Killed):
        run(models, tmp_path / "journal", None, kill_at=150)
    drawn_from.clear()
    run(models, tmp_path / "journal")
    n_codes = sum(-(-6700 // hop) for hop in HOPS)
    # Of 150 calls two end a level, and the last one comes before the journal's.
    assert len(drawn_from) == n_codes - 147


def facts_of(journal: Journal) -> list[int]:
    return [journal.counts.get(level, 0) for level in range(3)]


@pytest.fixture
def finished(models: list[Prior], tmp_path: Path) -> Path:
    run(models, tmp_path / "journal")
    return tmp_path / "journal"


def test_a_torn_or_damaged_end_is_dropped_and_what_is_before_it_kept(finished: Path) -> None:
    (path,) = finished.glob("*.codes")
    content = path.read_bytes()
    with JournalFolder(finished) as journals:
        whole = facts_of(journals.open(FACTS))
    assert whole == [27, 53, 210]
    for damaged in (content[:-1], content[:-5] + b"\0" + content[-4:], content + b"\1" * 7, content + bytes(100)):
        path.write_bytes(damaged)
        with JournalFolder(finished) as journals:
            found = facts_of(journals.open(FACTS))
        assert found[:2] == whole[:2]
        assert 0 < found[2] <= whole[2]
        assert path.read_bytes() in (content, content[: len(path.read_bytes())])
    path.write_bytes(b"nonsense")
    with JournalFolder(finished) as journals:
        assert facts_of(journals.open(FACTS)) == [0, 0, 0]
    assert not list(finished.glob("*.cache"))


def test_a_damaged_cache_is_not_used(models: list[Prior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.sampling.journal.FLUSH_SECONDS", 0.0)  # else a fast machine ends before the first save
    folder = tmp_path / "journal"
    whole = generate(models, SETTINGS, Request(6700, [0, 1], 42, {"genre": 1}))
    with pytest.raises(Killed):
        run(models, folder, kill_at=200)
    (path,) = folder.glob("*.cache")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert all(torch.equal(a, b) for a, b in zip(whole, run(models, folder), strict=True))


def test_other_facts_have_another_journal_and_finished_ones_are_removed(finished: Path) -> None:
    with JournalFolder(finished) as journals:
        assert journals.open({**FACTS, "seed": 43}).n_known == 0
        assert journals.open({**FACTS, "given": torch.zeros(3)}).n_known == 0
        assert journals.open({**FACTS, "given": torch.ones(3)}).n_known == 0
        assert len(journals.remove()) == 1
    with JournalFolder(finished) as journals:
        assert journals.open(FACTS).n_known == 290
        assert journals.remove() == []
    assert not finished.exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with JournalFolder(tmp_path / "journal") as journals:
        journals.open(FACTS)
        with pytest.raises(ValueError, match="another process is generating this very piece"):
            Journal(tmp_path / "journal", FACTS)
    Journal(tmp_path / "journal", FACTS).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Journal(tmp_path / "file", FACTS)


def test_the_api_goes_on_too(tiny_run: Path, tmp_path: Path) -> None:
    generator = Generator.from_pretrained(tiny_run)
    whole = generator.sample_codes(3, seed=7, n=2)

    def stop(level: int, codes: torch.Tensor) -> None:
        if level == 1 and codes.shape[1] == 100:
            raise Killed

    with pytest.raises(Killed):
        generator.sample_codes(3, seed=7, n=2, journal=tmp_path / "journal", on_codes=stop)
    assert list((tmp_path / "journal").glob("*.codes"))
    again = generator.sample_codes(3, seed=7, n=2, journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.levels, b.levels, strict=True))


KILLED = """
import sys
import audiovq.sampling.journal as journal
journal.FLUSH_SECONDS = 0.01
from audiovq.cli import main
main(sys.argv[1:])
"""


def sample_until(arguments: list[str], folder: Path, n_bytes: int) -> bool:
    """Run `audiovq sample` in a process of its own and kill it when its journal has so many bytes. True if killed."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stderr=subprocess.DEVNULL, cwd=ROOT)
    while process.poll() is None:
        if sum(path.stat().st_size for path in folder.glob("*.codes")) >= n_bytes:
            process.kill()
            process.wait()
            return True
        time.sleep(0.002)
    assert process.returncode == 0
    return False


def check_killed_commands(tiny_run: Path, tmp_path: Path, n: int) -> None:
    """Kill `n` times, each time when the journal has grown by a random amount; piece after piece, as long as it takes."""
    chance, killed = random.Random(1), 0
    total = 2 * 4 * sum(8 * 8000 // hop for hop in (256, 128, 64))  # bytes of two pieces of 8 s
    for seed in range(4 * n):
        arguments = [
            "sample",
            "--model",
            tiny_run,
            "--seconds",
            "8",
            "--seed",
            seed,
            "--num",
            "2",
            "--save-codes",
            "--out",
        ]
        command, size = [str(argument) for argument in (*arguments, tmp_path / "x.wav")], 0
        while killed < n and size < total:
            size += chance.randint(100, total // 2)
            if not sample_until(command, tmp_path / ".x.journal", size):
                break
            killed += 1
        assert cli(*command).exit_code == 0
        assert not (tmp_path / ".x.journal").exists()
        assert cli(*arguments, tmp_path / "whole.wav").exit_code == 0
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


def test_the_command_refuses_a_piece_that_another_process_has(tiny_run: Path, tmp_path: Path) -> None:
    options = ("sample", "--model", tiny_run, "--seconds", 1, "--seed", 5, "--out", tmp_path / "x.wav")
    real = Journal.__init__

    def locked(self: Journal, folder: Path, facts: dict) -> None:
        real(self, folder, facts)
        with pytest.raises(ValueError, match="another process"):
            real(Journal.__new__(Journal), folder, facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module.Journal, "__init__", locked)
        assert cli(*options).exit_code == 0
    (tmp_path / ".x.journal").write_text("in the way")
    assert_one_line_error(cli(*options), "cannot be written", "--out")
