"""`Player`: seed and settings → music."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiovq_player.level import Request
from audiovq_player.model import Model
from audiovq_player.piece import Piece

MAX_SECONDS = 24 * 3600.0
ENDLESS_SECONDS = 180.0  # a piece without end begins like one of this length
SETTINGS = {"temperature": (0, math.inf), "top_k": (0, math.inf), "top_p": (0, 1), "guidance": (0, math.inf)}
Codes = Sequence[np.ndarray]


class Player:
    """New music from an exported model.

    >>> player = Player("exported")
    >>> waveform = player.sample(seconds=20, seed=0, labels={"genre": "folk"})
    >>> for block in player.stream(seed=0):  # without end
    ...     play(block)

    Args:
        folder: see `Model`.
        threads: of each pass through a network.
    Raises:
        ValueError: files that are missing, damaged, or of another version.
    """

    def __init__(self, folder: str | Path, threads: int = 1):
        self.model = Model(folder, threads)
        self.sample_rate, self.labels = self.model.sample_rate, self.model.labels
        self.hop_lengths = self.model.hop_lengths
        self.multiple = self.model.facts["decoder"].get("multiple", self.hop_lengths[0])  # samples of whole patches

    def sample(self, seconds: float | None = None, seed: int = 0, item: int = 0, **options: Any) -> np.ndarray:
        """New music, float32 [channels, samples]; arguments as `piece`."""
        return np.concatenate(list(self.piece(seconds, seed, item, **options).blocks()), axis=1)

    def stream(
        self, seconds: float | None = None, seed: int = 0, item: int = 0, **options: Any
    ) -> Iterator[np.ndarray]:
        """Blocks float32 [channels, n], as early as possible; without `seconds` there is no end."""
        endless = seconds is None and options.get("given") is None
        return self.piece(seconds, seed, item, endless=endless, **options).blocks()

    def piece(
        self,
        seconds: float | None = None,
        seed: int = 0,
        item: int = 0,
        *,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        guidance: float | Sequence[float] | None = None,
        labels: Mapping[str, str] | None = None,
        text: str = "",
        chroma: Sequence[int] | None = None,
        notes: Sequence[int] | None = None,
        given: Codes | None = None,
        n_samples: int | None = None,
        endless: bool = False,
        block_seconds: float = 4.0,
        keep_codes: bool = False,
    ) -> Piece:
        """A piece that is made while its `blocks` are read.

        Args:
            seconds: length of the piece; not with `given`.
            item: number of the piece; the same seed gives as many pieces as you like.
            temperature, top_k, top_p, guidance: one value or one per level; None is what the model recommends.
            labels: such as {"genre": "folk"}.
            text: a caption or lyrics, for a model that was trained with texts.
            chroma: pitch classes plus one (1 is C, 13 silence, 0 unknown), one per code of level 0.
            notes: one number per code of level 0, 0 is unknown: bits 0 to 11 are the pitch classes C to B that sound,
                bits 12 to 15 the bass (1 is C, 13 none).
            given: codes that stay, int64 [ceil(n_samples / hop)] per level, and -1 where a code is to be drawn.
            n_samples: length of a piece with `given` codes; default that of the codes of level 0.
            endless: no end; timing stands still in the middle of a piece of 180 s.
            block_seconds, keep_codes: see `Piece`.
        Raises:
            ValueError: an impossible length, label or setting.
        """
        facts, hops = self.model.facts, self.hop_lengths
        if (seconds is None) == (given is None) and not endless:
            raise ValueError("seconds: expected a length, or given codes (which have one), not both")
        if given is not None:
            n = len(given[0]) * hops[0] if n_samples is None and len(given) else n_samples or 0
            given = check_given(given, hops, n, facts["codebook_size"])
        else:
            n = n_samples_of(ENDLESS_SECONDS if seconds is None else seconds, self.sample_rate)
        if not 0 <= seed < 1 << 63:
            raise ValueError(f"seed: expected 0 to {(1 << 63) - 1}, found {seed}")
        chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        settings = level_settings([prior["sampling"] for prior in facts["priors"]], chosen)
        if guidance is not None and not (labels or text or chroma is not None or notes is not None):
            raise ValueError("guidance: expected a label, text, chroma or notes to follow, found none of them")
        self._check_conditions(text, {"chroma": chroma, "notes": notes})
        request = Request(n, endless, seed, item, settings, label_numbers(self.labels, labels or {}), text, given=given)
        request.chroma, request.notes = (None if x is None else np.asarray(x, np.int64) for x in (chroma, notes))
        return Piece(self.model, request, block_seconds, keep_codes)

    def _check_conditions(self, text: str, frames: Mapping[str, Sequence[int] | None]) -> None:
        priors = self.model.facts["priors"]
        longest = max(prior["text_bytes"] for prior in priors)
        if text and not longest:
            raise ValueError("text: this model was trained without texts")
        if len(text.encode()) > longest:
            raise ValueError(f"text: expected at most {longest} bytes in UTF-8, found {len(text.encode())}")
        for name, found in frames.items():
            if found is not None and not any(name in prior["inputs"] for prior in priors):
                raise ValueError(f"{name}: this model was trained without")


def n_samples_of(seconds: float, sample_rate: int) -> int:
    """The length of a piece in samples. Raises ValueError for an impossible length."""
    if not (isinstance(seconds, int | float) and 0 < seconds <= MAX_SECONDS):
        raise ValueError(f"seconds: expected a number above 0 and up to {MAX_SECONDS:.0f}, found {seconds!r:.40}")
    return max(1, round(seconds * sample_rate))


def level_settings(recommended: Sequence[Mapping[str, float]], chosen: Mapping[str, Any]) -> list[dict[str, float]]:
    """Each level's recommended settings, with the chosen ones in their place."""
    settings, n_levels = [dict(setting) for setting in recommended], len(recommended)
    for name, value in chosen.items():
        if value is None:
            continue
        values = np.atleast_1d(value).tolist()
        if len(values) not in (1, n_levels):
            raise ValueError(f"{name}: expected one value or {n_levels} (one per level), found {len(values)}")
        low, high = SETTINGS[name]
        for level, setting in enumerate(settings):
            setting[name] = values[level % len(values)]
            if not low <= setting[name] <= high or (name == "top_p" and setting[name] == 0):
                raise ValueError(
                    f"{name}: expected {'0 < p <= 1' if name == 'top_p' else '0 or more'}, found {setting[name]:g}"
                )
    return settings


