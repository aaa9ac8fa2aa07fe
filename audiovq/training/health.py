"""Health checks: what goes wrong in a training, since which step, and which setting to change.

`Watch.update` takes the metrics of a step and returns new findings. It reads no clock and no files, so that
a resumed training that shows it the same metrics again brings it to the same state.

A check is a function of the facts of a stage and its metrics so far. Each finding is reported once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from audiovq.recipe import TrainingConfig

Points = list[tuple[int, float]]  # step and value of one metric
Series = Mapping[str, Points]

LASTING = 3  # values in a row that must be wrong, because a single batch may be unusual
MEDIAN_VALUES = 50  # for the running median of a gradient norm, at most
MIN_VALUES = 8  # for a median or quantile to mean something
COLLAPSED = 0.05  # of the highest possible perplexity
EXPLODED = 10.0  # times the median gradient norm
DIVERGED = 2.0  # times a low loss
SILENT_DB = -40.0  # power of a reconstruction relative to the music
WAITING = 0.3  # share of the time of a step
RISE = 1.01  # held-out loss relative to its lowest value


@dataclass(frozen=True)
class StageFacts:
    """The settings of a stage that the checks need."""

    title: str
    recipe_key: str  # of the stage: tokenizer, decoder_tuning, priors.0
    training: TrainingConfig
    learning_rates: Mapping[str, float] = field(default_factory=dict)  # by key; the main one first
    adversarial: bool = False  # networks are trained against each other, so the loss need not fall
    codes_from: int = 0  # step at which quantization and all loss terms are on; older metrics are ignored
    codebook_size: int = 0
    batch_codes: tuple[int, ...] = ()  # codes in a batch, for each level; () for a stage that makes none
    against_collapse: str = ""  # advice
    against_overfitting: str = ""
    against_silence: str = ""
    workers: int = 0
    cpus: int = 1

    @property
    def warmed_up(self) -> int:
        """The step after which outputs should be useful."""
        return self.codes_from + max(self.training.warmup_steps, self.training.steps // 20)

    def lower_learning_rate(self, factor: float, part: str = "") -> str:
        """Advice to divide the learning rate of a part by `factor`."""
        rates = self.learning_rates or {"learning_rate": self.training.learning_rate}
        name = next((name for name in rates if part and name.startswith(part)), next(iter(rates)))
        rate = rates[name]
        return f"set {self.recipe_key}.training.{name} to {rate / factor:.2g} (now {rate:g})"


class Symptom(NamedTuple):
    """What a check returns."""

    since: int  # step
    subject: str  # such as the level, where one check may find several things
    text: str


@dataclass(frozen=True)
class Finding:
    """A problem: found at `step`, and there since step `since`."""

    stage: str
    step: int
    since: int
    check: str
    subject: str
    message: str  # one line: what is wrong, since when, and what to change


Check = Callable[[StageFacts, Series], Iterator[Symptom]]  # a function


class Watch:
    """All checks for one training.

    Attributes:
        reported: check and subject of all findings so far.
    """

    def __init__(self, facts: StageFacts):
        self.facts = facts
        self.reported: set[tuple[str, str]] = set()
        self.series: defaultdict[str, Points] = defaultdict(list)
        self.last_step = 0

    def update(self, step: int, metrics: Mapping[str, float]) -> list[Finding]:
        """Add metrics of a step; returns findings that were not reported before."""
        if self.last_step <= self.facts.codes_from < step:
            self.series.clear()  # another loss and other gradients from here on
        self.last_step = step
        for name, value in metrics.items():
            self.series[name if math.isfinite(value) else f"not finite: {name}"].append((step, value))
        findings = []
        for check in CHECKS:
            name = check.__name__
            for since, subject, text in check(self.facts, self.series):
                if (name, subject) not in self.reported:
                    self.reported.add((name, subject))
                    message = f"{self.facts.title}: since step {since} {text}"
                    findings.append(Finding(self.facts.title, step, since, name, subject, message))
        return findings


def wrong_since(points: Points, is_wrong: Callable[[float], bool], n: int = LASTING) -> int | None:
    """The step since which all values are wrong; None if these are fewer than `n`."""
    run = list(itertools.takewhile(lambda point: is_wrong(point[1]), reversed(points)))
    return run[-1][0] if len(run) >= n else None


def after(points: Points, step: int) -> Points:
    return [point for point in points if point[0] > step]


# --- checks ---------------------------------------------------------------------------------------


def not_finite(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """Skipped steps; the loop itself stops the training after several in a row."""
    first = next(((step, n) for step, n in series.get("skipped_steps", []) if n > 0), None)
    if first:
        text = (
            "some losses or gradients are not finite, and these steps are skipped "
            f"({first[1]:.0f} so far); if it happens more often, {facts.lower_learning_rate(3)}"
        )
        yield Symptom(first[0], "training", text)
    for step, _ in series.get("not finite: valid_loss", [])[:1]:
        yield Symptom(step, "held out", f"the held-out loss is not finite; {facts.lower_learning_rate(3)}")


def collapsed_codebook(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """Perplexity far below what codebook and batch allow."""
    for level, n_codes in enumerate(facts.batch_codes):
        possible = min(facts.codebook_size, n_codes)
        limit = max(1.5, COLLAPSED * possible)
        points = after(series.get(f"perplexity_{level}", []), facts.warmed_up)
        since = wrong_since(points, lambda value, limit=limit: value < limit)
        if since is not None:
            usage = series.get(f"usage_{level}", [(0, 0.0)])[-1][1]
            text = (
                f"the codebook of level {level} has collapsed: perplexity {points[-1][1]:.1f} of {possible} "
                f"possible, {usage:.1%} of the codes in use; {facts.against_collapse or facts.lower_learning_rate(3)}"
            )
            yield Symptom(since, f"level {level}", text)


def silence(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """Silent examples or silent reconstructions."""
    shares = series.get("silent_share", [])
    since = wrong_since(shares, lambda share: share > 0.5)
    if since is not None:
        text = (
            f"{shares[-1][1]:.0%} of the examples are silent; remove the tracks that data/report.json lists "
            f"as mostly_silent from data.folder{facts.against_silence}"
        )
        yield Symptom(since, "music", text)
    music = {step: power for step, power in series.get("power", []) if power > 1e-6}
    ratios = [(s, power / music[s]) for s, power in series.get("reconstruction_power", []) if s in music]
    since = wrong_since(after(ratios, facts.warmed_up), lambda ratio: ratio < 10 ** (SILENT_DB / 10))
    if since is not None:
        level = 10 * math.log10(max(ratios[-1][1], 1e-20))
        text = f"reconstructions are silent ({level:.0f} dB relative to the music)"
        yield Symptom(since, "reconstruction", f"{text}; {facts.lower_learning_rate(3)}")


def exploding_gradients(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """Two norms in a row far above the running median."""
    for name in [name for name in series if name.startswith("gradient_norm")]:
        earlier, last = series[name][:-2][-MEDIAN_VALUES:], series[name][-2:]
        usual = median(value for _, value in earlier) if len(earlier) >= MIN_VALUES else 0.0
        if usual and all(value > EXPLODED * usual for _, value in last):
            part = name.removeprefix("gradient_norm").strip("_")
            text = (
                f"{part or 'the'} gradients explode: their norm is {last[-1][1]:.3g}, the median was "
                f"{usual:.3g}; {facts.lower_learning_rate(2, part.removesuffix('s'))}, "
                f"or {facts.recipe_key}.training.gradient_clip to {usual:.2g}"
            )
            yield Symptom(last[0][0], part, text)


def diverging(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """A loss that rises far above its first quintile (not its minimum, because one batch may be easy)."""
    points = series.get("loss", [])[-400:]
    if facts.adversarial or len(points) < MIN_VALUES:
        return
    low = sorted(value for _, value in points)[len(points) // 5]
    since = wrong_since(points, lambda value: value > DIVERGED * low, 5) if low > 0 else None
    if since is not None:
        text = f"the loss diverges: {points[-1][1]:.3g}, after {low:.3g}; {facts.lower_learning_rate(3)}"
        yield Symptom(since, "", text)


def overfitting(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """A held-out loss that stays above its minimum while the training loss falls."""
    held_out, training = series.get("valid_loss", []), series.get("loss", [])
    best_step, best = min(held_out, key=lambda point: point[1], default=(0, 0.0))
    since = wrong_since(held_out, lambda value: value > RISE * best)
    if facts.adversarial or since is None or best <= 0:
        return
    # Median training loss of the steps before the best evaluation, and before the last one.
    steps = [0, *(step for step, _ in held_out)]
    spans = [(a, b) for a, b in itertools.pairwise(steps) if b in (best_step, steps[-1])]
    losses = [[value for step, value in training if a < step <= b] for a, b in spans]
    then, now = (median(values) if values else math.inf for values in (losses[0], losses[-1]))
    if now < then / RISE:
        text = (
            f"it overfits: the held-out loss rises ({best:.3g} → {held_out[-1][1]:.3g}) while the training "
            f"loss falls ({then:.3g} → {now:.3g}); set {facts.recipe_key}.training.steps to {best_step} "
            f"(now {facts.training.steps}){facts.against_overfitting}, or add music"
        )
        yield Symptom(best_step, "", text)


def slow_data(facts: StageFacts, series: Series) -> Iterator[Symptom]:
    """Steps that wait for their batches. The first value is left out: everything is slow at the start."""
    points = series.get("data_wait_share", [])[1:]
    since = wrong_since(points, lambda share: share > WAITING, 5)
    if since is not None:
        wanted = 2 * facts.workers or max(1, min(8, facts.cpus))
        text = (
            f"{points[-1][1]:.0%} of the time is spent waiting for data; set data.workers to {wanted} "
            f"(now {facts.workers}), or raise data.cache_gigabytes until the decoded music fits"
        )
        yield Symptom(since, "", text)


CHECKS: tuple[Check, ...] = (
    not_finite,
    collapsed_codebook,
    silence,
    exploding_gradients,
    diverging,
    overfitting,
    slow_data,
)
