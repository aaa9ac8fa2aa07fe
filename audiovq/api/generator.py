"""`Generator`: nothing, or a prompt → new music."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq import checkpoint
from audiovq.api.locate import pick_device, prior_folders, resolve_model
from audiovq.api.tokenizer import Tokenizer
from audiovq.data.codes import Codes
from audiovq.prior.prior import Prior
from audiovq.recipe import PickConfig
from audiovq.sampling.generate import Request, generate
from audiovq.terminal import ProgressBar

ITEMS_AT_ONCE = 16
SMALL_NETWORK = 10_000_000  # parameters
MAX_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def few_threads(priors: Sequence[Prior]) -> Iterator[None]:
    """One thread while small networks sample on the CPU: a step's matrices are too small to share, and threads that
    wait for each other at every layer cost more than they do, most of all on a busy machine. The batch has no say:
    the number of threads can change the last bits of a product, and an item is to be the same in any batch."""
    before = torch.get_num_threads()
    largest = max(sum(p.numel() for p in prior.parameters()) for prior in priors)
    if largest < SMALL_NETWORK and priors[0].head.weight.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Generator:
    """New music from a tokenizer and its priors.

    >>> music = Generator.from_pretrained("runs/quickstart").sample(seconds=20, seed=0)
    """

    def __init__(
        self, tokenizer: Tokenizer, priors: Sequence[Prior], picks: Sequence[PickConfig] | None = None,
        device: str | torch.device | None = None,
    ):  # fmt: skip
        if not priors:
            raise ValueError("generator: expected at least a top prior, found none")
        self.tokenizer = tokenizer
        self.device = pick_device(device or tokenizer.device)
        self.priors = [prior.to(self.device).eval() for prior in priors]
        self.picks = list(picks or [PickConfig() for _ in priors])
        for prior in self.priors:
            if prior.spec.tokenizer_hash != tokenizer.hash:
                raise ValueError(
                    f"prior {prior.spec.level}: expected one trained on codes of tokenizer {tokenizer.hash[:12]}, "
                    f"found one for {prior.spec.tokenizer_hash[:12]}; train the priors again"
                )

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device | None = None) -> Generator:
        """Load from a run, an exported folder or a hub id.

        Raises:
            ValueError: no such model, no prior yet, or damaged files.
        """
        folder = resolve_model(source)
        if not prior_folders(folder):
            raise ValueError(
                f"{source}: no trained prior there; run `audiovq train` to its end, or choose another --model"
            )
        loaded = [checkpoint.load_prior(path) for path in prior_folders(folder)]
        tokenizer = Tokenizer.from_pretrained(folder, device)
        return cls(tokenizer, [prior for prior, _ in loaded], [pick for _, pick in loaded], device)

    @property
    def sample_rate(self) -> int:
        return self.tokenizer.sample_rate

    @property
    def labels(self) -> dict[str, list[str]]:
        """The values of each label that this model knows."""
        return self.priors[0].spec.vocabularies

    def sample(self, seconds: float, seed: int = 0, n: int = 1, **options: Any) -> Tensor:
        """New music, float [n, channels, samples] with round(seconds · sample_rate) samples; options as `sample_codes`."""
        return torch.stack([self.tokenizer.decode(codes) for codes in self.sample_codes(seconds, seed, n, **options)])

    def sample_codes(
        self,
        seconds: float,
        seed: int = 0,
        n: int = 1,
        *,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        labels: Mapping[str, str] | None = None,
        prompt: Codes | None = None,
        n_levels: int | None = None,
        precision: str = "auto",
        parallel: int = 1,
        progress: bool = False,
    ) -> list[Codes]:
        """Generate the codes of `n` pieces; item i of a seed is the same piece whatever `n` is.

        Args:
            seconds: length of the whole piece, the prompt included.
            temperature, top_k, top_p: one value, or one a level (coarse to fine); default: what the recipe recommends.
            labels: such as {"genre": "folk"}.
            prompt: codes (of this tokenizer) of a clip to continue; the piece begins with it.
            n_levels: stop after so many levels; default all.
            precision: of the priors' arithmetic, see `new_stepper`.
            parallel: segments of each finer level that are generated at once; with other codes than 1 gives.
        Raises:
            ValueError: a length, label or setting that cannot be.
        """
        n_samples = self._n_samples(seconds)
        if n < 1 or parallel < 1:
            raise ValueError(f"n, parallel: expected at least 1, found {n} and {parallel}")
        priors = self.priors[:n_levels]
        picks = self._picks({"temperature": temperature, "top_k": top_k, "top_p": top_p})[: len(priors)]
        begun = self._prompt(prompt, n_samples)
        indexes = self._label_indexes(labels or {})
        codes: list[Codes] = []
        groups = [list(range(i, min(i + ITEMS_AT_ONCE, n))) for i in range(0, n, ITEMS_AT_ONCE)]
        hops = self.tokenizer.config.hop_lengths[: len(priors)]
        total = len(groups) * sum(-(-n_samples // hop) for hop in hops)
        with few_threads(priors), ProgressBar("sample", total, hidden=not progress) as bar:
            for items in groups:
                request = Request(n_samples, items, seed, indexes, precision, parallel)
                levels = generate(priors, picks, request, begun, bar.advance)
                rows = zip(*(level.cpu() for level in levels), strict=True)
                codes += [self.tokenizer._codes(list(row), n_samples) for row in rows]
        return codes

    def _n_samples(self, seconds: float) -> int:
        if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
            raise ValueError(f"seconds: expected a number above 0 and up to {MAX_SECONDS:.0f}, found {seconds:g}")
        return max(1, round(seconds * self.sample_rate))

    def _picks(self, settings: dict[str, Any]) -> list[PickConfig]:
        """The recipe's sampling settings with the given ones laid over, a level."""
        chosen = [pick.model_dump() for pick in self.picks]
        for name, value in settings.items():
            if value is None:
                continue
            values = list(value) if isinstance(value, Sequence) else [value] * len(chosen)
            if len(values) == 1:
                values *= len(chosen)
            if len(values) != len(chosen):
                raise ValueError(f"{name}: expected one value or {len(chosen)} (one a level), found {len(values)}")
            for pick, item in zip(chosen, values, strict=True):
                pick[name] = item
        return [checkpoint.conf.build(PickConfig, pick, "sampling") for pick in chosen]

    def _prompt(self, prompt: Codes | None, n_samples: int) -> list[Tensor] | None:
        if prompt is None:
            return None
        if prompt.tokenizer_hash != self.tokenizer.hash:
            raise ValueError(
                "prompt: expected codes of this model's tokenizer, found those of another; encode the clip again"
            )
        hops = self.tokenizer.config.hop_lengths
        n_top = prompt.n_samples // hops[0]
        if n_top == 0:
            raise ValueError(
                f"prompt: expected at least {hops[0] / self.sample_rate:.3f} s, found {prompt.seconds:.3f} s"
            )
        if prompt.n_samples >= n_samples:
            raise ValueError(
                f"seconds: expected more than the prompt's {prompt.seconds:.3f} s (the piece begins with it), "
                f"found {n_samples / self.sample_rate:.3f} s"
            )
        return [level[: n_top * (hops[0] // hop)] for level, hop in zip(prompt.levels, hops, strict=True)]

    def _label_indexes(self, labels: Mapping[str, str]) -> dict[str, int]:
        indexes = {}
        for name, value in labels.items():
            if name not in self.labels:
                known = ", ".join(self.labels) or "none"
                raise ValueError(f"label {name}: this model knows the labels: {known}")
            values = self.labels[name]
            if value not in values:
                raise ValueError(f"label {name}={value}: expected one of: {', '.join(values) or 'none'}")
            indexes[name] = values.index(value) + 1
        return indexes
