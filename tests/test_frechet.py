"""Fréchet distance against the closed form, NumPy and SciPy; the embedding against musicnn's published values."""

import numpy as np
import pytest
import scipy.linalg

from audiovq.evaluation.frechet import (
    frechet_distance,
    frechet_estimate,
    frechet_floor,
    gaussian_distance,
    principal_axes,
)  # fmt: skip


def random_covariance(dim: int, seed: int, rank: int | None = None) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(dim, rank or 2 * dim))
    return x @ x.T / x.shape[1]


def test_gaussians_equal_the_closed_form() -> None:
    one = gaussian_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    assert one == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)  # of one dimension: (Δ mean)² + (Δ deviation)²
    a, b = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 1.0, 25.0])
    assert gaussian_distance(np.zeros(3), a, np.zeros(3), b) == pytest.approx(2**2 + 1**2 + 5**2)
    a, b = random_covariance(20, 0), random_covariance(20, 1)
    means = np.random.default_rng(2).normal(size=(2, 20))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(a + b - 2 * np.real(scipy.linalg.sqrtm(a @ b)))
    assert gaussian_distance(means[0], a, means[1], b) == pytest.approx(expected, rel=1e-8)


def test_singular_covariances_are_exact() -> None:
    a = random_covariance(50, 0, rank=5)
    assert gaussian_distance(np.zeros(50), a, np.zeros(50), a) == pytest.approx(0, abs=1e-9)
    assert gaussian_distance(np.zeros(50), a, np.zeros(50), 9 * a) == pytest.approx((3 - 1) ** 2 * np.trace(a))


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
    axes = principal_axes(reference[0], 2)
    assert np.abs(axes.T @ rotation[:, :2]) == pytest.approx(np.eye(2), abs=0.02)
    moved = [reference[0] + 5 * rotation[:, 2]]  # only along the least axis
    assert frechet_distance(moved, reference, 3) == pytest.approx(25, rel=1e-6)
    assert frechet_distance(moved, reference, 2) == pytest.approx(0, abs=0.05)
    with pytest.raises(ValueError, match="1 to 3, found 4"):
        frechet_distance(moved, reference, 4)


def test_the_floor_is_far_below_another_set_and_splits_by_track() -> None:
    random = np.random.default_rng(0)
    real = [random.normal(size=(50, 3)) for _ in range(10)]
    other = [track + 2 for track in real]
    floor = frechet_floor(real)
    assert floor is not None
    assert floor < 0.1 < frechet_distance(other, real)
    clustered = [random.normal(size=(50, 3)) + 5 * random.normal(size=3) for _ in range(10)]  # tracks differ much
    assert (frechet_floor(clustered) or 0) > 10 * floor
    halves = frechet_distance([real[0][:25]], [real[0][25:]])
    assert frechet_floor(real[:1]) == pytest.approx(halves, rel=0.3)  # which half is the reference does not matter much
    assert frechet_floor([real[0][:3]]) is None
    assert frechet_floor(real) == floor


def test_the_interval_holds_the_truth_and_is_wider_for_few_tracks() -> None:
    random = np.random.default_rng(0)

    def tracks(n: int, shift: float) -> list[np.ndarray]:
        return [random.normal(size=(100, 2)) + 0.3 * random.normal(size=2) + shift for _ in range(n)]

    few, many = (frechet_estimate(tracks(n, 2.0), tracks(n, 0.0)) for n in (6, 60))
    for estimate in (few, many):
        assert estimate.half_width is not None
        assert abs(estimate.value - 8) < 1.5 * estimate.half_width
    assert many.half_width < few.half_width  # type: ignore[operator]
    assert frechet_estimate(tracks(1, 0), tracks(6, 0)).half_width is None


def test_too_little_music_and_unequal_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two windows"):
        frechet_distance([], [np.zeros((5, 3))])
    with pytest.raises(ValueError, match="equal dimension, found 2 and 3"):
        frechet_distance([np.zeros((5, 2))], [np.zeros((5, 3))])
