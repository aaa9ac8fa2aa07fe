"""Between the stages: the data set becomes codes, once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from audiovq.data import audio
from audiovq.data.chroma import chroma_classes
from audiovq.data.codes import Codes, LevelBuffers
from audiovq.data.shards import ShardIndex, ShardWriter
from audiovq.data.tracks import Scan, Track
from audiovq.data.validation import check_relative
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
    """Encode every track into shards below `folder`, training tracks `shifts` times with a part of a top code cut off
    the beginning: codes depend on where the first one starts, and more of them mean less to learn by heart. With
    `chroma`, each track's pitch classes at the times of its top codes lie beside them.

    All ranks call it, and each encodes its share of the tracks, longest first, so that they end at about the same time;
    rank 0 then writes the shards. The folder appears when it is complete. Until then each finished track is kept in a
    folder beside it, so that a run that was stopped goes on with the next track.
    """
    config = network.to(device).eval().config
    rank, n_ranks = collectives.rank(), collectives.world_size()
    index = ShardIndex(
        tokenizer_hash(network), config.sample_rate, list(config.hop_lengths), config.codebook_size, chroma
    )
    finished = folder.with_name(f".{folder.name}.tracks")

    def paths(track: Track) -> list[Path]:
        n = shifts if track.split == "train" else 1
        return [finished / index.tokenizer_hash / f"{track.sha256}-{shift}.codes" for shift in range(n)]

    for track in scan.tracks:
        check_relative(track.path)
        check_relative(track.sha256)
    mine = sorted(scan.tracks, key=lambda track: -track.seconds)[rank::n_ranks] if n_ranks > 1 else scan.tracks
    for track in progress(mine, "encode", len(mine)):
        if not paths(track)[0].exists():  # it is written last
            _encode_to(paths(track), scan.folder / track.path, track, network, index.tokenizer_hash, device, chroma)
    collectives.barrier()
    if rank == 0:
        _write_shards(folder, index, [(track, paths(track)) for track in scan.tracks])
        shutil.rmtree(finished, ignore_errors=True)
    collectives.barrier()


def _write_shards(folder: Path, index: ShardIndex, tracks: list[tuple[Track, list[Path]]]) -> None:
    with atomic_folder(folder) as temporary:
        writer = ShardWriter(temporary, index)
        for track, paths in progress(tracks, "shards", len(tracks)):
            for path in paths:
                if path.exists():  # not where a shift left nothing of the track
                    classes = np.load(chroma_file(path), allow_pickle=False) if index.chroma else None
                    writer.add(track, Codes.load(path), classes)
        writer.finish()


def chroma_file(codes: Path) -> Path:
    """Where a track's pitch classes are, beside its codes, until they are in the shards."""
    return codes.with_suffix(".npy")


def _encode_to(
    paths: list[Path], source: Path, track: Track, network: VQVAE, tokenizer_hash: str, device: torch.device,
    chroma: bool,
) -> None:  # fmt: skip
    """Codes of a track at each shift into a file each, the first one last."""
    encoded = _encode(source, track, network, tokenizer_hash, len(paths), device)
    for shift, (path, codes) in reversed(list(enumerate(zip(paths, encoded, strict=True)))):
        if codes.n_samples:
            if chroma:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(chroma_file(path), _chroma(source, network, shift, len(paths)))
            codes.save(path)


@torch.inference_mode()
def _encode(
    path: Path, track: Track, network: VQVAE, tokenizer_hash: str, shifts: int, device: torch.device
) -> list[Codes]:
    """Codes of one track at each shift, in one pass over the file."""
    config = network.config
    hops = list(config.hop_lengths)
    to_cut = [shift * hops[0] // shifts for shift in range(shifts)]  # samples still to be left out
    counts = [0] * shifts
    encoders = [StreamingEncoder(network, int(CHUNK_SECONDS * config.sample_rate)) for _ in to_cut]
    collected = [LevelBuffers(len(hops)) for _ in to_cut]
    for block in audio.stream_audio(path, config.sample_rate, config.channels):
        signals.poll()
        for i, encoder in enumerate(encoders):
            kept = block[:, to_cut[i] :]
            to_cut[i] -= block.shape[-1] - kept.shape[-1]
            counts[i] += kept.shape[-1]
            collected[i].add(encoder.push(kept.to(device)))
    found = []
    for n_samples, encoder, buffers in zip(counts, encoders, collected, strict=True):
        buffers.add(encoder.finish())
        found.append(
            Codes(
                buffers.levels(), n_samples, config.sample_rate, hops, config.codebook_size, config.channels,
                tokenizer_hash, track.sha256,
            )
        )  # fmt: skip
    return found


def _chroma(path: Path, network: VQVAE, shift: int, shifts: int) -> np.ndarray:
    """Pitch classes of a track that was encoded with a shift, one a top code."""
    config = network.config
    waveform, _ = audio.read_audio(path, config.sample_rate, config.channels)
    top = config.hop_lengths[0]
    return chroma_classes(waveform[:, shift * top // shifts :], config.sample_rate, top)
