"""`audiovq bench`: the figures belong together. No time is asserted."""

import json
from pathlib import Path

import pytest
from conftest import assert_one_line_error, cli
from test_prior import make

from audiovq.evaluation.bench import BYTES, bench_priors, bench_table
from audiovq.sampling.packed_weights import available_precisions


def test_figures_follow_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.evaluation.bench.READ_BYTES", 1 << 20)
    priors, names = [make(0), make(1)], available_precisions()
    result = bench_priors(priors, (1, 3), ("all",), n_steps=3, n_turns=2)
    assert [(r["level"], r["batch"], r["precision"]) for r in result["levels"]] == [
        (level, batch, name) for level in (0, 1) for batch in (1, 3) for name in names
    ]
    for row in result["levels"]:
        assert row["codes_per_second"] == pytest.approx(row["batch"] * row["steps_per_second"])
        assert row["share_of_limit"] == pytest.approx(row["steps_per_second"] / row["limit_steps_per_second"])
        n_bytes = row["parameters"] * BYTES[row["precision"]]
        assert row["limit_steps_per_second"] == pytest.approx(result["bytes_per_second"] / n_bytes)
    for entry in result["audio"]:
        rows = [r for r in result["levels"] if (r["batch"], r["precision"]) == (entry["batch"], entry["precision"])]
        seconds = sum(p.spec.code_rate / r["steps_per_second"] for p, r in zip(priors, rows, strict=True))
        assert entry["audio_seconds_per_second"] == pytest.approx(entry["batch"] / seconds)
    assert len(bench_table(result)) == 2 + len(result["levels"]) + len(result["audio"])


def test_the_command_prints_and_writes_json(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audiovq.evaluation.bench.READ_BYTES", 1 << 20)
    result = cli("bench", tiny_run, "--batch", "2", "--precision", "fp32", "--json", tmp_path / "bench.json")
    assert result.exit_code == 0, result.output
    assert "seconds of audio a second" in result.output
    rows = json.loads((tmp_path / "bench.json").read_text())["levels"]
    assert [(r["level"], r["batch"], r["precision"]) for r in rows] == [(0, 2, "fp32"), (1, 2, "fp32"), (2, 2, "fp32")]
    assert_one_line_error(cli("bench", tiny_run, "--precision", "int3"), "precision", "int3", "fp16")
