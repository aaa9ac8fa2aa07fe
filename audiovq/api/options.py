"""How pieces are generated: the options of `Generator`, and what they mean for a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiovq.config import build, whole_number
from audiovq.data import audio
from audiovq.data.conditions import chroma_classes
from audiovq.data.notes import chord_frames, requested_frames
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.engine import precisions
from audiovq.sampling.guidance import Request
from audiovq.utils import compat
from audiovq.utils.progress import listed


@dataclass(frozen=True, kw_only=True)
class PieceOptions:
    """How pieces are generated.

    Attributes:
        temperature: above 1 codes are more varied, below 1 more predictable; 0 takes the most likely code. As the next
            three, one value or one per level; None is what the model recommends.
        top_k: draw from the k most likely codes; 0 is all.
        top_p: draw from the most likely codes that together have this probability.
        guidance: how strongly labels, text, chroma and notes are followed; 1 is as trained.
        labels: such as {"genre": "folk"}, or shares of values, such as {"genre": {"folk": 0.7, "rock": 0.3}}.
        text: a caption or lyrics, for a model that was trained with texts.
        chroma: a recording whose melody and harmony to follow, for a model that was trained with chroma.
        notes: which notes to follow, for a model that was trained with notes: a MIDI file; a recording, from which
            they are estimated; a list of (start and end in seconds, MIDI pitch); a list of MIDI pitches, which sound
            all the time; or an array of frames, see `audiovq.data.notes`. After their end they are unknown.
        chords: such as "C G/B Am:4 N", two seconds each or as many as the number says; repeated to the end.
        precision: of the priors' arithmetic, see `sampling.engine.precisions`.
        progress: show a progress bar.
    """

    temperature: float | Sequence[float] | None = None
    top_k: int | Sequence[int] | None = None
    top_p: float | Sequence[float] | None = None
    guidance: float | Sequence[float] | None = None
    labels: Mapping[str, str | Mapping[str, float]] = field(default_factory=dict)
    text: str = ""
    chroma: str | Path | None = None
    notes: Any = None
    chords: str | None = None
    precision: str = "auto"
    progress: bool = False

    @property
    def conditional(self) -> bool:
        """Whether there is something for guidance to strengthen."""
        return bool(self.labels or self.text or self.chroma or self.chords) or self.notes is not None


def level_settings(recommended: Sequence[SamplingConfig], options: PieceOptions) -> list[SamplingConfig]:
    """Each level's recommended settings, with those of the options in their place. Raises ValueError for a
    value that is out of range, or neither one value nor one per level."""
    settings, n_levels = [setting.model_dump() for setting in recommended], len(recommended)
    for name in SamplingConfig.model_fields:
        if (value := getattr(options, name)) is None:
            continue
        values = np.atleast_1d(value).tolist()  # Python's numbers, whatever kind was given
        if len(values) not in (1, n_levels):
            raise ValueError(f"{name}: expected one value or {n_levels} (one per level), found {len(values)}")
        for level, setting in enumerate(settings):
            setting[name] = values[level % len(values)]
    return [build(SamplingConfig, setting, "sampling") for setting in settings]


def make_request(priors: Sequence[Prior], n_samples: int, seed: int, options: PieceOptions) -> Request:
    """The request for a model's priors; its items are still to be set. Raises ValueError for a label, text or
    recording that this model cannot follow, or an option out of range."""
    seed = whole_number(seed, "seed")
    if not 0 <= seed < 1 << 63:  # the noise would not differ
        raise ValueError(f"seed: expected 0 to {(1 << 63) - 1}, found {seed}")
    if options.guidance is not None and not options.conditional:
        raise ValueError("guidance: expected a label, text, chroma, notes or chords to follow, found none of them")
    labels = _label_indexes(priors[0].spec.vocabularies, options.labels)
    longest, n_bytes = max(prior.config.extra_inputs["text_bytes"] for prior in priors), len(options.text.encode())
    if n_bytes and not longest:
        raise ValueError("text: this model was trained without texts; expected a prior with a text conditioner")
    if n_bytes > longest:
        raise ValueError(f"text: expected at most {longest} bytes in UTF-8, found {n_bytes}")
    chroma, spec = None, priors[0].spec
    if options.chroma:  # pitch classes of the recording, one per code of level 0: int64 [n_frames]
        if not any(prior.config.extra_inputs["chroma"] for prior in priors):
            raise ValueError("chroma: this model was trained without; expected a prior with a chroma conditioner")
        waveform, rate = audio.read_audio(options.chroma, spec.sample_rate)
        chroma = torch.from_numpy(chroma_classes(waveform, rate, spec.hop_lengths[0])).long()
    precision = compat.current_precision(options.precision, precisions(priors[0].head.weight.device))
    return Request(n_samples, [], seed, labels, options.text, chroma, precision, _notes(priors, n_samples, options))


def _label_indexes(vocabularies: Mapping[str, list[str]], labels: Mapping[str, Any]) -> dict[str, int | list[float]]:
    if not isinstance(labels, Mapping):
        raise ValueError(f"labels: expected names with values, such as {{'genre': 'folk'}}, found {labels!r:.80}")
    indexes: dict[str, int | list[float]] = {}
    for name, given in labels.items():
        if name not in vocabularies:
            raise ValueError(f"label {name}: this model knows the labels: {listed(list(vocabularies), name)}")
        values, shares = vocabularies[name], given if isinstance(given, Mapping) else {str(given): 1.0}
        for value, share in shares.items():
            if value not in values:
                raise ValueError(f"label {name}={value!s:.60}: expected one of: {listed(values, str(value))}")
            if not isinstance(share, int | float | np.number) or not 0 <= share <= 1:
                raise ValueError(f"label {name}: expected a share of {value} from 0 to 1, found {share!r:.40}")
        if sum(shares.values()) > 1 + 1e-6:
            raise ValueError(f"label {name}: expected shares of at most 1 together, found {sum(shares.values()):g}")
        mixture = [float(shares.get(value, 0)) for value in values]
        indexes[name] = mixture if isinstance(given, Mapping) else values.index(str(given)) + 1  # 0 is unknown
    return indexes


def _notes(priors: Sequence[Prior], n_samples: int, options: PieceOptions) -> Tensor | None:
    """The frames of notes or chords, one per code of level 0: int64 [n_frames]."""
    if options.notes is None and not options.chords:
        return None
    name, spec = "chords" if options.chords else "notes", priors[0].spec
    if options.chords and options.notes is not None:
        raise ValueError("notes, chords: expected one of them, found both")
    if not any(prior.config.extra_inputs["notes"] for prior in priors):
        raise ValueError(f"{name}: this model was trained without; expected a prior with a notes conditioner")
    rate, hop = spec.sample_rate, spec.hop_lengths[0]
    n_frames = -(-n_samples // hop)
    if options.chords:
        once = chord_frames(options.chords, hop / rate)
        frames = np.tile(once, -(-n_frames // len(once)))  # whole, because `Live` begins again after them
    else:
        frames = requested_frames(options.notes, rate, hop, n_frames)
    return torch.from_numpy(frames).long()
