"""Logits → code: temperature, top-k, top-p, and the Gumbel-max draw, whose noise depends on the place."""

import math

import numpy as np
import torch
from torch import Tensor


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """-inf for all but the k largest logits of each row, and ties with the k-th."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[..., -1:], -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """-inf outside the smallest set of codes whose probability reaches p (arXiv:1904.09751), and ties."""
    if p >= 1:
        return logits
    if logits.is_cpu:  # NumPy sorts without an index and with vector instructions: ten times faster
        ordered = torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
    else:
        ordered = logits.sort(dim=-1, descending=True).values
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # of all more likely codes; 0 for the first
    threshold = ordered.masked_fill(before >= p, math.inf).amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < threshold, -math.inf)


def next_code(logits: Tensor, noise: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Draw one code per row, int64 [b], of logits and Gumbel noise, float [b, codebook_size]: argmax(logits /
    temperature + noise) is a draw from softmax(logits / temperature) (Gumbel 1954; Maddison 2014,
    arXiv:1411.0030). A temperature of 0 takes the most likely code."""
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(dim=-1)
    return (keep_top_p(keep_top_k(logits / temperature, top_k), top_p) + noise).argmax(dim=-1)


def gumbel_noise(seed: int, item: int, level: int, start: int, end: int, size: int) -> Tensor:
    """Standard Gumbel noise for positions [start, end), float32 [end - start, size]. The key of Philox (Salmon 2011,
    "Parallel random numbers: as easy as 1, 2, 3") is seed, item and level, and the counter is the position, so
    positions can be drawn in any order."""
    mask = 2**64 - 1
    blocks = -(-size // 4)  # one counter value gives four 64-bit words
    bits = np.random.Philox(key=[seed & mask, (item << 8 | level) & mask], counter=[start * blocks, 0, 0, 0])
    words = bits.random_raw((end - start) * blocks * 4).reshape(end - start, blocks * 4)[:, :size]
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # strictly inside (0, 1)
    return torch.from_numpy(-np.log(-np.log(uniform))).float()
