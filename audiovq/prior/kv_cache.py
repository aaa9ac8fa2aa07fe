"""Keys and values of past codes, in a ring of the attention window's size: any length at constant memory."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Preallocated ring buffers [layers, batch, kv_heads, window, head_dim]; slot = position modulo window."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        window: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        shape = (n_layers, batch, n_kv_heads, window, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.window = window
        self.length = 0  # positions seen so far; a Python integer, so the loop never waits for the device

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, kv_heads, t, head_dim] and return what the new positions may attend to.

        For t = 1 the filled slots in ring order (attention does not care for order); for t > 1 the last window - 1
        old positions followed by the new ones, in order. Call `advance` after the last layer.
        """
        t = keys.shape[2]
        ring = torch.arange(self.length, self.length + t, device=keys.device) % self.window if t > 1 else None
        if ring is None:
            slot = self.length % self.window
            self.keys[layer, :, :, slot] = keys[:, :, 0]
            self.values[layer, :, :, slot] = values[:, :, 0]
            filled = min(self.length + 1, self.window)
            return self.keys[layer, :, :, :filled], self.values[layer, :, :, :filled]
        all_keys = torch.cat([self._past(self.keys[layer]), keys], dim=2)
        all_values = torch.cat([self._past(self.values[layer]), values], dim=2)
        kept = ring[-self.window :]
        self.keys[layer, :, :, kept] = keys[:, :, -self.window :]
        self.values[layer, :, :, kept] = values[:, :, -self.window :]
        return all_keys, all_values

    @property
    def n_past(self) -> int:
        """How many old positions a new one may still attend to."""
        return min(self.length, self.window - 1)

    def _past(self, ring: Tensor) -> Tensor:
        index = torch.arange(self.length - self.n_past, self.length, device=ring.device) % self.window
        return ring[:, :, index]

    def advance(self, n: int) -> None:
        self.length += n
