"""A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, grouped KV heads, sliding window."""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from audiovq.config import Config
from audiovq.prior.kv_cache import KVCache, Prefix, window_mask

Angles = tuple[Tensor, Tensor]  # cosine and sine of each position, [t, head_dim / 2]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head [b, h, t, head_dim] against each other by the position's angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)


class TransformerConfig(Config):
    dim: int = Field(default=256, ge=8, le=1 << 16)
    n_layers: int = Field(default=6, ge=1, le=1024)
    n_heads: int = Field(default=4, ge=1, le=4096)
    # Fewer than n_heads: queries share keys and values (arXiv:2305.13245); null: as many.
    n_kv_heads: int | None = Field(default=None, le=4096)
    mlp_ratio: float = Field(default=2.667, gt=0, le=64)  # hidden width of SwiGLU over dim
    context: int = Field(default=512, ge=2, le=1 << 16)  # codes in a training window
    attention_window: int | None = Field(default=None, ge=1, le=1 << 16)  # codes to attend to; null: the context
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of the input, and of the outputs of attention and MLP

    @model_validator(mode="after")
    def _check(self) -> "TransformerConfig":
        if self.dim % self.n_heads or (self.dim // self.n_heads) % 2:
            raise ValueError(f"dim: expected an even multiple of n_heads {self.n_heads}, found {self.dim}")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads: expected a divisor of n_heads {self.n_heads}, found {self.n_kv_heads}")
        if self.window > self.context:
            raise ValueError(f"attention_window: expected at most the context {self.context}, found {self.window}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def window(self) -> int:
        return self.attention_window or self.context

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def hidden(self) -> int:
        """Width of the MLP, a multiple of 8."""
        return int(self.mlp_ratio * self.dim + 7) // 8 * 8


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.qkv = nn.Linear(config.dim, (config.n_heads + 2 * config.kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, angles: Angles, mask: Tensor | None, causal: bool, cache: Any) -> Tensor:
        c = self.config
        heads = rearrange(self.qkv(x), "b t (h d) -> b h t d", d=c.head_dim)
        q, k, v = heads.split([c.n_heads, c.kv_heads, c.kv_heads], dim=1)
        q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:  # the keys and values of earlier positions come before the new ones
            k, v = cache.extend(self.layer, k, v)
        # No dropout here: on a CPU, PyTorch's fast attention has none and the slow one takes twice the time.
        grouped = c.kv_heads != c.n_heads
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.out(rearrange(y, "b h t d -> b t (h d)"))


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.dim)
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, angles: Angles, mask: Tensor | None, causal: bool, cache: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), angles, mask, causal, cache))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.down(F.silu(gate) * up))  # SwiGLU, arXiv:2002.05202


class Transformer(nn.Module):
    """[b, t, dim] -> [b, t, dim], causal. With a cache the input continues what the cache has seen. With a prefix of
    `n_prefix` tokens, every position attends to all of them and to its window. Half of each head then does not rotate,
    and only this half meets the prefix. So the prefix has the same effect at all positions, and what is learned from
    short training windows holds in long pieces."""

    def __init__(self, config: TransformerConfig, n_prefix: int = 0):
        super().__init__()
        self.config, self.n_prefix = config, n_prefix
        self.n_fixed = config.head_dim // 4 if n_prefix else 0  # pairs of dimensions
        self.recompute = False  # in training: compute a layer's activations again in the backward pass
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # outputs of the residual branches start smaller (GPT-2, section 2.3)
                branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.n_layers) ** 0.5 if branch else 0.02)

    def new_cache(self, batch: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch` items, default in the weights' dtype; `write_prefix` adds a prefix."""
        c, weight = self.config, self.norm.weight
        shape = (2, c.n_layers, batch, c.kv_heads, self.n_prefix + c.window, c.head_dim)
        return KVCache(torch.zeros(shape, device=weight.device, dtype=dtype or weight.dtype), c.window)

    def angles(self, positions: Tensor) -> Angles:
        """The rotation of queries and keys at `positions` [t] (RoFormer, arXiv:2104.09864, section 3.2); the `n_fixed`
        slowest pairs of dimensions do not rotate (p-RoPE, arXiv:2410.06205)."""
        dim = self.config.head_dim
        positions = positions if positions.is_floating_point() else positions.float()
        frequencies = 10000 ** (-torch.arange(0, dim, 2, device=positions.device).to(positions) / dim)
        frequencies[dim // 2 - self.n_fixed :] = 0
        angles = positions[:, None] * frequencies
        return angles.cos().float(), angles.sin().float()

    def read_prefix(self, tokens: Tensor) -> Prefix:
        """Keys and values of prefix tokens [b, n_prefix, dim], which attend to each other and to no code."""
        prefix, n_pairs = Prefix(), self.config.head_dim // 2
        # Pairs that rotate elsewhere become 0 here, so that only the fixed half of a query meets the prefix.
        fixed = torch.arange(n_pairs, device=tokens.device) >= n_pairs - self.n_fixed
        angles = fixed.float()[None], torch.zeros_like(fixed).float()[None]
        for layer in self.layers:
            tokens = layer(tokens, angles, None, False, prefix)
        prefix.output = tokens
        return prefix

    def forward(self, x: Tensor, cache: KVCache | None = None, prefix: Prefix | None = None) -> Tensor:
        """Args: prefix: required without a cache if there is one; a cache contains it."""
        assert cache is not None or (prefix is not None) == (self.n_prefix > 0), "expected the prefix of the config"
        t, window = x.shape[1], self.config.window
        # A whole sequence within the window: attention has a fast path for a plain causal mask.
        causal = 1 < t <= window and not self.n_prefix and (cache is None or cache.length == 0)
        if cache is not None:
            positions, mask = cache.positions(t), None if causal else cache.mask(t)
        else:
            positions = torch.arange(t, device=x.device)
            mask = None if causal or t == 1 else window_mask(t, 0, window, x.device, self.n_prefix)
        if self.training and prefix is not None and prefix.output is not None:
            # Sharded weights are gathered in the backward pass only for layers whose output is used.
            # Nothing else uses the output of the prefix's last layer.
            x = x + 0 * prefix.output.sum()
        angles, past = self.angles(positions), cache if cache is not None else prefix
        for layer in self.layers:
            call: Any = partial(checkpoint, layer, use_reentrant=False) if self.recompute and self.training else layer
            x = call(x, angles, mask, causal, past)
        if cache is not None:
            cache.advance(t)
        return self.norm(x)
