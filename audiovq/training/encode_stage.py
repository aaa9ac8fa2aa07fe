"""Between the stages: the data set becomes codes, once."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from audiovq import checkpoint
from audiovq.data import audio
from audiovq.data.chroma import chroma_classes
from audiovq.data.codes import Codes, ShardIndex, ShardWriter
from audiovq.data.tracks import Scan
from audiovq.terminal import track as progress
from audiovq.tokenizer.chunks import CHUNK_SECONDS, encode_in_chunks
from audiovq.tokenizer.vqvae import VQVAE


@torch.inference_mode()
def encode_data_set(
    folder: Path, scan: Scan, network: VQVAE, shifts: int, device: torch.device, chroma: bool = False
) -> None:
    """Encode every track into shards below `folder`, training tracks `shifts` times with a part of a top code cut off
    the beginning: codes depend on where the first one starts, and more of them mean less to learn by heart. With
    `chroma`, each track's pitch classes at the times of its top codes lie beside them.

    The folder appears when it is complete.
    """
    config = network.to(device).eval().config
    index = ShardIndex(
        checkpoint.tokenizer_hash(network), config.sample_rate, list(config.hop_lengths), config.codebook_size, chroma
    )
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    writer = ShardWriter(temporary, index)
    for track in progress(scan.tracks, "encode", len(scan.tracks)):
        waveform, _ = audio.read_audio(scan.folder / track.path, config.sample_rate, config.channels)
        for shift in range(shifts if track.split == "train" else 1):
            part = waveform[:, shift * config.hop_lengths[0] // shifts :]
            if part.shape[-1] == 0:
                continue
            levels = encode_in_chunks(network, part[None].to(device), int(CHUNK_SECONDS * config.sample_rate))
            codes = Codes(
                [level[0].cpu() for level in levels], part.shape[-1], config.sample_rate, list(config.hop_lengths),
                config.codebook_size, config.channels, index.tokenizer_hash, track.sha256,
            )  # fmt: skip
            classes = chroma_classes(part, config.sample_rate, config.hop_lengths[0]) if chroma else None
            writer.add(track, codes, classes)
    writer.finish()
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
