"""A tokenizer as two ONNX files, which run without torch and audiovq; needs the extra `audiovq[onnx]`.

encode.onnx: waveform float32 [batch, channels, samples] -> codes_0, codes_1, …, coarse to fine, each
             int64 [batch, samples / hop]
decode.onnx: codes_0, codes_1, … -> waveform float32 [batch, channels, samples]
The metadata of both files has all rules (rate, padding, pieces of long recordings), as JSON under `audiovq`.
"""

import importlib
import json
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiovq.pretrained.identity import tokenizer_hash
from audiovq.tokenizer.onnx_graph import DecodeGraph, EncodeGraph
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.progress import say

ENCODE, DECODE = "encode.onnx", "decode.onnx"
CHECKED_SECONDS = 3.0


def rules(network: VQVAE) -> dict[str, Any]:
    """All that is needed to use the files: the JSON in their metadata."""
    c = network.config
    left_out = (
        "(levels are residual: leave out the finest first)"
        if c.topology == "residual"
        else "only if it is not the finest: that alone is decoded"
    )
    return {
        "sample_rate": c.sample_rate,
        "channels": c.channels,
        "hop_lengths": list(c.hop_lengths),
        "codebook_size": c.codebook_size,
        "topology": c.topology,
        "tokenizer_hash": tokenizer_hash(network),
        "samples_multiple": c.hop_lengths[0],
        "decode_period": network.period,
        "encode_context": network.encoder_radius,
        "decode_context": network.decoder_radius,
        "padding": "Append zeros up to a multiple of samples_multiple; keep the first "
        "ceil(samples / hop_lengths[i]) codes of level i. To decode, append codes of -1 to "
        "n · hop_lengths[0] / hop_lengths[i] codes a level, and keep the first samples of the waveform. "
        f"A level of -1 alone is left out {left_out}.",
        "pieces": "A piece of a long recording must begin at a multiple of decode_period samples and have "
        "encode_context (or decode_context) samples of its neighbours to either side, whose results are "
        "dropped; so it gives what the whole gives.",
    }


@torch.no_grad()
def export_onnx(folder: Path, network: VQVAE) -> dict[str, float]:
    """Write encode.onnx and decode.onnx, and compare their results with those of torch.

    Returns:
        `codes_equal`, the share of equal codes (a latent halfway between two codes may be rounded to
        either), and `waveform_error`, the largest difference of a sample.
    Raises:
        ValueError: the extra is missing, or the files do not compute what torch does.
    """
    runtime = importlib.import_module("onnxruntime")  # not at the top: it takes a second to load
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    network = network.cpu().eval()
    hops, c = network.config.hop_lengths, network.config
    names = [f"codes_{i}" for i in range(len(hops))]
    folder.mkdir(parents=True, exist_ok=True)
    batch, n = torch.export.Dim("batch", min=1), torch.export.Dim("n", min=1)

    def length(factor: int) -> Any:
        return factor * n if factor > 1 else n

    def write(name: str, graph: nn.Module, inputs: Sequence[Tensor], shapes: Any, **names: list[str]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns about itself
            options = {"dynamic_shapes": shapes, "dynamo": True, "verbose": False, **names}
            program = torch.onnx.export(graph.eval(), tuple(inputs), **options)
        assert program is not None, "with dynamo=True and without a file, torch returns the program"
        program.model.metadata_props["audiovq"] = json.dumps(rules(network), ensure_ascii=False)
        program.save(str(folder / name), external_data=False)
        return runtime.InferenceSession(str(folder / name))

    waveform = 0.1 * torch.randn(2, c.channels, 4 * hops[0])
    say("onnx: writing the encoder (about half a minute)")
    shapes: Any = {"waveform": {0: batch, 2: length(hops[0])}}
    encode = write(ENCODE, EncodeGraph(network), [waveform], shapes, input_names=["waveform"], output_names=names)
    say("onnx: writing the decoder")
    shapes = (tuple({0: batch, 1: length(hops[0] // hop)} for hop in hops),)
    codes = network.encode(waveform)
    decode = write(DECODE, DecodeGraph(network), codes, shapes, input_names=names, output_names=["waveform"])

    waveform = decaying_tone(c.sample_rate, c.channels, hops[0])
    codes = network.encode(waveform)
    found = encode.run(None, {"waveform": waveform.numpy()})
    n_equal = sum(int((a.numpy() == b).sum()) for a, b in zip(codes, found, strict=True))
    equal = n_equal / sum(level.numel() for level in codes)
    decoded = decode.run(None, {name: level.numpy() for name, level in zip(names, codes, strict=True)})[0]
    error = float((network.decode(codes) - torch.from_numpy(decoded)).abs().max())
    if equal < 0.98 or error > 1e-3:
        raise ValueError(
            f"onnx: expected the results of torch, found {equal:.1%} of the codes equal and samples that "
            f"differ by {error:.1g}; try other versions of onnxscript and onnxruntime"
        )
    return {"codes_equal": equal, "waveform_error": error}


def decaying_tone(sample_rate: int, channels: int, multiple: int) -> Tensor:
    """A signal to compare with: a rising tone that decays into silence, float [1, channels, samples]."""
    n = -(-int(CHECKED_SECONDS * sample_rate) // multiple) * multiple
    time = torch.arange(n) / sample_rate
    tone = torch.sin(2 * math.pi * (110 + 200 * time) * time) * torch.exp(-2 * time)
    return (0.5 * tone * (time < 0.85 * CHECKED_SECONDS)).expand(1, channels, -1).contiguous()
