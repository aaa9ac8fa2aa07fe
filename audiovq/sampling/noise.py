"""Counter-based noise: a pure function of (seed, item, level, position), whatever the batch."""

import numpy as np
import torch
from torch import Tensor


def gumbel_noise(seed: int, item: int, level: int, start: int, end: int, size: int) -> Tensor:
    """Standard Gumbel noise for positions [start, end), float32 [end - start, size].

    The key is seed, item and level, and the counter is the position, so positions can be drawn in any order.

    Source: Philox, Salmon 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    mask = 2**64 - 1
    blocks = -(-size // 4)  # one counter value gives four 64-bit words
    bits = np.random.Philox(key=[seed & mask, (item << 8 | level) & mask], counter=[start * blocks, 0, 0, 0])
    words = bits.random_raw((end - start) * blocks * 4).reshape(end - start, blocks * 4)[:, :size]
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # strictly inside (0, 1)
    return torch.from_numpy(-np.log(-np.log(uniform))).float()
