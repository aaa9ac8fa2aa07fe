"""`Generator`: nothing, or a prompt → new music."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiovq.api.conditioning import check_text, reference_chroma
from audiovq.api.shareable import Shareable
from audiovq.api.tokenizer import Tokenizer
from audiovq.data.codes import Codes
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import prior_hash
from audiovq.pretrained.locate import check_priors, prior_folders, resolve_model
from audiovq.prior.prior import Prior
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.sampling.decode_state import BLOCK
from audiovq.sampling.generate import CodesCallback, generate, ignore_codes
from audiovq.sampling.inpainting import CodeMask, begin_with, redraw, surround, vary
from audiovq.sampling.journal import JournalFolder
from audiovq.sampling.likelihood import bits_per_second
from audiovq.sampling.request import Request
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.device import pick_device
from audiovq.utils.progress import ProgressBar, say

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


def _advancing(bar: ProgressBar, on_codes: CodesCallback) -> CodesCallback:
    """A listener that also moves the bar by the positions that are new."""
    done: dict[int, int] = {}

    def listen(level: int, codes: Tensor) -> None:
        bar.advance(codes.shape[1] - done.get(level, 0), f"level {level}")
        done[level] = codes.shape[1]
        on_codes(level, codes)

    return listen


def _rows(level: Tensor, group: range) -> Tensor:
    """CodeMask codes [n] or [items, n] -> those of a group of items, [1 or group, n]."""
    return level[None] if level.ndim == 1 else level[group.start : group.stop]


def _check_fit(priors: Sequence[Prior], tokenizer: Tokenizer) -> None:
    """Raises ValueError for priors that say of their codes what the tokenizer does not, or number labels differently."""
    known, c = priors[0].spec.vocabularies, tokenizer.config
    for level, spec in enumerate(prior.spec for prior in priors):
        expected = (level, list(c.hop_lengths), c.sample_rate, c.codebook_size)
        found = (spec.level, list(spec.hop_lengths), spec.sample_rate, spec.codebook_size)
        if found != expected:
            raise ValueError(f"prior {level}: expected level, hop_lengths, rate and codes {expected}, found {found}")
        for name in known.keys() & spec.vocabularies.keys():
            if known[name] != spec.vocabularies[name]:
                raise ValueError(
                    f"prior {level}: expected the values of the label {name} that prior 0 has, found others"
                )


class Generator(Shareable):
    """New music from a tokenizer and its priors.

    >>> music = Generator.from_pretrained("runs/quickstart").sample(seconds=20, seed=0)
    """

    def __init__(
        self, tokenizer: Tokenizer, priors: Sequence[Prior], picks: Sequence[SamplingConfig] | None = None,
        device: str | torch.device | None = None,
    ):  # fmt: skip
        if not priors:
            raise ValueError("generator: expected at least a top prior, found none")
        self.tokenizer = tokenizer
        self.device = pick_device(device or tokenizer.device)
        self.priors = [prior.to(self.device).eval() for prior in priors]
        self.picks = list(picks or [SamplingConfig() for _ in priors])
        for prior in self.priors:
            if prior.spec.tokenizer_hash != tokenizer.hash:
                raise ValueError(
                    f"prior {prior.spec.level}: expected one trained on codes of tokenizer {tokenizer.hash[:12]}, "
                    f"found one for {prior.spec.tokenizer_hash[:12]}; train the priors again"
                )
        _check_fit(self.priors, tokenizer)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device | None = None, *, revision: str | None = None,
        token: str | None = None,
    ) -> Generator:  # fmt: skip
        """Load from a run, an exported folder or a hub id.

        Args:
            revision, token: of a hub id; see `resolve_model`.
        Raises:
            ValueError: no such model, no prior yet, or damaged files.
        """
        folder = resolve_model(source, revision, token)
        check_priors(folder)
        if not prior_folders(folder):
            raise ValueError(
                f"{source}: no trained prior there; run `audiovq train` to its end, or choose another --model"
            )
        loaded = [checkpoint.load_prior(path) for path in prior_folders(folder)]
        tokenizer = Tokenizer.from_pretrained(folder, device)
        return cls(tokenizer, [prior for prior, _ in loaded], [pick for _, pick in loaded], device)

    def _models(self) -> tuple[VQVAE, Sequence[Prior], Sequence[SamplingConfig]]:
        return self.tokenizer.network, self.priors, self.picks

    @property
    def sample_rate(self) -> int:
        return self.tokenizer.sample_rate

    @property
    def labels(self) -> dict[str, list[str]]:
        """The values of each label that this model knows."""
        return self.priors[0].spec.vocabularies

    def sample(self, seconds: float | None = None, seed: int = 0, n: int = 1, **options: Any) -> Tensor:
        """New music, float [n, channels, samples] with round(seconds · sample_rate) samples; options as `sample_codes`."""
        return torch.stack([self.tokenizer.decode(codes) for codes in self.sample_codes(seconds, seed, n, **options)])

    def sample_codes(
        self, seconds: float | None = None, seed: int = 0, n: int = 1, *, prompt: Codes | None = None,
        given: CodeMask | None = None, journal: str | Path | None = None, **options: Any,
    ) -> list[Codes]:  # fmt: skip
        """Generate the codes of `n` pieces; item i of a seed is the same piece whatever `n` is.

        Args:
            seconds: length of the whole piece, the prompt included; without, the length of `given`.
            prompt: codes (of this tokenizer) of a clip to continue; the piece begins with it.
            given: codes that are kept (see `keep`); all others are drawn.
            journal: a folder; an interrupted call that is made again goes on from the codes it has there.
            options: as `pieces`.
        Raises:
            ValueError: a length, label or setting that cannot be.
        """
        if n < 1:
            raise ValueError(f"n: expected at least 1, found {n}")
        if (seconds is None) == (given is None):
            raise ValueError("seconds: expected a length, or given codes (which have one), not both")
        if prompt and given:
            raise ValueError("prompt, given: expected one of them")
        n_samples = given.n_samples if given else self.n_samples(seconds or 0.0)
        if prompt is not None:
            given = self.begin_with(prompt, n_samples)
        if journal is None:
            return list(self.pieces(n_samples, seed, range(n), given=given, **options))
        with JournalFolder(Path(journal)) as journals:
            codes = list(self.pieces(n_samples, seed, range(n), given=given, journals=journals, **options))
            journals.remove()
        return codes

    def pieces(
        self,
        n_samples: int,
        seed: int,
        items: Sequence[int],
        *,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | Sequence[float] | None = None,
        guidance: float | Sequence[float] | None = None,
        labels: Mapping[str, str] | None = None,
        text: str = "",
        chroma: str | Path | None = None,
        given: CodeMask | None = None,
        n_levels: int | None = None,
        precision: str = "auto",
        parallel: int = 1,
        progress: bool = False,
        journals: JournalFolder | None = None,
        on_codes: CodesCallback = ignore_codes,
    ) -> Iterator[Codes]:
        """Generate the pieces `items` of a seed, one after the other as they are finished.

        Args:
            temperature, top_k, top_p, guidance: one value, or one a level (coarse to fine); default: what the recipe says.
            labels: such as {"genre": "folk"}.
            text: a caption or lyrics, for a model that was trained with them.
            chroma: a recording whose melody and harmony are followed, for a model that was trained with chroma.
            n_levels: stop after so many levels; default all.
            precision: of the priors' arithmetic, see `prior.stepper.new_stepper`.
            parallel: segments of each finer level that are generated at once: sooner, and not the codes that 1 gives.
            on_codes: see `sampling.generate`; also called for the codes that a journal had.
        """
        priors = self.priors[:n_levels]
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        picks = self._picks(settings)[: len(priors)]
        indexes = self._label_indexes(labels or {})
        check_text(self.priors, text)
        melody = reference_chroma(self.priors, chroma) if chroma is not None else None
        if parallel < 1:
            raise ValueError(f"parallel: expected at least 1, found {parallel}")
        if guidance is not None and not (indexes or text or chroma):
            raise ValueError("guidance: expected a label, text or chroma to be followed, found none of them")
        hops = self.tokenizer.config.hop_lengths
        if given:
            given.check(hops[: len(priors)], len(items))
        hashes = [prior_hash(prior) for prior in priors] if journals else []
        groups = [range(i, min(i + ITEMS_AT_ONCE, len(items))) for i in range(0, len(items), ITEMS_AT_ONCE)]
        total = len(groups) * sum(-(-n_samples // hop) for hop in hops[: len(priors)])
        a_step = len(items) * n_samples / self.sample_rate / max(total, 1)
        with ProgressBar("sample", total, hidden=not progress, unit="audio-s", per_step=a_step) as bar:
            for group in groups:
                request = Request(
                    n_samples, [items[i] for i in group], seed, indexes, text, melody, precision, parallel
                )
                told = [_rows(level, group) for level in given.levels] if given else None
                facts = {**vars(request), "given": told, "picks": [p.model_dump() for p in picks], "block": BLOCK}
                journal = journals.open({**facts, "priors": hashes}) if journals else None
                if journal and journal.n_known and progress:
                    say(f"going on from {journal.n_known} codes an item of an interrupted run")
                listener = _advancing(bar, on_codes)
                with few_threads(priors):
                    levels = generate(priors, picks, request, told, listener, journal)
                for row in zip(*(level.cpu() for level in levels), strict=True):
                    yield self.tokenizer._codes(list(row), n_samples)

    def grow(
        self, n_samples: int, seed: int, items: Sequence[int], *, given: CodeMask | None = None, **options: Any
    ) -> Iterator[list[Codes]]:
        """Generate the pieces `items` of a seed level by level: yields all of them with their top level alone, then with
        one finer level more each time. The last are what `pieces` gives, bit for bit.

        Args:
            given, options: as `pieces`, but for `n_levels` and `journals`.
        Raises:
            ValueError: a length, label or setting that cannot be, or nothing to draw.
        """
        hops = self.tokenizer.config.hop_lengths[: len(self.priors)]
        if given:
            given.check(hops, len(items))
            told = [_rows(level, range(len(items))).expand(len(items), -1) for level in given.levels]
        else:
            told = [torch.full((len(items), -(-n_samples // hop)), -1) for hop in hops]
        for n_levels in range(1, len(hops) + 1):
            if any(bool((level < 0).any()) for level in told[:n_levels]):
                known = CodeMask(n_samples, told)
                found = list(self.pieces(n_samples, seed, items, given=known, n_levels=n_levels, **options))
            else:
                found = [self.tokenizer._codes(list(row), n_samples) for row in zip(*told[:n_levels], strict=True)]
            told[n_levels - 1] = torch.stack([codes.levels[-1] for codes in found])
            yield found

    def begin_with(self, prompt: Codes, n_samples: int) -> CodeMask:
        """A piece of `n_samples` that begins with `prompt`. Raises ValueError for a prompt that cannot be continued."""
        self._check_tokenizer(prompt)
        return begin_with(prompt, n_samples)

    def keep(
        self, piece: Codes, *, stretch: tuple[float, float] | None = None, before: float = 0, after: float = 0,
        levels: int | None = None,
    ) -> CodeMask:  # fmt: skip
        """What `sample_codes(given=...)` keeps of a piece. One of:

        - all but a `stretch` (from, to) in seconds, and there nothing or the first `levels`;
        - all of it, with `before` and `after` seconds of new music around it;
        - the first `levels`.

        Raises:
            ValueError: codes of another tokenizer, or a choice that cannot be.
        """
        self._check_tokenizer(piece)
        if (before or after) and (stretch or levels is not None):
            raise ValueError("before, after: expected neither a stretch nor levels beside them")
        if before or after:
            return surround(piece, before, after)
        if stretch:
            return redraw(piece, *stretch, levels or 0)
        return vary(piece, len(piece.levels) if levels is None else levels)

    @torch.inference_mode()
    def bits_per_second(
        self, pieces: Sequence[Codes], labels: Mapping[str, str] | None = None, text: str = "",
        chroma: str | Path | None = None,
    ) -> list[float]:  # fmt: skip
        """What the codes of each piece cost under the priors, all of one length: the likelier, the fewer."""
        costs: list[float] = []
        indexes = self._label_indexes(labels or {})
        melody = reference_chroma(self.priors, chroma) if chroma is not None else None
        for i in range(0, len(pieces), ITEMS_AT_ONCE):
            group = pieces[i : i + ITEMS_AT_ONCE]
            request = Request(group[0].n_samples, list(range(len(group))), 0, indexes, text, melody)
            levels = [torch.stack(rows) for rows in zip(*(codes.levels for codes in group), strict=True)]
            costs += bits_per_second(self.priors[: len(levels)], levels, request).tolist()
        return costs

    def _check_tokenizer(self, codes: Codes) -> None:
        if codes.tokenizer_hash != self.tokenizer.hash:
            raise ValueError(
                "codes to keep: expected those of this model's tokenizer, found those of another; encode the audio again"
            )

    def n_samples(self, seconds: float) -> int:
        if not (math.isfinite(seconds) and 0 < seconds <= MAX_SECONDS):
            raise ValueError(f"seconds: expected a number above 0 and up to {MAX_SECONDS:.0f}, found {seconds:g}")
        return max(1, round(seconds * self.sample_rate))

    def _picks(self, settings: dict[str, Any]) -> list[SamplingConfig]:
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
        return [checkpoint.conf.build(SamplingConfig, pick, "sampling") for pick in chosen]

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
