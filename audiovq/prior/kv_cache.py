"""Keys and values of past codes, in a ring of the attention window's size: any length at constant memory.

Those of a prefix (text, or the codes behind a gap) lie before the ring and stay.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Prefix:
    """Keys and values [batch, kv_heads, n, head_dim] a layer, that every code may attend to. Filled layer by layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

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
        shape = (n_layers, batch, n_kv_heads, n_prefix + window, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.window, self.n_prefix = window, n_prefix
        self.length = 0  # positions seen so far; a Python integer, so the loop never waits for the device

    def write_prefix(self, prefix: Prefix) -> None:
        """Set what all codes from here on may attend to, at any time."""
        assert len(prefix) == self.n_prefix, f"expected a prefix of {self.n_prefix} tokens, found {len(prefix)}"
        for layer, (keys, values) in enumerate(prefix.layers):
            self.keys[layer, :, :, : self.n_prefix] = keys
            self.values[layer, :, :, : self.n_prefix] = values

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, kv_heads, t, head_dim] and return what the new positions may attend to.

        The prefix, then for t = 1 the filled slots in ring order (attention does not care for order); for t > 1 the last
        window - 1 old positions followed by the new ones, in order. Call `advance` after the last layer.
        """
        t = keys.shape[2]
        ring = torch.arange(self.length, self.length + t, device=keys.device) % self.window if t > 1 else None
        if ring is None:
            slot = self.n_prefix + self.length % self.window
            self.keys[layer, :, :, slot] = keys[:, :, 0]
            self.values[layer, :, :, slot] = values[:, :, 0]
            filled = self.n_prefix + min(self.length + 1, self.window)
            return self.keys[layer, :, :, :filled], self.values[layer, :, :, :filled]
        all_keys = torch.cat([self._past(self.keys[layer]), keys], dim=2)
        all_values = torch.cat([self._past(self.values[layer]), values], dim=2)
        kept = self.n_prefix + ring[-self.window :]
        self.keys[layer, :, :, kept] = keys[:, :, -self.window :]
        self.values[layer, :, :, kept] = values[:, :, -self.window :]
        return all_keys, all_values

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
