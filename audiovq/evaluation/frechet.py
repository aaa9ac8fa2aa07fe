"""Fréchet distance between two sets of embeddings, a measure of how far generated music is from real music.

Each set is modelled as a Gaussian; the distance is |μa − μb|² + tr Ca + tr Cb − 2 tr (Ca Cb)^½ (Heusel 2017,
arXiv:1706.08500, section 2; Kilgour 2018 for audio, arXiv:1812.08466). The estimate is biased upward for small
sets (arXiv:2311.01616, section 3.1): compare sets of like size. A set has a float [windows, dim] per track.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torchaudio

from audiovq.evaluation.tables import Estimate

N_RESAMPLES = 100
Tracks = Sequence[np.ndarray]


def frechet_distance(tracks: Tracks, reference: Tracks, n_components: int | None = None) -> float:
    """The distance between a set and the reference, by their sample means and covariances, in all dimensions
    or the first `n_components` principal components of the reference (ten windows or more per component are
    recommended). Raises ValueError for fewer than two windows, or unequal dimensions."""
    n_windows = min(sum(map(len, tracks)), sum(map(len, reference)))
    if n_windows < 2:
        raise ValueError(f"expected at least two windows of embeddings, found {n_windows}; use more music")
    a, b = np.concatenate(list(tracks)).astype(np.float64), np.concatenate(list(reference)).astype(np.float64)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"expected embeddings of equal dimension, found {a.shape[1]} and {b.shape[1]}")
    if n_components is not None:
        _, axes = np.linalg.eigh(np.atleast_2d(np.cov(b.T)))  # ascending by their variance
        a, b = a @ axes[:, -n_components:], b @ axes[:, -n_components:]
    means = [torch.from_numpy(windows.mean(axis=0)) for windows in (a, b)]
    covariances = [torch.from_numpy(np.atleast_2d(np.cov(windows.T))) for windows in (a, b)]
    return max(0.0, float(torchaudio.functional.frechet_distance(means[0], covariances[0], means[1], covariances[1])))


def frechet_estimate(tracks: Tracks, reference: Tracks, n_components: int | None = None) -> Estimate:
    """`frechet_distance` with a 95 % confidence interval by the bootstrap over the tracks of both sets. The half-width
    is 1.96 standard deviations of the resampled distances, the normal interval (Efron and Tibshirani 1993, section
    12.5): resampling raises the distance, so percentiles might not contain the estimate."""
    value = frechet_distance(tracks, reference, n_components)
    if min(len(tracks), len(reference)) < 2:
        return {"mean": value, "ci95": None}
    random = np.random.default_rng(0)
    resampled = []
    for _ in range(N_RESAMPLES):
        a, b = ([g[i] for i in random.integers(len(g), size=len(g))] for g in (tracks, reference))
        resampled.append(frechet_distance(a, b, n_components))
    return {"mean": value, "ci95": 1.96 * float(np.std(resampled, ddof=1))}
