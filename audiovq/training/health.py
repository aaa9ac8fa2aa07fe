"""Health checks: what goes wrong in a training, since which step, and which setting to change.

A check is a function of the facts of a stage and its metrics so far. It yields the step since when something
is wrong, its subject (such as the level, where one check may find several things) and a text. The first
finding of a check about a subject is reported, once. A resumed training comes to the same state.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from audiovq.recipe import TrainingConfig

Points = list[tuple[int, float]]  # step and value of one metric
Series = defaultdict[str, Points]  # by name
Findings = Iterator[tuple[int, str, str]]

LASTING = 3  # values in a row that must be wrong, because a single batch may be unusual
COLLAPSED = 0.05  # of the highest possible perplexity
RISE = 1.01  # held-out loss relative to its lowest value


@dataclass(frozen=True)
class StageFacts:
    title: str
    recipe_key: str  # of the stage: tokenizer, decoder_tuning, priors.0
    training: TrainingConfig
    adversarial: bool = False  # networks are trained against each other, so the loss need not fall
    codes_from: int = 0  # step at which quantization and all loss terms are on; older metrics are ignored
    most_codes: tuple[int, ...] = ()  # different ones in a batch, for each level; () for a stage that makes none
    against_collapse: str = ""  # advice
    against_overfitting: str = ""

    def lower_learning_rate(self, factor: float = 3) -> str:
        rate = self.training.learning_rate
        return f"set {self.recipe_key}.training.learning_rate to {rate / factor:.2g} (now {rate:g})"


class Watch:
    """All checks for one training; `reported` has the check and the subject of all findings so far."""

    def __init__(self, facts: StageFacts):
        self.facts = facts
        self.reported: set[tuple[str, str]] = set()
        self.series: Series = defaultdict(list)
        self.last_step = 0

    def update(self, step: int, metrics: Mapping[str, float]) -> list[dict[str, Any]]:
        """Add metrics of a step; returns findings that were not reported before, as rows of health.jsonl."""
        if self.last_step <= self.facts.codes_from < step:
            self.series.clear()  # another loss from here on
        self.last_step = step
        for name, value in metrics.items():
            self.series[name if math.isfinite(value) else f"not finite: {name}"].append((step, value))
        rows, title = [], self.facts.title
        for check in CHECKS:
            for since, subject, text in check(self.facts, self.series):
                key = check.__name__, subject
                if key not in self.reported:
                    self.reported.add(key)
                    row = {"stage": title, "step": step, "since": since, "check": key[0], "subject": subject}
                    rows.append(row | {"message": f"{title}: since step {since} {text}"})
        return rows


def wrong_since(points: Points, is_wrong: Callable[[float], bool], after: int = 0) -> int | None:
    """The step, later than `after`, since which all values are wrong; None if these are fewer than `LASTING`."""
    run = list(itertools.takewhile(lambda point: point[0] > after and is_wrong(point[1]), reversed(points)))
    return run[-1][0] if len(run) >= LASTING else None


def not_finite(facts: StageFacts, series: Series) -> Findings:
    """Skipped steps; the loop itself stops the training after several in a row."""
    for step, n in series["skipped_steps"]:
        if n > 0:
            text = f"some losses or gradients are not finite, and these steps are skipped ({n:.0f} so far)"
            yield step, "training", f"{text}; if it happens more often, {facts.lower_learning_rate()}"
    for step, _ in series["not finite: valid_loss"]:
        yield step, "held out", f"the held-out loss is not finite; {facts.lower_learning_rate()}"


def collapsed_codebook(facts: StageFacts, series: Series) -> Findings:
    # The step after which outputs should be useful.
    warmed_up = facts.codes_from + max(facts.training.warmup_steps, facts.training.steps // 20)
    for level, possible in enumerate(facts.most_codes):
        points, limit = series[f"perplexity_{level}"], max(1.5, COLLAPSED * possible)
        since = wrong_since(points, lambda value, limit=limit: value < limit, after=warmed_up)
        if since is not None:
            text = f"the codebook of level {level} has collapsed: perplexity {points[-1][1]:.1f} of {possible} possible"
            yield since, f"level {level}", f"{text}; {facts.against_collapse or facts.lower_learning_rate()}"


def overfitting(facts: StageFacts, series: Series) -> Findings:
    """A held-out loss that stays above its minimum while the training loss falls."""
    name = "bits_per_code" if series["bits_per_code"] else "loss"
    held_out, words = series[f"valid_{name}"], name.replace("_", " ")
    best_step, best = min(held_out, key=lambda point: point[1], default=(0, 0.0))
    if facts.adversarial or best <= 0 or wrong_since(held_out, lambda value: value > RISE * best) is None:
        return

    def training_loss(step: int) -> float:
        """The median training loss between an evaluation and the one before it."""
        before = max((other for other, _ in held_out if other < step), default=0)
        return median([value for other, value in series[name] if before < other <= step] or [math.nan])

    then, now = training_loss(best_step), training_loss(held_out[-1][0])
    if now < then / RISE:
        rise, fall = f"{best:.3g} → {held_out[-1][1]:.3g}", f"{then:.3g} → {now:.3g}"
        text = f"it overfits: the held-out {words} rises ({rise}) while the training {words} falls ({fall}); set "
        text += f"{facts.recipe_key}.training.steps to {best_step} (now {facts.training.steps})"
        yield best_step, "", f"{text}{facts.against_overfitting}, or add music"


CHECKS = (not_finite, collapsed_codebook, overfitting)
