"""Encodes the music of a data set into shards of codes, between the stages that train."""

import shutil
import time
from array import array
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from audiovq.data import audio
from audiovq.data.codes import Codes, LevelBuffers
from audiovq.data.conditions import chroma_classes
from audiovq.data.notes import estimate_frames, midi_of_track, note_frames
from audiovq.data.shards import ShardIndex, ShardWriter
from audiovq.data.tracks import Scan, Track, check_relative, check_unchanged
from audiovq.distributed import collectives
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.tokenizer.streaming import CHUNK_SECONDS, StreamingEncoder
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils import signals
from audiovq.utils.files import atomic_folder
from audiovq.utils.progress import track as progress


def encode_data_set(
    folder: Path, scan: Scan, network: VQVAE, shifts: int, device: torch.device, extras: Collection[str] = ()
) -> None:
    """Encode every track into shards, with the `extras` chroma or notes. All ranks call it, and each encodes its share and
    writes the shards of it. The folder appears when it is complete; until then an interrupted stage continues with the next
    track, on any number of ranks.
    Training tracks are encoded `shifts` times, each time without a further part of a code of level 0, or of a patch, at the beginning:
    more codes of the same music mean less overfitting."""
    config = network.to(device).eval().config
    rank, n_ranks = collectives.rank(), collectives.world_size()
    hops, identity = list(config.hop_lengths), tokenizer_hash(network)
    layout = identity, config.sample_rate, hops, config.codebook_size
    index = ShardIndex(*layout, "chroma" in extras, notes="notes" in extras, slots=config.slots)
    finished = folder.with_name(f".{folder.name}.tracks")

    def paths(track: Track) -> list[Path]:
        n = shifts if track.split == "train" else 1
        place = finished / identity / track.sha256[:2]  # folders of millions of files are slow
        return [place / f"{track.sha256}-{shift}.codes" for shift in range(n)]

    # With several ranks, the longest tracks come first, so that ranks end at about the same time.
    n = len(scan.tracks)
    numbers = (np.argsort(-scan.tracks.seconds, kind="stable") if n_ranks > 1 else np.arange(n))[rank::n_ranks]
    mine = scan.tracks.take(numbers)
    for track in progress(mine, "encode", len(mine)):
        check_relative(track.path)
        check_relative(track.sha256)
        first = paths(track)[0]  # it is saved last
        if not all(path.exists() for path in (first, *(first.with_suffix(f".{kind}.npy") for kind in index.extras))):
            check_unchanged(scan.folder / track.path, track.stamp, track.sha256)
            _encode_track(scan.folder / track.path, track, paths(track), network, index)
    group = collectives.from_rank_0(time.time_ns())  # earlier processes that still live have other folders
    parts = [finished / f"part-{group}-{i}" for i in range(n_ranks)]
    writer, added = ShardWriter(parts[rank], index), array("q")
    for number, track in zip(numbers, progress(mine, "shards", len(mine)), strict=True):
        for path in filter(Path.exists, paths(track)):
            beside = [path.with_suffix(f".{kind}.npy") for kind in index.extras]
            writer.add(track, Codes.load(path), *(np.load(file, allow_pickle=False) for file in beside))
            added.append(number)
    writer.finish()
    (parts[rank] / "numbers").write_bytes(added.tobytes())
    collectives.barrier()
    if rank == 0:
        with atomic_folder(folder) as temporary:
            whole = ShardWriter(temporary, index)
            for part in parts:
                whole.take(part)
            # The tracks are in the order of the scan, whatever the number of ranks.
            whole.finish(
                np.argsort(np.concatenate([np.fromfile(part / "numbers", np.int64) for part in parts]), kind="stable")
            )
        shutil.rmtree(finished, ignore_errors=True)
    collectives.barrier()


@torch.inference_mode()
def _encode_track(source: Path, track: Track, paths: list[Path], network: VQVAE, index: ShardIndex) -> None:
    """Encode a track once for each path, in one pass over it. A shift that leaves nothing gets no file."""
    config, hops = network.config, index.hop_lengths
    shifts = [i * config.multiple // len(paths) for i in range(len(paths))]  # samples left out at the beginning
    encoders = [StreamingEncoder(network, int(CHUNK_SECONDS * config.sample_rate)) for _ in paths]
    buffers = [LevelBuffers(config.n_levels) for _ in paths]
    midi, n_samples = midi_of_track(source, track.seconds) if index.notes else None, 0
    for block in audio.stream_audio(source, config.sample_rate, config.channels):  # [channels, samples]
        signals.poll()
        for shift, encoder, levels in zip(shifts, encoders, buffers, strict=True):
            levels.add(encoder.push(block[:, max(0, shift - n_samples) :]))
        n_samples += block.shape[-1]
    for path, shift, encoder, levels in reversed(list(zip(paths, shifts, encoders, buffers, strict=True))):
        if n_samples <= shift:
            continue
        levels.add(encoder.finish())
        if index.extras:
            waveform, _ = audio.read_audio(source, config.sample_rate, config.channels)
            path.parent.mkdir(parents=True, exist_ok=True)
            for kind in index.extras:  # one number for each code of level 0
                if kind == "notes" and midi is not None:
                    n, seconds = -(-(waveform.shape[-1] - shift) // hops[0]), hops[0] / config.sample_rate
                    frames = note_frames(midi, seconds, n, shift / config.sample_rate)
                else:
                    estimate = chroma_classes if kind == "chroma" else estimate_frames
                    frames = estimate(waveform[:, shift:], config.sample_rate, hops[0])
                np.save(path.with_suffix(f".{kind}.npy"), frames)
        layout = config.sample_rate, hops, config.codebook_size, config.channels
        Codes(levels.levels(), n_samples - shift, *layout, index.tokenizer_hash, track.sha256, config.slots).save(path)
