"""What users import: `Tokenizer` (audio ↔ codes) and `Generator` (nothing, or a prompt → music).

Around the pure networks: folders and hub ids, resampling, padding, chunks, seeds, labels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import Tensor

from audiovq import checkpoint
from audiovq.data import audio
from audiovq.data.codes import Codes
from audiovq.prior.prior import Prior
from audiovq.recipe import PickConfig
from audiovq.sampling.generate import Request, generate
from audiovq.terminal import ProgressBar
from audiovq.tokenizer.chunks import decode_in_chunks, encode_in_chunks
from audiovq.tokenizer.vqvae import VQVAE

CHUNK_SECONDS = 20.0  # what the networks see at once
ITEMS_AT_ONCE = 16
SMALL_NETWORK = 20_000_000  # parameters times items
MAX_SECONDS = 24 * 3600.0


def resolve_model(source: str | Path) -> Path:
    """A run, an exported folder or a hub id -> a folder that holds models.

    Raises:
        ValueError: nothing there, and not a hub id that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return path
    text = str(source)
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise ValueError(f"{source}: no such model; expected a run folder, an exported folder or a hub id (owner/name)")
    try:
        return Path(huggingface_hub.snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub client raises many kinds; for the user they are one
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"{source}: no such folder, and not to be had from the hub ({reason[0] if reason else error!r})"
        ) from None


def prior_folders(folder: Path) -> list[Path]:
    """The finished priors of a model, coarse to fine: as many as follow each other from the top."""
    found = []
    while (folder / f"prior-{len(found)}" / checkpoint.CONFIG).is_file():
        found.append(folder / f"prior-{len(found)}")
    return found


def bundled_model() -> Path:
    """The model that comes with audiovq."""
    return Path(__file__).parent / "models" / "default"


def default_model(runs: Path = Path("runs"), prior: bool = True) -> tuple[Path, str]:
    """What a command uses when no model is named, and which it is: the newest run, else the bundled model.

    Args:
        prior: only a run whose priors are all there will do (to generate); else one with a tokenizer.
    """
    last = f"prior-{{}}/{checkpoint.CONFIG}"
    stamps = {}
    for folder in runs.iterdir() if runs.is_dir() else ():
        tokenizer = folder / "tokenizer" / checkpoint.CONFIG
        if tokenizer.is_file():
            n_levels = len(checkpoint.read_config(folder / "tokenizer", "tokenizer")["model"]["hop_lengths"])
            newest_file = folder / last.format(n_levels - 1) if prior else tokenizer
            if newest_file.is_file():
                stamps[folder] = newest_file.stat().st_mtime
    if stamps:
        newest = max(stamps, key=lambda folder: stamps[folder])
        return newest, f"the newest run, {newest}"
    return bundled_model(), "the bundled model"


