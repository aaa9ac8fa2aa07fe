"""Fréchet distance between two sets of embeddings, a measure of how far generated music is from real music.

Each set is modelled as a Gaussian; the distance is |μa − μb|² + tr Ca + tr Cb − 2 tr (Ca Cb)^½ (Heusel 2017
for images, arXiv:1706.08500, section 2; Kilgour 2018 for audio, arXiv:1812.08466). The estimate is biased
upward for small sets (arXiv:2311.01616, section 3.1), so compare only sets of like size, and compare with
the distance between two sets of real music.

A set is a list of arrays float [windows, dim], one per track, because windows of one track are not
independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audiovq.evaluation.confidence import Estimate

N_SPLITS, N_RESAMPLES = 8, 100
Tracks = Sequence[np.ndarray]


def gaussian_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Fréchet distance of two Gaussians.

    tr (Ca Cb)^½ is computed as the sum of the singular values of Ca^½ Cb^½, which is real and exact for
    singular matrices.

    Args:
        mean_a, mean_b: float [dim].
        cov_a, cov_b: float [dim, dim], may be singular.
    """
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(tracks: Tracks, reference: Tracks, n_components: int | None = None) -> float:
    """The distance between a set and the reference, by their sample means and covariances.

    Args:
        n_components: compare only this many principal components of the reference; default all dimensions.
            At least ten windows per component are recommended.
    Raises:
        ValueError: fewer than two windows, unequal dimensions, or more components than dimensions.
    """
    a, b = _stack(tracks), _stack(reference)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected embeddings of equal dimension, found {a.shape[1]} and {b.shape[1]}")
    if n_components is not None:
        axes = principal_axes(b, n_components)
        a, b = a @ axes, b @ axes
    return gaussian_distance(a.mean(axis=0), _covariance(a), b.mean(axis=0), _covariance(b))


def _covariance(windows: np.ndarray) -> np.ndarray:
    return np.cov(windows.T).reshape(windows.shape[1], -1)  # [1, 1] instead of a scalar for one dimension


def principal_axes(embeddings: np.ndarray, n_components: int) -> np.ndarray:
    """The directions of largest variance, float [dim, n_components], largest first."""
    if not 1 <= n_components <= embeddings.shape[1]:
        raise ValueError(f"n_components: expected 1 to {embeddings.shape[1]}, found {n_components}")
    _, vectors = np.linalg.eigh(_covariance(embeddings))
    return vectors[:, ::-1][:, :n_components]


def _stack(tracks: Tracks) -> np.ndarray:
    stacked = np.concatenate(list(tracks)).astype(np.float64) if len(tracks) else np.zeros((0, 1))
    if len(stacked) < 2:
        raise ValueError(f"expected at least two windows of embeddings, found {len(stacked)}; use more music")
    return stacked


def frechet_floor(reference: Tracks, n_components: int | None = None) -> float | None:
    """The distance between two halves of the reference, split by track at random; the mean of several splits.

    A single track is split into its first and second half. The result is None if a half has fewer than two
    windows.
    """
    random = np.random.default_rng(0)
    parts = list(reference) if len(reference) > 1 else np.array_split(reference[0], 2)
    distances = []
    for _ in range(N_SPLITS if len(parts) > 2 else 1):
        order = random.permutation(len(parts))
        a, b = ([parts[i] for i in half] for half in np.array_split(order, 2))
        if min(sum(map(len, a)), sum(map(len, b))) < 2:
            return None
        distances.append(frechet_distance(a, b, n_components))
    return float(np.mean(distances))


def frechet_estimate(tracks: Tracks, reference: Tracks, n_components: int | None = None) -> Estimate:
    """`frechet_distance` with a 95 % confidence interval by the bootstrap over the tracks of both sets.

    The half-width is 1.96 standard deviations of the resampled distances. (Resampling raises the distance,
    which is biased, so an interval of percentiles would not contain the estimate.)

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 12.5: the normal interval.
    """
    value = frechet_distance(tracks, reference, n_components)
    if min(len(tracks), len(reference)) < 2:
        return Estimate(value, None)
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(N_RESAMPLES):
        a, b = ([g[i] for i in random.integers(len(g), size=len(g))] for g in (tracks, reference))
        resampled.append(frechet_distance(a, b, n_components))
    return Estimate(value, 1.96 * float(np.std(resampled, ddof=1)))
