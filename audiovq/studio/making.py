"""New music: what a request means for the codes of a piece, and the work itself."""

import functools
import random
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq.api.generator import Generator
from audiovq.api.options import PieceOptions, level_settings, make_request
from audiovq.data.codes import Codes
from audiovq.prior.prior import SamplingConfig
from audiovq.sampling.inpainting import CodeMask
from audiovq.studio.jobs import Job
from audiovq.studio.projects import Kept
from audiovq.studio.requests import JobRequest, Limits

CELL_SECONDS = 1.0  # of the parts that `vary` replaces


@dataclass(frozen=True)
class Plan:
    title: str
    seed: int
    n_samples: int
    mask: CodeMask | None  # the codes that stay, of all takes
    options: PieceOptions

    def kept(self, take: int, hop_lengths: list[int]) -> Kept | None:
        """Where one of the takes has all the codes of the piece that it was made from."""
        if self.mask is None:
            return None
        rows = [level if level.ndim == 1 else level[take] for level in self.mask.levels]
        mask = CodeMask(self.n_samples, rows, self.mask.source_start)
        stretches = mask.given_stretches(hop_lengths)
        return Kept(source_start=mask.source_start, stretches=stretches) if stretches else None


def make_plan(model: Generator, limits: Limits, request: JobRequest, piece: Codes | None, source: Path | None) -> Plan:
    """What a request means for the codes of a piece (None for a new one), with a recording to follow if
    wished. Raises ValueError for an impossible request."""
    if not 1 <= request.takes <= limits.max_takes:
        raise ValueError(f"takes: expected 1 to {limits.max_takes}, found {request.takes}")
    seed = secrets.randbelow(10**6) if request.seed is None else request.seed
    if piece is None:
        limits.check_seconds(request.seconds)
        title, mask, n_samples = "new piece", None, model.n_samples(request.seconds)
    else:
        title, mask = _change(model, limits, request, piece, seed)
        n_samples = mask.n_samples
    options = _options(model, request, source)
    level_settings(model.sampling, options)  # raises for values that are out of range
    make_request(model.priors, n_samples, seed, options)  # and for unknown labels
    return Plan(title, seed, n_samples, mask, options)


def _options(generator: Generator, request: JobRequest, reference: Path | None) -> PieceOptions:
    if unknown := request.settings.keys() - SamplingConfig.model_fields.keys():
        raise ValueError(f"settings: expected {', '.join(SamplingConfig.model_fields)}; found {min(unknown)}")
    settings: dict[str, Any] = dict(request.settings)
    if "top_k" in settings:
        settings["top_k"] = [int(value) for value in settings["top_k"]]
    inputs = [prior.config.extra_inputs for prior in generator.priors]
    by_notes = any(known["notes"] for known in inputs) and not any(known["chroma"] for known in inputs)
    settings["notes" if by_notes else "chroma"] = reference
    options = PieceOptions(labels=dict(request.labels), text=request.text, chords=request.chords, **settings)
    return options if options.conditional else replace(options, guidance=None)  # nothing to follow more or less closely


def _change(generator: Generator, limits: Limits, request: JobRequest, piece: Codes, seed: int) -> tuple[str, CodeMask]:
    """The title of a change, and the codes of the piece that stay."""
    if request.kind == "extend":
        before, after = request.before, request.after
        limits.check_seconds(piece.seconds + before + after)
        words = [f"{before:g} s before it"] * (before > 0) + [f"{after:g} s more"] * (after > 0)
        return ", ".join(words), generator.keep(piece, before=before, after=after)
    if request.kind == "redraw":
        start, end = request.start, min(request.end, piece.seconds)
        mask = generator.keep(piece, stretch=(start, end), levels=request.keep_levels)
        return f"new from {start:.1f} to {end:.1f} s", mask
    if request.kind == "vary":  # parts here and there, others in each take
        percent = request.percent
        if not 0 < percent <= 100:
            raise ValueError(f"how much to vary must be above 0 and up to 100 %; found {percent:g} %")
        starts = [i * CELL_SECONDS for i in range(max(1, round(piece.seconds / CELL_SECONDS)))]
        cells, takes = list(zip(starts, [*starts[1:], piece.seconds], strict=True)), list[list[Tensor]]()
        for i in range(request.takes):
            chosen = random.Random(f"{seed} {i}").sample(cells, max(1, round(percent / 100 * len(cells))))
            masks = [generator.keep(piece, stretch=stretch).levels for stretch in chosen]
            takes.append([functools.reduce(torch.minimum, rows) for rows in zip(*masks, strict=True)])
        levels = [torch.stack(rows) for rows in zip(*takes, strict=True)]
        return f"varied by {percent:g} %", CodeMask(piece.n_samples, levels)
    n_kept, n_levels = request.keep_levels, len(generator.hop_lengths)
    words = "new details"
    if n_kept > 1 and generator.tokenizer.config.topology != "bands":  # whose levels the page names by notes
        words = f"new details after “Medium {n_kept - 1}”" if n_kept < n_levels - 1 else "new finest sound"
    return words, generator.keep(piece, levels=n_kept)


def draw(generator: Generator, plan: Plan, n_takes: int, job: Job) -> list[Codes]:
    """The codes of all takes; raises Stopped if the user stopped the job."""
    n_codes = [-(-plan.n_samples // hop_length) for hop_length in generator.hop_lengths]

    def on_codes(level: int, codes: Tensor) -> None:
        share = (sum(n_codes[:level]) + codes.shape[1]) / sum(n_codes)
        job.report(share, f"level {level} (the finest is {len(n_codes) - 1})")

    options = {"given": plan.mask, "on_codes": on_codes}
    return list(generator.pieces(plan.n_samples, plan.seed, range(n_takes), plan.options, **options))
