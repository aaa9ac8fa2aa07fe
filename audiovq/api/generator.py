"""`Generator`: nothing, or a prompt → new music."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq.api.live import Live
from audiovq.api.options import PieceOptions, level_settings, make_request
from audiovq.api.tokenizer import Tokenizer
from audiovq.config import whole_number
from audiovq.data.codes import Codes
from audiovq.pretrained import checkpoint
from audiovq.pretrained.export import Models, Shareable
from audiovq.pretrained.locate import check_priors, prior_folders, resolve_model
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.sampling.engine import few_threads
from audiovq.sampling.generate import CodesCallback, generate, ignore_codes
from audiovq.sampling.inpainting import MAX_SECONDS, CodeMask, begin_with, redraw, surround
from audiovq.sampling.likelihood import bits_per_second
from audiovq.utils import compat
from audiovq.utils.device import Device, pick_device, torch_defaults
from audiovq.utils.progress import ProgressBar, say

ITEMS_AT_ONCE = 16


class Generator(Shareable):
    """New music from a tokenizer and its priors.

    >>> music = Generator.from_pretrained("runs/quickstart").sample(seconds=20, seed=0)

    Args:
        sampling: recommended settings of each level; default those of `SamplingConfig`.
    Raises:
        ValueError: no prior, or priors of another tokenizer.
    """

    def __init__(
        self, tokenizer: Tokenizer, priors: Sequence[Prior], sampling: Sequence[SamplingConfig] = (),
        device: Device = None,
    ):  # fmt: skip
        if not priors:
            raise ValueError("generator: expected at least the prior of level 0, found none")
        self.tokenizer, self.sample_rate = tokenizer, tokenizer.sample_rate
        self.device = pick_device(device or tokenizer.device)
        self.priors = [prior.to(self.device).eval() for prior in priors]
        self.sampling = list(sampling or [SamplingConfig() for _ in priors])
        self.hop_lengths = list(tokenizer.config.hop_lengths[: len(priors)])
        _check_fit(self.priors, tokenizer)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: Device = None, **hub: str | None) -> "Generator":
        """Load from a run, an exported folder or a hub id (for `revision` and `token` see `resolve_model`).
        Raises ValueError for no such model, no prior yet, or damaged files."""
        folder = resolve_model(source, **hub)
        check_priors(folder)
        if not prior_folders(folder):
            advice = "run `audiovq train` to its end, or choose another --model"
            raise ValueError(f"{source}: no trained prior there; {advice}")
        priors, sampling = zip(*map(checkpoint.load_prior, prior_folders(folder)), strict=True)
        tokenizer = Tokenizer.from_pretrained(folder, device)
        if len(priors) < tokenizer.config.n_levels:
            trained = f"{len(priors)} of {tokenizer.config.n_levels} priors are trained"
            say(f"{source}: {trained}, so its music has the coarsest levels only and lacks detail")
        return cls(tokenizer, priors, sampling, device)

    def _models(self) -> Models:
        return self.tokenizer.network, self.priors, self.sampling

    @property
    def labels(self) -> dict[str, list[str]]:
        """The values of each label that this model knows."""
        return self.priors[0].spec.vocabularies

    def sample(self, seconds: float | None = None, seed: int = 0, n: int = 1, **options: Any) -> Tensor:
        """New music, float [n, channels, round(seconds · sample_rate)]; all else as `sample_codes`."""
        return torch.stack([self.tokenizer.decode(codes) for codes in self.sample_codes(seconds, seed, n, **options)])

    def sample_codes(
        self, seconds: float | None = None, seed: int = 0, n: int = 1, *, prompt: Codes | None = None,
        given: CodeMask | None = None, on_codes: CodesCallback = ignore_codes, **options: Any,
    ) -> list[Codes]:  # fmt: skip
        """Generate the codes of `n` pieces. Item i of a seed is the same piece whatever `n` is.

        Args:
            seconds: length of the whole piece, a prompt included; not with `given`, which has a length.
            prompt: codes of a clip that the piece starts with.
            given: codes that stay (see `keep`); all others are drawn.
            on_codes: see `sampling.generate`.
            options: the fields of `PieceOptions`.
        Raises:
            ValueError: an impossible length, label or setting.
        """
        if (n := whole_number(n, "n")) < 1:
            raise ValueError(f"n: expected at least 1, found {n}")
        if (seconds is None) == (given is None):
            raise ValueError("seconds: expected a length, or given codes (which have one), not both")
        if prompt is not None and given is not None:
            raise ValueError("prompt, given: expected one of them")
        n_samples = given.n_samples if given else self.n_samples(seconds or 0.0)
        if prompt is not None:
            given = self.begin_with(prompt, n_samples)
        compat.check_keywords(options)
        if given:
            given.check(self.hop_lengths, n)
        return list(self.pieces(n_samples, seed, range(n), PieceOptions(**options), given=given, on_codes=on_codes))

    def pieces(
        self, n_samples: int, seed: int, items: Sequence[int], options: PieceOptions | None = None, *,
        given: CodeMask | None = None, on_codes: CodesCallback = ignore_codes, in_time_order: bool = False,
    ) -> Iterator[Codes]:  # fmt: skip
        """Generate the items `items` of a seed, in turn; arguments as `sample_codes` and `sampling.generate`."""
        options = options or PieceOptions()
        priors, settings = self.priors, level_settings(self.sampling, options)
        request = make_request(self.priors, n_samples, seed, options)
        groups = [range(i, min(i + ITEMS_AT_ONCE, len(items))) for i in range(0, len(items), ITEMS_AT_ONCE)]
        n_positions = len(groups) * sum(-(-n_samples // hop) for hop in self.hop_lengths)
        seconds = len(items) * n_samples / self.sample_rate / max(n_positions, 1)  # of audio per position
        hidden = not options.progress
        with ProgressBar("sample", n_positions, hidden=hidden, unit="audio-s", per_step=seconds) as bar:
            for group in groups:
                request = dataclasses.replace(request, items=[int(items[i]) for i in group])
                # The codes [n] or [items, n] of each level, for this group.
                levels = given.levels if given else ()
                mask = [level[None] if level.ndim == 1 else level[group.start : group.stop] for level in levels] or None
                with few_threads(priors):
                    levels = generate(priors, settings, request, mask, _advancing(bar, on_codes), in_time_order)
                for row in zip(*(level.cpu() for level in levels), strict=True):
                    yield self.tokenizer.make_codes(row, n_samples)

    def live(self, seed: int = 0, **options: Any) -> Live:
        """Music without end that can be changed while it sounds; arguments as `Live`."""
        return Live(self, seed, **options)

    def begin_with(self, prompt: Codes, n_samples: int) -> CodeMask:
        """A piece of `n_samples` that starts with `prompt`; ValueError for one that cannot be continued."""
        self.tokenizer.check_codes(prompt)
        return begin_with(prompt, n_samples)

    def keep(
        self, piece: Codes, *, stretch: tuple[float, float] | None = None, before: float = 0, after: float = 0,
        levels: int | None = None,
    ) -> CodeMask:  # fmt: skip
        """The codes of a piece that stay, for `sample_codes(given=...)`. One of:

        - all but a `stretch` (from, to) in seconds, where nothing or the first `levels` stay;
        - all of them, with `before` and `after` seconds of new music around the piece;
        - the first `levels`.

        Raises ValueError for codes of another tokenizer, or an impossible choice.
        """
        self.tokenizer.check_codes(piece)
        if (before or after) and (stretch or levels is not None):
            raise ValueError("before, after: expected neither a stretch nor levels with them")
        if before or after:
            mask = surround(piece, before, after)
        elif stretch:
            mask = redraw(piece, *stretch, levels or 0)
        else:
            mask = redraw(piece, 0, piece.seconds, len(piece.levels) if levels is None else levels)
        mask.check(self.hop_lengths, 1)
        return mask

    @torch_defaults()
    def bits_per_second(
        self, pieces: Sequence[Codes], labels: Mapping[str, Any] | None = None, **conditions: Any
    ) -> list[float]:
        """The information of each piece's codes under the priors in bits per second; likelier codes have less.
        Conditions are labels, text, chroma, notes and chords, see `PieceOptions`. Raises ValueError for codes of
        another tokenizer or of unequal lengths, and for unknown conditions."""
        for piece in pieces:
            self.tokenizer.check_codes(piece)
            if piece.n_samples != pieces[0].n_samples:
                raise ValueError(f"pieces: expected equal lengths, found {pieces[0].n_samples} and {piece.n_samples}")
        costs: list[float] = []
        options = PieceOptions(labels=labels or {}, **conditions)
        for i in range(0, len(pieces), ITEMS_AT_ONCE):
            group = pieces[i : i + ITEMS_AT_ONCE]
            request = make_request(self.priors, group[0].n_samples, 0, options)
            levels = [torch.stack(rows) for rows in zip(*(codes.levels for codes in group), strict=True)]
            costs += bits_per_second(self.priors[: len(levels)], levels, request).tolist()
        return costs

    def n_samples(self, seconds: float) -> int:
        """The length of a piece in samples. Raises ValueError for an impossible length."""
        try:
            length = float(seconds)
        except (TypeError, ValueError):
            length = math.nan
        if not 0 < length <= MAX_SECONDS:
            raise ValueError(f"seconds: expected a number above 0 and up to {MAX_SECONDS:.0f}, found {seconds!r:.40}")
        return max(1, round(length * self.sample_rate))


def _check_fit(priors: Sequence[Prior], tokenizer: Tokenizer) -> None:
    """Raises ValueError for priors of other codes, or with other numbers for the same labels."""
    known, c = priors[0].spec.vocabularies, tokenizer.config
    for level, spec in enumerate(prior.spec for prior in priors):
        if spec.tokenizer_hash != tokenizer.hash:
            expected, found = (each[:12] for each in (tokenizer.hash, spec.tokenizer_hash))
            problem = f"expected one trained on codes of tokenizer {expected}, found one for {found}"
            raise ValueError(f"prior {level}: {problem}; train the priors again")
        expected = (level, list(c.hop_lengths), c.sample_rate, c.codebook_size, c.slots)
        found = (spec.level, list(spec.hop_lengths), spec.sample_rate, spec.codebook_size, spec.slots)
        if found != expected:
            raise ValueError(f"prior {level}: expected level, hops, rate, codes and slots {expected}, found {found}")
        for name in known.keys() & spec.vocabularies.keys():
            if known[name] != spec.vocabularies[name]:
                raise ValueError(f"prior {level}: expected the values of label {name} that prior 0 has, found others")


def _advancing(bar: ProgressBar, on_codes: CodesCallback) -> CodesCallback:
    done: dict[int, int] = {}

    def advance(level: int, codes: Tensor) -> None:
        bar.advance(codes.shape[1] - done.get(level, 0), f"level {level}")
        done[level] = codes.shape[1]
        on_codes(level, codes)

    return advance
