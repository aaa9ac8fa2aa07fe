"""Logits → code: counter-based noise, temperature, top-k, top-p and the Gumbel-max draw.

All of it gives what audiovq gives, to the bit for equal logits.
"""

import numpy as np


def gumbel_noise(seed: int, item: int, level: int, start: int, end: int, size: int) -> np.ndarray:
    """Standard Gumbel noise for positions [start, end), float32 [end - start, size].

    The key is seed, item and level, and the counter is the position, so positions can be drawn in any order.

    Source: Philox, Salmon 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    mask = 2**64 - 1
    blocks = -(-size // 4)  # one counter value gives four 64-bit words
    bits = np.random.Philox(key=[seed & mask, (item << 8 | level) & mask], counter=[start * blocks, 0, 0, 0])
    words = bits.random_raw((end - start) * blocks * 4).reshape(end - start, blocks * 4)[:, :size]
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # strictly inside (0, 1)
    return (-np.log(-np.log(uniform))).astype(np.float32)


def next_code(logits: np.ndarray, noise: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0) -> int:
    """Draw a code: argmax(logits / temperature + Gumbel noise) is a draw from softmax(logits / temperature).

    Args:
        logits, noise: float32 [codebook_size].
        temperature: 0 takes the most likely code.
        top_k: draw from the k most likely codes, and ties with the last of them; 0 is all.
        top_p: draw from the most likely codes that together have this probability.
    Raises:
        ValueError: logits that are not finite.
    """
    if temperature == 0:
        return _finite(logits, int(logits.argmax()))
    logits = logits / np.float32(temperature)
    if 0 < top_k < len(logits):
        threshold = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < threshold, np.float32(-np.inf), logits)
    if top_p < 1:
        ordered = np.sort(logits)[::-1]
        likelihoods = np.exp(ordered - ordered[0])
        probabilities = likelihoods / likelihoods.sum()
        before = probabilities.cumsum(dtype=np.float64).astype(np.float32) - probabilities  # of more likely codes
        threshold = ordered[np.flatnonzero(before < np.float32(top_p))[-1]]  # 0 for the first, so one is kept
        logits = np.where(logits < threshold, np.float32(-np.inf), logits)
    return _finite(logits, int((logits + noise).argmax()))


def _finite(logits: np.ndarray, code: int) -> int:
    if not np.isfinite(logits[code]):
        raise ValueError("prior: expected finite logits, found NaN or infinity; export the model again")
    return code
