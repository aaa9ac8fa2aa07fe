"""Fréchet distance between two sets of embeddings: one figure for how far generated music is from real music.

Heusel 2017 (arXiv:1706.08500, section 2) for images, Kilgour 2018 (arXiv:1812.08466) for audio: each set is taken for a
Gaussian, and the distance is |μa − μb|² + tr Ca + tr Cb − 2 tr (Ca Cb)^½. The estimate is biased upward for small sets
(arXiv:2311.01616, section 3.1), so compare only sets of like size, and look at the floor: real music against real music.

A set is a list of arrays float [windows, dim], one a track, because windows of one track are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audiovq.evaluation.confidence import Estimate

Tracks = Sequence[np.ndarray]


def gaussian_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Fréchet distance of two Gaussians; means [dim], covariances [dim, dim], which may be singular.

    tr (Ca Cb)^½ is the sum of the singular values of Ca^½ Cb^½: no square root of rounding errors, never complex.
    """
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(tracks: Tracks, reference: Tracks, n_components: int | None = None) -> float:
    """From one set to the reference set, by their sample means and covariances.

    Args:
        n_components: compare only the first principal components of the reference (at least 10 windows a component are
            wanted); default all dimensions.
    Raises:
        ValueError: a set of fewer than two windows, unequal dimensions, or more components than dimensions.
    """
    a, b = _stack(tracks), _stack(reference)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected embeddings of equal dimension, found {a.shape[1]} and {b.shape[1]}")
    if n_components is not None:
        axes = principal_axes(b, n_components)
        a, b = a @ axes, b @ axes
    return gaussian_distance(a.mean(axis=0), np.cov(a.T).reshape(a.shape[1], -1), b.mean(axis=0),
                             np.cov(b.T).reshape(b.shape[1], -1))  # fmt: skip


def principal_axes(embeddings: np.ndarray, n_components: int) -> np.ndarray:
    """The directions of largest variance, [dim, n_components], largest first."""
    if not 1 <= n_components <= embeddings.shape[1]:
        raise ValueError(f"n_components: expected 1 to {embeddings.shape[1]}, found {n_components}")
    _, vectors = np.linalg.eigh(np.cov(embeddings.T).reshape(embeddings.shape[1], -1))
    return vectors[:, ::-1][:, :n_components]


def _stack(tracks: Tracks) -> np.ndarray:
    stacked = np.concatenate(list(tracks)).astype(np.float64) if len(tracks) else np.zeros((0, 1))
    if len(stacked) < 2:
        raise ValueError(
            f"expected at least two windows of embeddings, found {len(stacked)}; take longer or more music"
        )
    return stacked


def frechet_floor(reference: Tracks, n_components: int | None = None, n_splits: int = 8, seed: int = 0) -> float | None:
    """What the distance is between real and real: mean over random halves of the reference, split by track.

    A single track is split into its first and second half. None if a half has fewer than two windows.
    """
    random = np.random.default_rng(seed)
    parts = list(reference) if len(reference) > 1 else np.array_split(reference[0], 2)
    distances = []
    for _ in range(n_splits if len(parts) > 2 else 1):
        order = random.permutation(len(parts))
        a, b = ([parts[i] for i in half] for half in np.array_split(order, 2))
        if min(sum(map(len, a)), sum(map(len, b))) < 2:
            return None
        distances.append(frechet_distance(a, b, n_components))
    return float(np.mean(distances))


def frechet_estimate(
    tracks: Tracks, reference: Tracks, n_components: int | None = None, n_resamples: int = 100, seed: int = 0
) -> Estimate:
    """`frechet_distance` with a 95 % interval by the bootstrap over tracks of both sets.

    The half-width is 1.96 standard deviations of the resampled distances (the normal interval of Efron and Tibshirani
    1993, section 12.5): resampling raises the biased distance itself, so its percentiles would not hold the estimate.
    """
    value = frechet_distance(tracks, reference, n_components)
    if min(len(tracks), len(reference)) < 2:
        return Estimate(value, None)
    random = np.random.default_rng(seed)
    resampled = []
    for _ in range(n_resamples):
        a, b = ([group[i] for i in random.integers(len(group), size=len(group))] for group in (tracks, reference))
        resampled.append(frechet_distance(a, b, n_components))
    return Estimate(value, 1.96 * float(np.std(resampled, ddof=1)))
