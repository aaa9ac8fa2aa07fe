"""One step of a prior, and its prefix, as graphs without state: the keys and values of past codes are inputs."""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior
from audiovq.prior.transformer import Layer

# Inputs of a step and of the prefix, by the conditioners that need them.
STEP_INPUTS = {"labels": "label", "n_samples": "timing", "timing_end": "timing", "chroma": "chroma", "notes": "notes"}
STEP_INPUTS["gap_end"] = "infill"
PREFIX_INPUTS = {"text": "text", "right": "infill"}
KINDS = {*STEP_INPUTS.values(), *PREFIX_INPUTS.values()}


class StepGraph(nn.Module):
    """The logits of one code of each row, with the inputs `names`:

    previous: int64 [b], the code before, or `codebook_size` at a piece's start.
    position: int64 [1], of the code in the piece.
    mask: float [n_prefix + window], 0 for slots to attend to and -1e9 for others; the code itself has no slot yet.
    labels: int64 [b, n_labels], index in the vocabulary plus one; 0 is unknown.
    n_samples, timing_end: int64 [1], length of the piece, and the position where timing stands still.
    chroma, notes: int64 [b], pitch class at this code plus one, or a frame of `data/notes.py`; 0 is unknown.
    gap_end: int64 [1], position of the first code after the gap, or -1.
    coarser: int64 [b, level, 2 · context_codes + 1], around this code at the rate of the next coarser level.
    keys_i, values_i: float [b, kv_heads, n_prefix + window, head_dim] of layer i, a ring after the prefix.

    A prior has only the inputs that its conditioners need. Results: logits [b, codebook_size], and `new`, the keys
    and values of this code, [b, n_layers, 2, kv_heads, head_dim].

    A step is many small operations, and the time of each counts. So there are as few as possible.
    """

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior
        kinds = [c.kind for c in prior.config.conditioners]
        if unknown := sorted(set(kinds) - KINDS):
            found = f"found {unknown[0]}, which has no graph yet"
            raise ValueError(f"onnx: expected conditioners {', '.join(sorted(KINDS))}, {found}")
        self.conditions = [name for name, kind in STEP_INPUTS.items() if kind in kinds]
        self.conditions += ["coarser"] if prior.spec.level else []
        caches = [f"{kind}_{i}" for i in range(prior.config.transformer.n_layers) for kind in ("keys", "values")]
        self.names = ["previous", "position", "mask", *self.conditions, *caches]
        pairs = prior.config.transformer.head_dim // 2
        self.swapped = nn.Buffer(torch.arange(2 * pairs).roll(pairs))  # the halves of a head, exchanged
        if prior.coarser is not None:  # a convolution at one place is a product
            self.around = nn.Buffer(prior.coarser.around.weight.transpose(1, 2).flatten(1).contiguous())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.names, inputs, strict=True))
        transformer = self.prior.transformer
        x = self.prior.embedding(given["previous"]) + self._context(given)  # [b, dim]
        rotation, new = self._rotation(given["position"]), []
        for i, layer in enumerate(transformer.layers):
            assert isinstance(layer, Layer)
            y, *own = self._attend(layer, x, rotation, given["mask"], given[f"keys_{i}"], given[f"values_{i}"])
            x = torch.addmm(x, y, layer.attention.out.weight.T)
            gate, up = layer.gate_up(rms_norm(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate) * up, layer.down.weight.T)
            new += own
        logits = self.prior.possible(self.prior.head(rms_norm(x, transformer.norm)), given["position"])
        c = transformer.config
        return logits, torch.cat(new, dim=1).view(-1, c.n_layers, 2, c.kv_heads, c.head_dim)

    def _context(self, given: dict[str, Tensor]) -> Tensor:
        """What `Prior.context` gives for one code, [b, dim]."""
        batch, position = given["previous"].shape[0], given["position"]
        rows = {name: given[name].expand(batch) for name in ("n_samples", "timing_end", "gap_end") if name in given}
        labels = {name: given["labels"][:, i] for i, name in enumerate(self.prior.config.label_names)}
        chroma = next((given[name][:, None] for name in ("chroma", "notes") if name in given), None)
        n_samples = rows.pop("n_samples", position)  # read by timing alone
        conditions = Conditions(labels, n_samples, position.expand(batch), chroma=chroma, **rows)
        parts = [conditioner(conditions, 1)[:, 0] for conditioner in self.prior.conditioners]
        if (coarser := self.prior.coarser) is not None:  # as `UpsamplerConditioner`, for one code
            vectors = [embedding(given["coarser"][:, i]) for i, embedding in enumerate(coarser.embeddings)]
            x = reduce(torch.add, vectors)  # [b, 2 · context_codes + 1, dim]
            around = F.linear(x.flatten(1), self.around, coarser.around.bias)
            parts += [x[:, coarser.context_codes], coarser.mix(F.gelu(coarser.norm(around)))]
            parts.append(coarser.phase.index_select(0, position % coarser.ratio))
        return reduce(torch.add, parts, torch.zeros(1, 1))

    def _rotation(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """What to multiply heads by, and heads with swapped halves; for queries with the scale of attention."""
        c = self.prior.config.transformer
        cos, sin = self.prior.transformer.angles(position)  # [1, head_dim / 2]
        scale = torch.ones(c.n_heads + c.kv_heads, 1, 1)
        scale[: c.n_heads] = c.head_dim**-0.5
        return torch.cat([cos, cos], dim=-1) * scale, torch.cat([-sin, sin], dim=-1) * scale

    def _attend(
        self, layer: Layer, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attention to past codes and to this one, whose keys and values are not copied into one tensor."""
        c, (cos, sin) = layer.attention.config, rotation
        qkv = layer.attention.qkv(rms_norm(x, layer.attention_norm))
        heads = qkv.view(-1, c.n_heads + 2 * c.kv_heads, 1, c.head_dim)
        turning, value = heads.split([c.n_heads + c.kv_heads, c.kv_heads], dim=1)
        turned = turning * cos + turning.index_select(-1, self.swapped) * sin
        q, key = turned.split([c.n_heads, c.kv_heads], dim=1)  # [b, heads, 1, head_dim]
        if c.n_heads != c.kv_heads:
            q = q.view(-1, c.kv_heads, c.n_heads // c.kv_heads, c.head_dim)  # the queries of each key
        past = q @ keys.transpose(2, 3) + mask  # [b, kv_heads, queries, slots]
        own = q @ key.transpose(2, 3)
        past, own = torch.cat([past, own], dim=-1).softmax(dim=-1).split([keys.shape[2], 1], dim=-1)
        return (past @ values + own * value).flatten(1), key, value


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """`nn.RMSNorm` in the form that onnxruntime computes as one operation."""
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * norm.weight


class PrefixGraph(nn.Module):
    """The keys and values of the prefix, [n_layers, 2, b, kv_heads, n_prefix, head_dim], with the inputs `names`:

    text: int64 [b, max_bytes], UTF-8 bytes plus one, 0 after the end.
    right: int64 [b, n_codes], the codes after a gap; `codebook_size` outside the piece, -1 without a gap.
    """

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior
        self.names = [name for name, kind in PREFIX_INPUTS.items() if prior.config.conditioner(kind)]

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        position = torch.zeros_like(inputs[0][:, 0])
        prefix = self.prior.prefix(Conditions({}, position, position, gap_end=position, **given))
        assert prefix is not None
        return torch.stack([torch.stack(layer) for layer in prefix.layers])
