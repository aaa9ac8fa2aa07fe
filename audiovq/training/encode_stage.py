"""Encodes the music of a data set into shards of codes, between the stages that train."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from audiovq.data import audio
from audiovq.data.chroma import chroma_classes
from audiovq.data.codes import Codes, LevelBuffers
from audiovq.data.shards import ShardIndex, ShardWriter
from audiovq.data.tracks import Scan, Track, check_relative
from audiovq.distributed import collectives
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.tokenizer.streaming import CHUNK_SECONDS, StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils import signals
from audiovq.utils.files import atomic_folder
from audiovq.utils.progress import track as progress


def encode_data_set(
    folder: Path, scan: Scan, network: VQVAE, shifts: int, device: torch.device, chroma: bool = False
) -> None:
    """Encode every track into shards. All ranks call it, and each encodes its share of the tracks.

    The folder appears when it is complete. Finished tracks are in a temporary folder until then, so that an
    interrupted stage continues with the next track.

    Args:
        shifts: how often each training track is encoded, each time without a further part of a top-level
            code at its beginning. The codes differ, and more codes of the same music mean less overfitting.
        chroma: also store the pitch class at the time of each top-level code.
    """
    config = network.to(device).eval().config
    rank, n_ranks = collectives.rank(), collectives.world_size()
    hops, identity = list(config.hop_lengths), tokenizer_hash(network)
    index = ShardIndex(identity, config.sample_rate, hops, config.codebook_size, chroma)
    finished = folder.with_name(f".{folder.name}.tracks")

    def paths(track: Track) -> list[Path]:
        n = shifts if track.split == "train" else 1
        return [finished / identity / f"{track.sha256}-{shift}.codes" for shift in range(n)]

    for track in scan.tracks:
        check_relative(track.path)
        check_relative(track.sha256)
    # With several ranks, the longest tracks come first, so that ranks end at about the same time.
    by_length = sorted(scan.tracks, key=lambda track: -track.seconds)
    mine = by_length[rank::n_ranks] if n_ranks > 1 else scan.tracks
    for track in progress(mine, "encode", len(mine)):
        if not paths(track)[0].exists():  # the first shift is saved last
            _encode_track(scan.folder / track.path, track, paths(track), network, index)
    collectives.barrier()
    if rank == 0:
        with atomic_folder(folder) as temporary:
            writer = ShardWriter(temporary, index)
            for track in progress(scan.tracks, "shards", len(scan.tracks)):
                for path in filter(Path.exists, paths(track)):
                    classes = np.load(path.with_suffix(".npy"), allow_pickle=False) if chroma else None
                    writer.add(track, Codes.load(path), classes)
            writer.finish()
        shutil.rmtree(finished, ignore_errors=True)
    collectives.barrier()


class _ShiftedEncoder:
    """Encodes a track without its first `shift` samples, block by block."""

    def __init__(self, network: VQVAE, shift: int):
        self.shift, self.n_samples, self.n_skipped = shift, 0, 0
        self.encoder = StreamingEncoder(network, int(CHUNK_SECONDS * network.config.sample_rate))
        self.levels = LevelBuffers(network.config.n_levels)

    def push(self, block: torch.Tensor) -> None:  # [channels, samples]
        rest = block[:, self.shift - self.n_skipped :]
        self.n_skipped += block.shape[-1] - rest.shape[-1]
        self.n_samples += rest.shape[-1]
        self.levels.add(self.encoder.push(rest))

    def finish(self) -> list[torch.Tensor]:
        self.levels.add(self.encoder.finish())
        return self.levels.levels()


@torch.inference_mode()
def _encode_track(source: Path, track: Track, paths: list[Path], network: VQVAE, index: ShardIndex) -> None:
    """Encode a track once for each path, in one pass over it. A shift that leaves nothing gets no file."""
    config, hops = network.config, index.hop_lengths
    encoders = [_ShiftedEncoder(network, i * hops[0] // len(paths)) for i in range(len(paths))]
    for block in audio.stream_audio(source, config.sample_rate, config.channels):
        signals.poll()
        for encoder in encoders:
            encoder.push(block)
    for path, encoder in reversed(list(zip(paths, encoders, strict=True))):
        levels, n_samples = encoder.finish(), encoder.n_samples
        if n_samples == 0:
            continue
        if index.chroma:
            waveform, _ = audio.read_audio(source, config.sample_rate, config.channels)
            path.parent.mkdir(parents=True, exist_ok=True)
            classes = chroma_classes(waveform[:, encoder.shift :], config.sample_rate, hops[0])
            np.save(path.with_suffix(".npy"), classes)
        layout = config.sample_rate, hops, config.codebook_size, config.channels
        Codes(levels, n_samples, *layout, index.tokenizer_hash, track.sha256).save(path)
