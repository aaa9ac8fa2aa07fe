"""A whole generator as ONNX files, which audiovq-player and web pages read; needs the extra `audiovq[onnx]`.

prior-N.onnx: one step of the prior of a level, see `StepGraph`
prior-N-prefix.onnx: what its codes attend to besides past codes, see `PrefixGraph`; for text and gaps
decoder.onnx: codes_0, codes_1, …, int64 [1, n] -> `spectra`, float [1, channels, 2, frames, bins], or `waveform`; with
              decoder `tones` also `tones`, a waveform that is added
generator.json: all else that is needed to make music, with the size and the SHA-256 of each file
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import audiovq
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.onnx_write import TRY_OTHERS, times, write_graph
from audiovq.prior.onnx_graph import PrefixGraph, StepGraph
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.tokenizer.decoders import IstftDecoder, ToneDecoder
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import file_sha256
from audiovq.utils.progress import say

FORMAT = "audiovq-generator-1"
FACTS = "generator.json"
MASKED = -1e9  # added to the attention scores of empty slots
Models = Sequence[tuple[Prior, SamplingConfig]]
MOST_DIFFERENCE = 1e-4  # of a logit
# beginnings of names of a step's inputs
PER_ROW = ("previous", "labels", "chroma", "notes", "coarser", "keys", "values")


@torch.no_grad()
def export_generator(
    folder: Path, network: VQVAE, decoder: nn.Module, models: Models, name: str, int8: bool = False
) -> dict[str, float]:
    """Write the files, with a `DecodeGraph` with spectra as `decoder`, and compare them with torch: `logit_error` is the
    largest difference of a logit, before rounding (`int8`). ValueError if it is large, or without a graph."""
    folder.mkdir(parents=True, exist_ok=True)
    config, errors = network.config, []
    facts: dict[str, Any] = {"format": FORMAT, "name": name, "audiovq": audiovq.__version__}
    facts |= {name: getattr(config, name) for name in ("sample_rate", "channels", "codebook_size")}
    facts |= {"hop_lengths": list(config.hop_lengths[: len(models)]), "tokenizer_hash": tokenizer_hash(network)}
    facts["labels"] = models[0][0].spec.vocabularies
    facts |= {"decoder": _write_decoder(folder, network, decoder, len(models)), "priors": []}
    for level, (prior, setting) in enumerate(models):
        say(f"onnx: writing prior {level}")
        found, error = _write_prior(folder, prior.cpu().eval(), level, int8)
        facts["priors"].append(found | {"sampling": setting.model_dump()})
        errors.append(error)
    names = [part[key] for part in (facts["decoder"], *facts["priors"]) for key in ("file", "prefix") if part.get(key)]
    facts["files"] = {n: {"bytes": (folder / n).stat().st_size, "sha256": file_sha256(folder / n)} for n in names}
    (folder / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    if (error := max(errors)) > MOST_DIFFERENCE:
        raise ValueError(f"onnx: expected the logits of torch, found a difference of {error:.1g}; {TRY_OTHERS}")
    return {"logit_error": error}


def _write_decoder(folder: Path, network: VQVAE, graph: nn.Module, n_levels: int) -> dict[str, Any]:
    say("onnx: writing the decoder of the generator")
    groups, hops, multiple = network.level_groups(), network.config.hop_lengths[:n_levels], network.config.multiple
    decoder = groups[n_levels - 1 if len(groups) > 1 else 0][0].decoder
    facts = {"file": "decoder.onnx", "period": network.period, "context": network.decoder_radius, "result": "waveform"}
    facts |= {"multiple": multiple}
    if isinstance(decoder, IstftDecoder):
        facts |= {"result": "spectra", "n_fft": decoder.n_fft, "frame_hop": decoder.hop_length}
    n = torch.export.Dim("n", min=1)
    shapes = (tuple({1: times(multiple // hop, n)} for hop in hops),)
    codes = [torch.randint(network.config.codebook_size, (1, 13 * multiple // hop)) for hop in hops]
    inputs = {f"codes_{i}": level for i, level in enumerate(codes)}
    results = [facts["result"]] + ["tones"] * isinstance(decoder, ToneDecoder)
    session = write_graph(folder / "decoder.onnx", graph, inputs, shapes, results, facts)
    shorter = {name: level[:, : len(level[0]) // 13 * 9] for name, level in inputs.items()}
    if any(error > 1e-3 * most for error, most in _differences(session, graph, shorter)):
        raise ValueError("onnx: expected the decoder of torch, found another; try another version of onnxruntime")
    return facts


def _write_prior(folder: Path, prior: Prior, level: int, int8: bool) -> tuple[dict[str, Any], float]:
    """Facts about the files of a prior, and the largest difference of a logit."""
    c, extra = prior.config.transformer, prior.config.extra_inputs
    graph, n_prefix = StepGraph(prior), prior.transformer.n_prefix
    facts: dict[str, Any] = {"file": f"prior-{level}.onnx", "inputs": graph.conditions}
    facts |= {"labels": prior.config.label_names, "n_prefix": n_prefix, "context_codes": prior.config.context_codes}
    facts |= {name: getattr(c, name) for name in ("n_layers", "kv_heads", "head_dim", "window")}
    facts |= {name: extra[name] for name in ("text_bytes", "infill_codes")}
    examples = example_inputs(prior, graph)
    batch, errors = torch.export.Dim("batch", min=1), []
    parts: list[Any] = [(facts["file"], graph, ["logits", "new"])]
    if n_prefix:
        facts["prefix"] = f"prior-{level}-prefix.onnx"
        parts.append((facts["prefix"], PrefixGraph(prior), ["prefix"]))
    for name, part, outputs in parts:
        inputs = {name: examples[name] for name in part.names}
        free = {name: part is not graph or name.startswith(PER_ROW) for name in inputs}
        shapes = (tuple({0: batch} if free[name] else {} for name in inputs),)
        session = write_graph(folder / name, part, inputs, shapes, outputs, facts, int8)
        errors.append(_differences(session, part, {n: x[:1] if free[n] else x for n, x in inputs.items()})[0][0])
    return facts, max(errors)


def example_inputs(prior: Prior, graph: StepGraph) -> dict[str, Tensor]:
    """Inputs of two rows for the graphs of a prior, in the middle of a piece."""
    c, spec, extra = prior.config.transformer, prior.spec, prior.config.extra_inputs
    level, n_prefix = spec.level, prior.transformer.n_prefix
    inputs = {
        "previous": torch.tensor([spec.codebook_size, 0]), "position": torch.tensor([c.window - 1]),
        "mask": torch.full((n_prefix + c.window,), MASKED).index_fill(0, torch.arange(n_prefix + c.window // 2), 0),
        "labels": torch.tensor([[bool(spec.vocabularies[name]) for name in prior.config.label_names]] * 2).long(),
        "n_samples": torch.tensor([60 * spec.sample_rate]), "timing_end": torch.tensor([2**40]),
        "chroma": torch.ones(2, dtype=torch.int64), "notes": torch.full((2,), 1 << 12),
        "gap_end": torch.tensor([c.window + 3]),
        "coarser": torch.zeros(2, level, 2 * prior.config.context_codes + 1, dtype=torch.int64),
        "text": torch.ones(2, extra["text_bytes"], dtype=torch.int64),
        "right": torch.ones(2, extra["infill_codes"], dtype=torch.int64),
    }  # fmt: skip
    cache = [torch.randn(2, c.kv_heads, n_prefix + c.window, c.head_dim) for _ in range(2 * c.n_layers)]
    return inputs | dict(zip(graph.names[-2 * c.n_layers :], cache, strict=True))


def _differences(session: Any, graph: nn.Module, inputs: dict[str, Tensor]) -> list[tuple[float, float]]:
    """Of each result of a file: the largest difference from that of torch, and the largest number."""
    expected = graph(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    pairs = zip(map(torch.from_numpy, found), expected, strict=True)
    return [(float((a - b).abs().max()), float(b.abs().max())) for a, b in pairs]
