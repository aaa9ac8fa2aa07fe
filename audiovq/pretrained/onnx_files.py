"""A tokenizer as two ONNX files, which run without torch and without audiovq; needs the extra `audiovq[onnx]`.

encode.onnx: waveform float32 [batch, channels, samples] -> codes_0, codes_1, … int64 [batch, samples / hop], coarse to fine.
decode.onnx: codes_0, codes_1, … -> waveform float32 [batch, channels, samples].
All rules (rate, padding, where a piece may be cut) are in both files' metadata, as JSON under `audiovq`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import warnings
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


def check_installed() -> None:
    """Raises ValueError if the extra is not installed."""
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"onnx: missing {' and '.join(missing)}; pip install 'audiovq[onnx]'")


def rules(network: VQVAE) -> dict[str, Any]:
    """What one must know to use the files: the JSON in their metadata."""
    c = network.config
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
        "padding": "Append zeros up to a multiple of samples_multiple; keep the first ceil(samples / hop_lengths[i]) codes of "
        "level i. To decode, append codes of -1 to n · hop_lengths[0] / hop_lengths[i] codes a level, and keep the first "
        "samples of the waveform. A level of -1 alone is left out"
        + (" (levels are residual: leave out the finest first)." if c.topology == "residual" else " only if it is not the finest: that alone is decoded."),
        "pieces": "A piece of a long recording must begin at a multiple of decode_period samples and have encode_context (or "
        "decode_context) samples of its neighbours to either side, whose results are dropped; so it gives what the whole gives.",
    }  # fmt: skip


def export_onnx(folder: Path, network: VQVAE) -> dict[str, float]:
    """Write encode.onnx and decode.onnx, then run both beside torch on a test signal.

    Returns:
        `codes_equal`, the share of codes that are the same (a latent that lies just between two codes may be rounded to the
        other side), and `waveform_error`, the largest difference of a sample.
    Raises:
        ValueError: the extra is missing, or the files do not compute what torch does.
    """
    check_installed()
    network = network.cpu().eval()
    hops, c = list(network.config.hop_lengths), network.config
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"codes_{i}" for i in range(len(hops))]
    batch, n = torch.export.Dim("batch", min=1), torch.export.Dim("n", min=1)

    def length(factor: int) -> Any:
        return factor * n if factor > 1 else n

    with torch.no_grad():
        waveform = 0.1 * torch.randn(2, c.channels, 4 * hops[0])
        say("onnx: writing the encoder (about half a minute)")
        _write(folder / ENCODE, network, EncodeGraph(network), (waveform,), ["waveform"], names,
               {"waveform": {0: batch, 2: length(hops[0])}})  # fmt: skip
        say("onnx: writing the decoder")
        codes = tuple(network.encode(waveform))
        shapes = (tuple({0: batch, 1: length(hops[0] // hop)} for hop in hops),)
        _write(folder / DECODE, network, DecodeGraph(network), codes, names, ["waveform"], shapes)
        found = compare(folder, network, test_signal(c.sample_rate, c.channels, hops[0]))
    if found["codes_equal"] < 0.98 or found["waveform_error"] > 1e-3:
        raise ValueError(
            f"onnx: expected what torch gives, found {found['codes_equal']:.1%} of the codes equal and samples that differ by "
            f"{found['waveform_error']:.1g}; try other versions of onnxscript and onnxruntime"
        )
    return found


def _write(
    path: Path, network: VQVAE, graph: nn.Module, inputs: tuple[Tensor, ...], names_in: list[str], names_out: list[str],
    shapes: Any,
) -> None:  # fmt: skip
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                graph.eval(), inputs, input_names=names_in, output_names=names_out, dynamic_shapes=shapes, dynamo=True,
                verbose=False,
            )  # fmt: skip
    finally:
        logger.setLevel(before)
    assert program is not None, "with dynamo=True and without a file, torch returns the program"
    program.model.metadata_props["audiovq"] = json.dumps(rules(network), ensure_ascii=False)
    program.save(str(path), external_data=False)


def test_signal(sample_rate: int, channels: int, multiple: int) -> Tensor:
    """Notes that decay, and silence at the end, float [1, channels, samples]. No noise: what is quiet must be right, too."""
    n = -(-int(CHECKED_SECONDS * sample_rate) // multiple) * multiple
    time = torch.arange(n) / sample_rate
    notes = torch.stack([
        torch.sin(2 * math.pi * 110 * 2 ** (step * 7 % 24 / 12) * time) * torch.exp(-4 * (time - step / 4)) * (time >= step / 4)
        for step in range(int(4 * CHECKED_SECONDS))
    ]).sum(dim=0)  # fmt: skip
    return (0.3 * notes * (time < 0.85 * CHECKED_SECONDS)).expand(1, channels, -1).contiguous()


@torch.no_grad()
def compare(folder: Path, network: VQVAE, waveform: Tensor) -> dict[str, float]:
    """What the files give beside what torch gives, as `export_onnx` returns it; both decode torch's codes."""
    runtime = importlib.import_module("onnxruntime")  # it takes a second to load, and every command loads this file
    encode, decode = (runtime.InferenceSession(str(folder / name)) for name in (ENCODE, DECODE))
    codes = network.encode(waveform)
    found = encode.run(None, {"waveform": waveform.numpy()})
    same = sum(int((a.numpy() == b).sum()) for a, b in zip(codes, found, strict=True))
    decoded = decode.run(None, {f"codes_{i}": level.numpy() for i, level in enumerate(codes)})[0]
    error = (network.decode(codes) - torch.from_numpy(decoded)).abs().max()
    return {"codes_equal": same / sum(level.numel() for level in codes), "waveform_error": float(error)}
