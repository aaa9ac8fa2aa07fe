"""The evaluation of a tokenizer: values of constructed tracks, and the output of the command on a tiny run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import assert_one_line_error, cli, tones

from audiovq.data.codes import Codes
from audiovq.evaluation.evaluate_tokenizer import Reconstruction, evaluate_tracks
from audiovq.evaluation.metrics import METRICS, mel_distance, si_sdr
from audiovq.evaluation.tables import cell, mean_estimate

RATE = 16000


def reconstruction(name: str, seconds: float, gain: float, codes: list[list[int]]) -> Reconstruction:
    """White noise, whose prefixes are `gain` and the square root of `gain` times too loud."""
    source = 0.1 * torch.randn(1, int(seconds * RATE))
    levels = [torch.tensor(level) for level in codes]
    n = source.shape[-1]
    hops = [n // len(level) for level in codes]
    return Reconstruction(name, source, [gain * source, gain**0.5 * source], Codes(levels, n, RATE, hops, 4, 1, ""))


def test_rows_means_and_use_of_codes_have_the_values_of_arithmetic() -> None:
    tracks = [
        reconstruction("a", 1, 2, [[0, 1], [0, 1, 2, 3]]),
        reconstruction("b", 1, 8, [[0, 0], [0, 1, 0, 1]]),
    ]
    report = evaluate_tracks(tracks, {"mel_distance": mel_distance, "si_sdr_db": si_sdr})
    rows = report["tracks"]
    assert [(row["track"], row["levels"]) for row in rows] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    expected = [math.log10(g) for g in (2, 2**0.5, 8, 8**0.5)]
    assert [row["mel_distance"] for row in rows] == pytest.approx(expected, rel=1e-3)
    first, second = report["summary"]
    a, b = expected[0], expected[2]
    assert first["mel_distance"]["mean"] == pytest.approx((a + b) / 2, rel=1e-3)
    assert first["mel_distance"]["ci95"] == pytest.approx(12.7062 * (b - a) / 2, rel=1e-3)  # Student's t of one degree
    assert (first["n_tracks"], first["seconds"]) == (2, 2)
    assert (first["kbps"], second["kbps"]) == pytest.approx((0.004, 0.012))  # 2 bits a code
    top, bottom = report["levels"]
    h = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert (top["n_codes"], top["unigram_bits_per_code"], top["usage"]) == (4, pytest.approx(h), 0.5)
    assert top["perplexity"] == pytest.approx(2**h)
    assert bottom["unigram_bits_per_code"] == pytest.approx(-2 * (3 / 8 * math.log2(3 / 8) + 1 / 8 * math.log2(1 / 8)))
    assert bottom["codes_per_second"] == 4
    assert second["entropy_kbps"] == pytest.approx((4 * h + 8 * bottom["unigram_bits_per_code"]) / 2 / 1000)


def test_no_track_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one track"):
        evaluate_tracks([])


def test_students_interval_holds_the_mean_in_95_of_100_cases() -> None:
    random = np.random.default_rng(0)
    samples = random.normal(size=(2000, 5))
    held = 0
    for sample in samples:
        estimate = mean_estimate(list(sample))
        assert estimate["mean"] is not None
        assert estimate["ci95"] is not None
        held += abs(estimate["mean"]) <= estimate["ci95"]
    assert held / 2000 == pytest.approx(0.95, abs=0.015)
    assert mean_estimate([3.0]) == {"mean": 3.0, "ci95": None}
    assert cell(mean_estimate([1.0, 2.0, 3.0])) == "2.000 ± 2.484"


def test_eval_prints_tables_and_json(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "music"
    (folder / "inner").mkdir(parents=True)
    for i, name in enumerate(("a.wav", "inner/b.wav")):
        soundfile.write(folder / name, tones(2, 8000, seed=9 + i), 8000)
    result = cli("eval", tiny_run, folder, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["track"] for row in report["tracks"]] == ["a.wav"] * 3 + ["inner/b.wav"] * 3
    for row in report["tracks"]:
        assert np.isfinite([row[name] for name in METRICS]).all()
    means = [np.mean([row["mel_distance"] for row in report["tracks"] if row["levels"] == k]) for k in (1, 2, 3)]
    assert [row["mel_distance"]["mean"] for row in report["summary"]] == pytest.approx(means)
    assert report["summary"][2]["kbps"] == pytest.approx(4 * (63 + 125 + 250) / 2 / 1000, rel=0.01)
    assert [level["n_codes"] for level in report["levels"]] == [2 * 63, 2 * 125, 2 * 250]
    for word in ("inner/b.wav", "mean over 2 tracks ± 95 % confidence", "entropy kbps", "perplexity", "3 of 3 levels"):
        assert word in result.output
    printed = cli("eval", tiny_run, folder, "--json", "-")
    again = json.loads(printed.stdout)  # nothing but JSON
    for old, new in zip(report["tracks"], again["tracks"], strict=True):
        assert [old[name] for name in METRICS] == [new[name] for name in METRICS]


def test_the_removed_opinion_score_is_one_line(tiny_run: Path) -> None:
    assert_one_line_error(cli("eval", tiny_run, "--perceptual"), "--perceptual no longer exists")