def label_numbers(vocabularies: Mapping[str, list[str]], labels: Mapping[str, str]) -> dict[str, int]:
    """Each label's number in its vocabulary, from 1 on. Raises ValueError for an unknown name or value."""
    numbers = {}
    for name, value in labels.items():
        if name not in vocabularies:
            known = ", ".join(vocabularies) or "none"
            raise ValueError(f"label {name}: this model knows the labels: {known}")
        if value not in vocabularies[name]:
            raise ValueError(f"label {name}={value:.60}: expected one of: {', '.join(vocabularies[name][:20])}")
        numbers[name] = vocabularies[name].index(value) + 1
    return numbers


def check_given(given: Codes, hops: Sequence[int], n_samples: int, size: int) -> list[np.ndarray]:
    """The given codes as int64. Raises ValueError for lengths or codes that do not fit, or if nothing is to be drawn."""
    levels = [np.asarray(level) for level in given]
    expected, found = [-(-n_samples // hop) for hop in hops], [len(level) for level in levels]
    if found != expected or n_samples < 1:
        raise ValueError(f"given codes: expected {expected} codes per level for {n_samples} samples, found {found}")
    for i, level in enumerate(levels):
        if level.dtype.kind not in "iu" or level.min() < -1 or level.max() >= size:
            raise ValueError(f"given codes of level {i}: expected whole numbers from -1 to {size - 1}, found others")
    if all((level >= 0).all() for level in levels):
        raise ValueError("given codes: expected -1 where codes are to be drawn, found none")
    return [level.astype(np.int64) for level in levels]


def redraw(codes: Codes, hops: Sequence[int], start: int, end: int, multiple: int = 0) -> list[np.ndarray]:
    """The codes of a piece with -1 for samples [start, end), rounded outward to whole codes of level 0, or to the
    `multiple` of samples of the model (`Player.multiple`), which may be several codes."""
    step = multiple or hops[0]
    first, last = start // step * step, -(-end // step) * step
    levels = [np.array(level, np.int64) for level in codes]
    for level, hop in zip(levels, hops, strict=True):
        level[first // hop : -(-last // hop)] = -1
    return levels
