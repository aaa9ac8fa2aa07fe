"""A watch over a training, in plain language: what goes wrong, since which step, and what to change.

`Watch.look` gets the figures of a step as they arrive and returns what is newly found. It has no clock, no files and no
chance: shown the same figures again, as a training that goes on does, it is in the same state again.

A check is a function of facts and figures in `CHECKS`; it yields what it finds, and the watch says each thing once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

from audiovq.recipe import TrainingConfig

Points = list[tuple[int, float]]  # of a figure: step and value
Series = Mapping[str, Points]
WATCHED = ("loss", "valid_loss", "gradient_norm", "perplexity_", "usage_", "silent_share", "power",
           "reconstruction_power", "skipped_steps", "data_wait_share")  # fmt: skip

LASTING = 3  # looks in a row that must agree: a single batch may be odd
MEMORY = 50  # looks that a running median is of
ENOUGH = 8  # looks that make a median worth something
COLLAPSED = 0.05  # of the perplexity that is possible
EXPLODED = 10.0  # times the median gradient
DIVERGED = 2.0  # times a low loss
SILENT_DB = -40.0  # a reconstruction against its music
WAITING = 0.3  # of the time of the steps
RISE = 1.01  # of the held-out loss above its lowest


@dataclass(frozen=True)
class StageFacts:
    """What the checks must know of a training besides its figures."""

    title: str
    place: str  # of the stage in the recipe: tokenizer, decoder_tuning, priors.0
    training: TrainingConfig
    learning_rates: Mapping[str, float] = field(
        default_factory=dict
    )  # recipe keys behind `place`.training; first: main
    adversarial: bool = False  # several networks against each other: the loss need not fall
    codes_from: int = 0  # the step from which on there are codes and the whole loss; everything begins anew there
    codebook_size: int = 0
    batch_codes: tuple[int, ...] = ()  # codes of one batch, a level; () for a stage that makes none
    against_collapse: str = ""
    against_overfitting: str = ""
    against_silence: str = ""
    workers: int = 0
    cpus: int = 1

    @property
    def warmed_up(self) -> int:
        """The step from which on a network should be good for something."""
        return self.codes_from + max(self.training.warmup_steps, self.training.steps // 20)

    def lower(self, by: float, suffix: str = "") -> str:
        """Advice to lower the learning rate of a part."""
        name, rate = next(
            (item for item in self.learning_rates.items() if suffix and item[0].startswith(suffix)),
            next(iter(self.learning_rates.items()), ("learning_rate", self.training.learning_rate)),
        )
        return f"set {self.place}.training.{name} to {rate / by:.2g} (now {rate:g})"


@dataclass(frozen=True)
class Found:
    since: int
    subject: str  # tells apart what one check finds in several places
    text: str


@dataclass(frozen=True)
class Finding:
    """Something to mend. `step` is when it was seen, `since` when it began."""

    stage: str
    step: int
    since: int
    check: str
    subject: str
    message: str  # one line: what, since when, and what to change

    @property
    def key(self) -> tuple[str, str]:
        return self.check, self.subject


Check = Callable[[StageFacts, Series], Iterator[Found]]


class Watch:
    """All checks over one training; `said` is what need not be said again."""

    def __init__(self, facts: StageFacts, said: set[tuple[str, str]] | None = None):
        self.facts, self.said = facts, set(said or ())
        self.series: defaultdict[str, Points] = defaultdict(list)
        self.last = 0

    def look(self, step: int, figures: Mapping[str, float]) -> list[Finding]:
        """Take in the figures of a step, any of them, and say what they show for the first time."""
        if self.last <= self.facts.codes_from < step:
            self.series.clear()  # another loss and other gradients than before there were codes
        self.last = step
        for name, value in figures.items():
            if name.startswith(WATCHED):
                self.series[name if math.isfinite(value) else f"not finite: {name}"].append((step, value))
        return [finding for name, check in CHECKS.items() for finding in self._ask(name, check, step)]

    def _ask(self, name: str, check: Check, step: int) -> Iterator[Finding]:
        for found in check(self.facts, self.series):
            if (name, found.subject) not in self.said:
                self.said.add((name, found.subject))
                message = f"{self.facts.title}: since step {found.since} {found.text}"
                yield Finding(self.facts.title, step, found.since, name, found.subject, message)


def lasting(points: Points, wrong: Callable[[float], bool], times: int = LASTING) -> int | None:
    """The step from which on every value is wrong, if there are so many of them."""
    run = list(itertools.takewhile(lambda point: wrong(point[1]), reversed(points)))
    return run[-1][0] if len(run) >= times else None


def after(points: Points, step: int) -> Points:
    """Those later than a step."""
    return list(itertools.takewhile(lambda point: point[0] > step, reversed(points)))[::-1]


# --- checks -----------------------------------------------------------------------------------------------------------


def not_finite(facts: StageFacts, series: Series) -> Iterator[Found]:
    """Steps that were skipped; the loop itself stops if they go on."""
    first = next(((step, n) for step, n in series.get("skipped_steps", []) if n > 0), None)
    if first:
        what = f"loss or gradients are not finite at times: {first[1]:.0f} skipped, which changed nothing"
        yield Found(first[0], "training", f"{what}; if there are more, {facts.lower(3)}")
    for step, _ in series.get("not finite: valid_loss", [])[:1]:
        yield Found(step, "held out", f"the loss of the held-out tracks is not finite; {facts.lower(3)}")


def collapsed_codebook(facts: StageFacts, series: Series) -> Iterator[Found]:
    """Few codes for everything: perplexity far below what codebook and batch allow."""
    for level, n_codes in enumerate(facts.batch_codes):
        possible = min(facts.codebook_size, n_codes)
        points = after(series.get(f"perplexity_{level}", []), facts.warmed_up)
        limit = max(1.5, COLLAPSED * possible)
        since = lasting(points, lambda value, limit=limit: value < limit)
        if since is not None:
            usage = series.get(f"usage_{level}", [(0, 0.0)])[-1][1]
            yield Found(
                since, f"level {level}",
                f"level {level}'s codebook has collapsed: perplexity {points[-1][1]:.1f} of {possible} that are possible, "
                f"{usage:.1%} of the codes in use; {facts.against_collapse or facts.lower(3)}",
            )  # fmt: skip


def silence(facts: StageFacts, series: Series) -> Iterator[Found]:
    """Nothing to hear, or nothing heard."""
    shares = series.get("silent_share", [])
    since = lasting(shares, lambda share: share > 0.5)
    if since is not None:
        yield Found(
            since, "music",
            f"{shares[-1][1]:.0%} of the examples are silent; take the tracks that data/report.json lists as mostly_silent "
            f"out of data.folder{facts.against_silence}",
        )  # fmt: skip
    music = {step: power for step, power in series.get("power", []) if power > 1e-6}
    ratios = [(s, p / music[s]) for s, p in series.get("reconstruction_power", []) if s in music]
    since = lasting(after(ratios, facts.warmed_up), lambda ratio: ratio < 10 ** (SILENT_DB / 10))
    if since is not None:
        level = 10 * math.log10(max(ratios[-1][1], 1e-20))
        yield Found(
            since, "reconstruction", f"reconstructions are silent ({level:.0f} dB against the music); {facts.lower(3)}"
        )


def exploding_gradients(facts: StageFacts, series: Series) -> Iterator[Found]:
    """Two looks in a row far above the running median."""
    for name in [name for name in series if name.startswith("gradient_norm")]:
        earlier, last = series[name][:-2][-MEMORY:], series[name][-2:]
        usual = median(value for _, value in earlier) if len(earlier) >= ENOUGH else 0.0
        if usual and all(value > EXPLODED * usual for _, value in last):
            part = name.removeprefix("gradient_norm").strip("_")
            yield Found(
                last[0][0], part,
                f"{part or 'the'} gradients explode: {last[-1][1]:.3g}, their median was {usual:.3g}; "
                f"{facts.lower(2, part.removesuffix('s'))}, or {facts.place}.training.gradient_clip to {usual:.2g}",
            )  # fmt: skip


def diverging(facts: StageFacts, series: Series) -> Iterator[Found]:
    """A loss that was low and is not any more. Low is what a fifth of the looks were below: one batch may be easy."""
    points = series.get("loss", [])[-400:]
    if facts.adversarial or len(points) < ENOUGH:
        return
    low = sorted(value for _, value in points)[len(points) // 5]
    since = lasting(points, lambda value: value > DIVERGED * low, 5) if low > 0 else None
    if since is not None:
        yield Found(since, "", f"the loss diverges: {points[-1][1]:.3g}, after {low:.3g}; {facts.lower(3)}")


def overfitting(facts: StageFacts, series: Series) -> Iterator[Found]:
    """Held-out loss above its lowest ever since, while the training loss goes on falling."""
    held_out, training = series.get("valid_loss", []), series.get("loss", [])
    best_step, best = min(held_out, key=lambda point: point[1], default=(0, 0.0))
    since = lasting(held_out, lambda value: value > RISE * best)
    if facts.adversarial or since is None or best <= 0:
        return
    steps = [0, *(step for step, _ in held_out)]
    spans = [(a, b) for a, b in itertools.pairwise(steps) if b in (best_step, steps[-1])]
    losses = [[value for step, value in training if a < step <= b] for a, b in spans]
    then, now = (median(values) if values else math.inf for values in (losses[0], losses[-1]))
    if now < then / RISE:
        yield Found(
            best_step, "",
            f"it learns by heart: the held-out loss rises ({best:.3g} → {held_out[-1][1]:.3g}) while the training loss falls "
            f"({then:.3g} → {now:.3g}); set {facts.place}.training.steps to {best_step} (now {facts.training.steps})"
            f"{facts.against_overfitting}, or add music",
        )  # fmt: skip


def slow_data(facts: StageFacts, series: Series) -> Iterator[Found]:
    """Steps that wait for their batches. The first look is of the start, when everything is slow."""
    points = series.get("data_wait_share", [])[1:]
    since = lasting(points, lambda share: share > WAITING, 5)
    if since is not None:
        wanted = 2 * facts.workers or max(1, min(8, facts.cpus))
        yield Found(
            since, "",
            f"{points[-1][1]:.0%} of the time waits for data; set data.workers to {wanted} (now {facts.workers}), "
            "or data.cache_gigabytes so high that the decoded music fits",
        )  # fmt: skip


CHECKS: dict[str, Check] = {
    "not_finite": not_finite, "collapsed_codebook": collapsed_codebook, "silence": silence,
    "exploding_gradients": exploding_gradients, "diverging": diverging, "overfitting": overfitting, "slow_data": slow_data,
}  # fmt: skip
