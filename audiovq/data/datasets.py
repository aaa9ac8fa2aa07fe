"""Training examples: waveform crops and code windows. Example i is a function of (seed, i) alone."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audiovq.data import audio
from audiovq.data.conditions import text_bytes, track_text
from audiovq.data.music import MusicTable, Track
from audiovq.data.shards import Shards, ShardTrack
from audiovq.data.tracks import check_unchanged, file_stamp
from audiovq.utils.progress import track as progress


@dataclass(eq=False, repr=False)
class WaveformCrops(Dataset[Tensor]):
    """Random crops [channels, crop_samples] of a list of tracks; every moment of the music is equally likely. A data
    set that fits into `cache_gigabytes`, by its length, is decoded once; of a larger one crops are read."""

    folder: Path
    tracks: MusicTable
    sample_rate: int
    channels: int
    crop_samples: int
    seed: int
    cache_gigabytes: float

    def __post_init__(self) -> None:
        if not self.tracks:
            raise ValueError(f"{self.folder}: no tracks to take crops from")
        seconds = self.tracks.seconds
        self.stamps: dict[int, list[int]] = {}  # of files that were compared, because they have another one now
        self.ends = np.cumsum(seconds) / seconds.sum()
        self.fits = seconds.sum() * self.sample_rate * self.channels * 4 <= self.cache_gigabytes * 2**30
        self.cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return 2**62

    def preload(self) -> None:
        """Decode all tracks now, if they fit into memory, so that worker processes share one copy."""
        if self.fits:
            for track in progress(range(len(self.tracks)), "decode", len(self.tracks)):
                self._decoded(track)

    def __getitem__(self, index: int) -> Tensor:
        random = np.random.default_rng([self.seed, index])
        track, position = pick(self.ends, random), random.random()
        if self.fits:
            waveform = self._decoded(track)
            waveform = waveform[:, int(position * max(0, waveform.shape[-1] - self.crop_samples + 1)) :]
        else:
            path, source = self._unchanged(track)
            wanted = -(-self.crop_samples * source.sample_rate // self.sample_rate)
            start = int(position * max(0, source.samples - wanted + 1))
            waveform, _ = audio.read_audio(path, self.sample_rate, self.channels, start, wanted)
        waveform = waveform[:, : self.crop_samples]
        return torch.nn.functional.pad(waveform, (0, self.crop_samples - waveform.shape[-1]))

    def _decoded(self, i: int) -> Tensor:
        if i not in self.cache:
            self.cache[i], _ = audio.read_audio(self._unchanged(i)[0], self.sample_rate, self.channels)
        return self.cache[i]

    def _unchanged(self, i: int) -> tuple[Path, Track]:
        """A track and its file; ValueError if that is another one than was scanned."""
        track = self.tracks[i]
        path, stamp = self.folder / track.path, self.stamps.get(i, track.stamp)
        if any(stamp) and file_stamp(path) != stamp:
            check_unchanged(path, stamp, track.sha256)
            self.stamps[i] = file_stamp(path)  # a copy of the file is compared once
        return path, track


def pick(ends: np.ndarray, random: np.random.Generator) -> int:
    """A random track, as often as it is long; `ends` [n_tracks] are the shares of all music up to there."""
    return min(int(np.searchsorted(ends, random.random(), side="right")), len(ends) - 1)


def name_of(data: "WaveformCrops | CodeWindows", index: int) -> str:
    """Path of the track that an example is from."""
    return data.tracks[pick(data.ends, np.random.default_rng([data.seed, index]))].path


@dataclass(eq=False, repr=False)
class CodeWindows(Dataset[dict[str, Tensor]]):
    """Random windows of one level's codes, with the coarser levels' codes around them.

    An example is a dict of int64 tensors, in which `codebook_size` stands for no code:

        codes [context]: the targets; no code after the track's end, where the loss does not count
        previous [context]: the code before each target; no code before the track's start
        coarser [n_coarser, context / ratio + 2 · context_codes]: all coarser levels, at the rate of the next
            coarser one
        position []: index of the first target in the track
        n_samples []: length of the track
        labels [n_labels]: index into each vocabulary, 0 for unknown

    and with the options of that name:

        text [text_bytes]: see `text_bytes`
        chroma [frames]: chroma or notes at each top code, from the first target on; 0 outside the track
        right [infill_codes], gap_end []: the codes after a gap, and where they begin in the track; -1 without
            a gap. A share `infill_rate` of the windows has one. Half of the gaps end within the window, where
            the codes after the gap do not count, the others up to a window later.
    """

    shards: Shards
    split: str
    level: int
    context: int
    context_codes: int
    vocabularies: dict[str, list[str]]
    seed: int
    _: KW_ONLY
    text_bytes: int = 0
    chroma: bool = False
    notes: bool = False
    infill_codes: int = 0
    infill_rate: float = 0.0

    def __post_init__(self) -> None:
        shards, level = self.shards, self.level
        self.frames = "chroma" if self.chroma else "notes" if self.notes else ""
        if self.frames and self.frames not in shards.index.extras:
            raise ValueError(f"{shards.folder}: no {self.frames}; delete the folder and run the codes stage again")
        self.tracks = shards.index.tracks.of(self.split)
        if not self.tracks:
            raise ValueError(f"{shards.folder}: no {self.split} tracks among the codes")
        named = self.vocabularies.items()
        self.label_indices = {name: {value: i + 1 for i, value in enumerate(values)} for name, values in named}
        hops = shards.index.hop_lengths
        self.ratio = hops[level - 1] // hops[level] if level else 1
        lengths = self.tracks.lengths(level).astype(np.float64)
        self.ends = np.cumsum(lengths) / lengths.sum()

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = np.random.default_rng([self.seed, index])
        track = self.tracks[pick(self.ends, random)]
        last = max(0, track.lengths[self.level] - self.context)
        # Starts are drawn from half a window too early to half a window too late, and then clamped: so the
        # beginning and the end of a track come often enough to be learned.
        start = int(np.clip(random.integers(-(self.context // 2), last + self.context // 2 + 1), 0, last))
        start = -(-start // self.ratio) * self.ratio
        gap_end = None
        if self.infill_codes and random.random() < self.infill_rate:
            gap_end = min(start + int(random.integers(1, 2 * self.context + 1)), track.lengths[self.level])
        return self.window(track, start, gap_end)

    def window(self, track: ShardTrack, start: int, gap_end: int | None = None) -> dict[str, Tensor]:
        """One example, from the target `start` of the track on, a multiple of the ratio to the next coarser
        level; with a gap up to the code `gap_end`, or none."""
        codes = self._padded(track, self.level, start - 1, start + self.context)
        coarse_start = start // self.ratio - self.context_codes
        n_coarse = -(-self.context // self.ratio) + 2 * self.context_codes
        coarser = [self._at_rate_above(track, level, coarse_start, n_coarse) for level in range(self.level)]
        labels = [indices.get(track.labels.get(name, ""), 0) for name, indices in self.label_indices.items()]
        facts = {"position": start, "n_samples": track.n_samples, "labels": labels}
        example = {name: torch.tensor(value) for name, value in facts.items()}
        example |= {"codes": torch.from_numpy(codes[1:]), "previous": torch.from_numpy(codes[:-1])}
        example["coarser"] = torch.from_numpy(np.stack(coarser)) if coarser else torch.zeros(0, 0, dtype=torch.int64)
        return example | self._options(track, start, gap_end)

    def _options(self, track: ShardTrack, start: int, gap_end: int | None) -> dict[str, Tensor]:
        """Text, chroma or notes and the right side of a gap, as far as they are options."""
        extra: dict[str, Tensor] = {}
        if self.text_bytes:
            extra["text"] = text_bytes(track_text(track.labels), self.text_bytes)
        if self.frames:
            hops = self.shards.index.hop_lengths
            codes_per_frame = hops[0] // hops[self.level]
            frames = np.zeros(-(-self.context // codes_per_frame) + 1, dtype=np.int64)
            found = self.shards.frames(track, self.frames)[start // codes_per_frame :][: len(frames)]
            frames[: len(found)] = found
            extra["chroma"] = torch.from_numpy(frames)
        if self.infill_codes:
            first = start if gap_end is None else gap_end
            extra["right"] = torch.from_numpy(self._padded(track, self.level, first, first + self.infill_codes))
            extra["gap_end"] = torch.tensor(-1 if gap_end is None else gap_end)
        return extra

    def _at_rate_above(self, track: ShardTrack, level: int, start: int, n: int) -> np.ndarray:
        """Codes of a coarser level, repeated to the rate of the next coarser level."""
        hops = self.shards.index.hop_lengths
        index = np.arange(start, start + n) // (hops[level] // hops[self.level - 1])
        return self._padded(track, level, int(index[0]), int(index[-1]) + 1)[index - index[0]]

    def _padded(self, track: ShardTrack, level: int, start: int, end: int) -> np.ndarray:
        """Codes [start, end), with `codebook_size` outside the track."""
        result = np.full(end - start, self.shards.index.codebook_size, dtype=np.int64)
        low, high = max(start, 0), min(end, track.lengths[level])
        if high > low:
            result[low - start : high - start] = self.shards.codes(track, level, low, high)
        return result


def vocabularies(shards: Shards, names: list[str]) -> dict[str, list[str]]:
    """The sorted values of each label in the training tracks. (Their indices start at 1; 0 is unknown.)"""
    values: dict[str, set[str]] = {name: set() for name in names}
    for labels in shards.index.tracks.of("train").labels() if names else ():
        for name in values.keys() & labels.keys():
            values[name].add(labels[name])
    return {name: sorted(found) for name, found in values.items()}