def pick_device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextlib.contextmanager
def few_threads(priors: Sequence[Prior], batch: int) -> Iterator[None]:
    """One thread while small networks sample on the CPU: a step's matrices are too small to share, and threads that
    wait for each other at every layer cost more than they do, most of all on a busy machine."""
    before = torch.get_num_threads()
    largest = max(sum(p.numel() for p in prior.parameters()) for prior in priors)
    if largest * batch < SMALL_NETWORK and priors[0].head.weight.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Tokenizer:
    """Audio ↔ codes.

    >>> tokenizer = Tokenizer.from_pretrained("runs/quickstart")
    >>> codes = tokenizer.encode(waveform, sample_rate=44100)
    >>> waveform = tokenizer.decode(codes)
    """

    def __init__(self, network: VQVAE, device: str | torch.device | None = None):
        self.device = pick_device(device)
        self.network = network.to(self.device).eval()
        self.config = network.config
        self.hash = checkpoint.tokenizer_hash(network)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str | torch.device | None = None) -> Tokenizer:
        """Load from a run, an exported folder or a hub id. Raises ValueError if there is none or it is damaged."""
        folder = resolve_model(source)
        inner = folder / "tokenizer"
        return cls(checkpoint.load_tokenizer(inner if inner.is_dir() else folder), device)

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def _chunk(self) -> int:
        return int(CHUNK_SECONDS * self.sample_rate)

    @torch.inference_mode()
    def encode(self, waveform: Tensor, sample_rate: int, source_sha256: str = "") -> Codes:
        """Resample, downmix, pad and quantize one piece of audio.

        Args:
            waveform: float [samples] or [channels, samples], in [-1, 1], 1 to 6 channels.
            sample_rate: of the waveform, Hz.
        Returns:
            Codes with int64 [ceil(n_samples / hop)] a level, coarse to fine; n_samples counts at the tokenizer's rate.
        Raises:
            ValueError: wrong shape, no samples, or samples that are not finite.
        """
        if waveform.ndim == 1:
            waveform = waveform[None]
        if waveform.ndim != 2 or waveform.shape[-1] == 0:
            raise ValueError(f"waveform: expected [samples] or [channels, samples], found {list(waveform.shape)}")
        waveform = waveform.float()
        if not waveform.isfinite().all():
            raise ValueError("waveform: expected finite samples, found NaN or infinity")
        prepared = audio.resample(
            audio.downmix(waveform, self.config.channels).to(self.device), sample_rate, self.sample_rate
        )
        levels = encode_in_chunks(self.network, prepared[None], self._chunk)
        return self._codes([level[0].cpu() for level in levels], prepared.shape[-1], source_sha256)

    def encode_file(self, path: str | Path) -> Codes:
        """Encode an audio file. Raises ValueError for audio that cannot be used."""
        return self.encode(*audio.read_audio(Path(path)))

    def _codes(self, levels: list[Tensor], n_samples: int, source_sha256: str = "") -> Codes:
        c = self.config
        return Codes(
            levels, n_samples, c.sample_rate, list(c.hop_lengths), c.codebook_size, c.channels, self.hash, source_sha256
        )

    def decode(self, codes: Codes, n_levels: int | None = None) -> Tensor:
        """Codes -> float [channels, n_samples] at the tokenizer's rate, on the CPU.

        Args:
            n_levels: decode only the first levels, for a coarser rendering; default all.
        Raises:
            ValueError: codes of another tokenizer.
        """
        return torch.cat(list(self.decode_stream(codes, n_levels)), dim=-1)

    @torch.inference_mode()
    def decode_stream(self, codes: Codes, n_levels: int | None = None) -> Iterator[Tensor]:
        """As `decode`, in pieces of [channels, samples] at constant memory."""
        if codes.tokenizer_hash != self.hash:
            raise ValueError(
                f"codes: expected those of this tokenizer ({self.hash[:12]}), found those of another "
                f"({codes.tokenizer_hash[:12]}); decode them with the model that made them (--model)"
            )
        found = len(codes.levels)
        if n_levels is not None and not 1 <= n_levels <= found:
            raise ValueError(f"levels: expected 1 to {found}, found {n_levels}")
        levels = [level[None].to(self.device) for level in codes.levels[:n_levels]]
        for piece in decode_in_chunks(self.network, levels, codes.n_samples, self._chunk):
            yield piece[0].clamp(-1, 1).cpu()


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
        progress: bool = False,
    ) -> list[Codes]:
        """Generate the codes of `n` pieces; item i of a seed is the same piece whatever `n` is.

        Args:
            seconds: length of the whole piece, the prompt included.
            temperature, top_k, top_p: one value, or one a level (coarse to fine); default: what the recipe recommends.
            labels: such as {"genre": "folk"}.
            prompt: codes (of this tokenizer) of a clip to continue; the piece begins with it.
            n_levels: stop after so many levels; default all.
        Raises:
            ValueError: a length, label or setting that cannot be.
        """
        n_samples = self._n_samples(seconds)
        if n < 1:
            raise ValueError(f"n: expected at least 1, found {n}")
        priors = self.priors[:n_levels]
        picks = self._picks({"temperature": temperature, "top_k": top_k, "top_p": top_p})[: len(priors)]
        begun = self._prompt(prompt, n_samples)
        indexes = self._label_indexes(labels or {})
        codes: list[Codes] = []
        groups = [list(range(i, min(i + ITEMS_AT_ONCE, n))) for i in range(0, n, ITEMS_AT_ONCE)]
        hops = self.tokenizer.config.hop_lengths[: len(priors)]
        total = len(groups) * sum(-(-n_samples // hop) for hop in hops)
        with few_threads(priors, min(n, ITEMS_AT_ONCE)), ProgressBar("sample", total, hidden=not progress) as bar:
            for items in groups:
                request = Request(n_samples, items, seed, indexes)
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


__all__ = ["Generator", "Tokenizer", "bundled_model", "default_model", "prior_folders", "resolve_model"]
