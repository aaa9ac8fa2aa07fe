"""Keys and values of past codes, in a ring of the attention window's size: any length at constant memory.

Those of a prefix (text, or the codes behind a gap) lie before the ring and stay.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F


def window_mask(n_new: int, n_past: int, window: int, device: torch.device) -> Tensor:
    """True where a new position may look: bool [n_new, n_past + n_new], causal, at most `window` back with itself."""
    query = torch.arange(n_past, n_past + n_new, device=device)[:, None]
    key = torch.arange(n_past + n_new, device=device)[None]
    return (key <= query) & (key > query - window)


class Prefix:
    """Keys and values [batch, kv_heads, n, head_dim] a layer, that every code may attend to. Filled layer by layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.output: Tensor | None = None  # of the last layer

    def __len__(self) -> int:
        return self.layers[0][0].shape[2]

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep those of the prefix itself, and return them; once kept, return them with those of codes behind."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
            return keys, values
        kept_keys, kept_values = self.layers[layer]
        return torch.cat([kept_keys, keys], dim=2), torch.cat([kept_values, values], dim=2)


class KVCache:
    """Preallocated buffers [layers, batch, kv_heads, n_prefix + window, head_dim]; slot = n_prefix + position modulo
    window."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        window: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        n_prefix: int = 0,
    ):
        shape = (2, n_layers, batch, n_kv_heads, n_prefix + window, head_dim)
        self.both = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.both
        self.window, self.n_prefix = window, n_prefix
        self.length = 0  # positions seen so far; a Python integer, so the loop never waits for the device

    def write_prefix(self, prefix: Prefix) -> None:
        """Set what all codes from here on may attend to, at any time."""
        assert len(prefix) == self.n_prefix, f"expected a prefix of {self.n_prefix} tokens, found {len(prefix)}"
        for layer, (keys, values) in enumerate(prefix.layers):
            self.keys[layer, :, :, : self.n_prefix] = keys
            self.values[layer, :, :, : self.n_prefix] = values

    def positions(self, n: int) -> Tensor:
        """int64 [n], those of the next n codes."""
        return torch.arange(self.length, self.length + n, device=self.keys.device)

    def mask(self, n: int) -> Tensor | None:
        """What the next n codes may see of what `extend` returns; None is all of it."""
        if n == 1:
            return None
        mask = window_mask(n, self.n_past, self.window, self.keys.device)
        return F.pad(mask, (self.n_prefix, 0), value=True)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, kv_heads, t, head_dim] and return what the new positions may attend to.

        The prefix, then for t = 1 the filled slots in ring order (attention does not care for order); for t > 1 the last
        window - 1 old positions followed by the new ones, in order. Call `advance` after the last layer.
        """
        t = keys.shape[2]
        if t == 1:
            self.keys[layer, :, :, self.slot] = keys[:, :, 0]
            self.values[layer, :, :, self.slot] = values[:, :, 0]
            return self.keys[layer, :, :, : self.n_seen], self.values[layer, :, :, : self.n_seen]
        all_keys = torch.cat([self._past(self.keys[layer]), keys], dim=2)
        all_values = torch.cat([self._past(self.values[layer]), values], dim=2)
        kept = (
            torch.arange(self.length, self.length + t, device=keys.device)[-self.window :] % self.window + self.n_prefix
        )
        self.keys[layer, :, :, kept] = keys[:, :, -self.window :]
        self.values[layer, :, :, kept] = values[:, :, -self.window :]
        return all_keys, all_values

    @property
    def slot(self) -> int:
        """Where the next position goes."""
        return self.n_prefix + self.length % self.window

    @property
    def n_seen(self) -> int:
        """How many slots, from the first on, the next position sees when it is in its own."""
        return self.n_prefix + min(self.length + 1, self.window)

    @property
    def n_past(self) -> int:
        """How many old positions a new one may still attend to."""
        return min(self.length, self.window - 1)

    def _past(self, slots: Tensor) -> Tensor:
        """The prefix and the old positions, in order."""
        ring = torch.arange(self.length - self.n_past, self.length, device=slots.device) % self.window
        prefix = torch.arange(self.n_prefix, device=slots.device)
        return slots[:, :, torch.cat([prefix, self.n_prefix + ring])]

    def advance(self, n: int) -> None:
        self.length += n

    def row(self, index: int) -> KVCache:
        """The cache of one item of the batch alone, in the same memory. Its length is its own."""
        alone = copy.copy(self)
        alone.both = self.both[:, :, index : index + 1]
        alone.keys, alone.values = alone.both
        return alone


class DeviceKVCache(KVCache):
    """A cache that finds the place of a single step from a tensor: the step can then be captured once, as a CUDA graph,
    and replayed for every position. The whole ring is returned, with a mask of what is filled."""

    def __init__(self, cache: KVCache, dtype: torch.dtype):
        self.both = cache.both.to(dtype)
        self.keys, self.values = self.both
        self.window, self.n_prefix, self.length = cache.window, cache.n_prefix, cache.length
        self.position = torch.full((1,), cache.length, dtype=torch.int64, device=self.keys.device)  # equals `length`
        self.slots = torch.arange(self.keys.shape[3], device=self.keys.device) - self.n_prefix

    def positions(self, n: int) -> Tensor:
        return self.position if n == 1 else super().positions(n)

    def mask(self, n: int) -> Tensor | None:
        return (self.slots <= self.position)[None] if n == 1 else super().mask(n)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if keys.shape[2] > 1:
            return super().extend(layer, keys, values)
        slot = self.n_prefix + self.position % self.window
        self.keys[layer].index_copy_(2, slot, keys)
        self.values[layer].index_copy_(2, slot, values)
        return self.keys[layer], self.values[layer]

    def advance(self, n: int) -> None:
        super().advance(n)
        self.position += n

    def seek(self, length: int) -> None:
        """Go on as if `length` positions had been seen; what later slots hold is out of sight until it is overwritten."""
        self.length = length
        self.position.fill_(length)
