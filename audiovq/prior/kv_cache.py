"""Keys and values of past codes, in a ring of the attention window's size: any length at constant memory. Those of a
prefix (text, or the codes after a gap) come before the ring and stay."""

import torch
from torch import Tensor
from torch.nn import functional as F


def window_mask(n_new: int, n_past: int, window: int, device: torch.device, n_prefix: int = 0) -> Tensor:
    """What new positions attend to, bool [n_new, n_prefix + n_past + n_new]: the prefix, themselves, and
    `window - 1` before."""
    query = torch.arange(n_past, n_past + n_new, device=device)[:, None]
    key = torch.arange(n_past + n_new, device=device)[None]
    return F.pad((key <= query) & (key > query - window), (n_prefix, 0), value=True)


class Prefix:
    """Keys and values [batch, kv_heads, n_prefix, head_dim] of each layer, filled layer by layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.output: Tensor | None = None  # of the last layer

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values while the prefix is read; later, put them before those of codes."""
        if layer == len(self.layers):
            self.layers.append((keys, values))
            return keys, values
        prefix_keys, prefix_values = self.layers[layer]
        return torch.cat([prefix_keys, keys], dim=2), torch.cat([prefix_values, values], dim=2)


class KVCache:
    """A position's slot is n_prefix + position modulo window. `buffers` has keys and values:
    [2, layers, batch, kv_heads, n_prefix + window, head_dim]."""

    def __init__(self, buffers: Tensor, window: int, length: int = 0):
        self.both = buffers
        self.keys, self.values = buffers
        self.window, self.n_prefix = window, buffers.shape[-2] - window
        self.length = length  # positions so far; not a tensor, so that the loop never waits for the device

    def write_prefix(self, prefix: Prefix) -> None:
        """Set what all codes from now on attend to besides their window; possible at any time."""
        for layer, (keys, values) in enumerate(prefix.layers):
            assert keys.shape[2] == self.n_prefix, f"expected a prefix of {self.n_prefix} tokens, found {keys.shape[2]}"
            self.keys[layer, :, :, : self.n_prefix] = keys
            self.values[layer, :, :, : self.n_prefix] = values

    def positions(self, n: int) -> Tensor:
        """Those of the next n codes, int64 [n]."""
        return torch.arange(self.length, self.length + n, device=self.keys.device)

    def mask(self, n: int) -> Tensor | None:
        """What the next n codes attend to, of what `extend` returns; None is all of it."""
        return None if n == 1 else window_mask(n, self.n_past, self.window, self.keys.device, self.n_prefix)

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, kv_heads, t, head_dim] and return what the new positions may attend to: the prefix,
        then for t = 1 the filled slots, in ring order, else the last old positions and the new ones."""
        t = keys.shape[2]
        if t == 1:
            self.keys[layer, :, :, self.slot] = keys[:, :, 0]
            self.values[layer, :, :, self.slot] = values[:, :, 0]
            return self.keys[layer, :, :, : self.n_seen], self.values[layer, :, :, : self.n_seen]
        all_keys = torch.cat([self._past(self.keys[layer]), keys], dim=2)
        all_values = torch.cat([self._past(self.values[layer]), values], dim=2)
        slots = self.n_prefix + self.positions(t)[-self.window :] % self.window
        self.keys[layer, :, :, slots] = keys[:, :, -self.window :]
        self.values[layer, :, :, slots] = values[:, :, -self.window :]
        return all_keys, all_values

    @property
    def slot(self) -> int:
        return self.n_prefix + self.length % self.window

    @property
    def n_seen(self) -> int:
        """How many slots, from the first on, the next position attends to, its own included."""
        return self.n_prefix + min(self.length + 1, self.window)

    @property
    def n_past(self) -> int:
        """How many old positions a new one may attend to."""
        return min(self.length, self.window - 1)

    def _past(self, slots: Tensor) -> Tensor:
        """The prefix and the old positions, in order."""
        ring = torch.arange(self.length - self.n_past, self.length, device=slots.device) % self.window
        return slots[:, :, torch.cat([torch.arange(self.n_prefix, device=slots.device), self.n_prefix + ring])]

    def advance(self, n: int) -> None:
        self.length += n


class DeviceKVCache(KVCache):
    """A cache that reads the position of a single step from a tensor, so that a CUDA graph can replay the
    step for every position. A step attends to the whole ring, with a mask of the filled slots."""

    def __init__(self, buffers: Tensor, window: int):
        super().__init__(buffers, window)
        self.position = torch.zeros(1, dtype=torch.int64, device=buffers.device)  # equals `length`
        self.slots = torch.arange(self.keys.shape[3], device=buffers.device) - self.n_prefix

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
