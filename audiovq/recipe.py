"""A recipe: one YAML file that says everything about a run. Composes the components' own configs."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from audiovq import config as conf
from audiovq.config import Config, recipe_folders
from audiovq.data.data_config import DataConfig
from audiovq.data.storage import is_url
from audiovq.prior.prior import PriorConfig
from audiovq.prior.sampling_config import SamplingConfig
from audiovq.tokenizer.discriminators import AdversarialConfig
from audiovq.tokenizer.losses import LossConfig
from audiovq.tokenizer.vqvae import VQVAEConfig
from audiovq.utils import compat


class TrainingConfig(Config):
    """How one network is trained."""

    steps: int = Field(default=1000, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: a prior learns more a step, at a few per cent of its time
    batch_size: int = Field(default=8, ge=1)  # examples a step, over all devices together
    # Examples that a device has in memory together; null: all of its share. The step is the same, in several passes.
    device_batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    final_fraction: float = Field(default=0.0, ge=0, le=1)  # of the learning rate, at the end of the cosine
    weight_decay: float = Field(default=0.01, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    log_steps: int = Field(default=25, ge=1)
    evaluate_steps: int = Field(default=250, ge=1)  # between two looks at the held-out tracks
    evaluate_batches: int = Field(default=4, ge=1)
    checkpoint_seconds: float = Field(default=60.0, ge=0)  # between two checkpoints; 0 after every step
    # Decay a step of a moving average of the weights, which is what is evaluated and kept in the end; null: the weights.
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    # Evaluations without a better held-out loss after which the stage ends; it keeps its best weights. 0: all steps, the last.
    patience: int = Field(default=0, ge=0)
    compile: bool = False  # the repeated blocks by torch.compile: minutes at the start, faster steps on a GPU


class PriorTrainingConfig(TrainingConfig):
    """How a prior is trained; the last two are for priors that are too large for a device."""

    sharded: bool = False  # weights, gradients and moments are shared out over the devices (FSDP2) instead of copied
    activation_checkpointing: bool = False  # a layer's activations are computed again when they are needed

    @model_validator(mode="after")
    def _check(self) -> PriorTrainingConfig:
        if self.sharded and self.patience:
            raise ValueError(
                "patience: expected 0 with sharded, whose weights no process has whole; watch the held-out loss"
            )
        return self


class TokenizerStage(Config):
    # `default` (the bundled model), a run, a folder or a hub id: its tokenizer is taken as it is, instead of training one.
    from_pretrained: str | None = None
    model: VQVAEConfig = VQVAEConfig()
    losses: LossConfig = LossConfig()
    crop_seconds: float = Field(default=0.68, gt=0)
    # Training step at which the codebooks start; before it the latents are not quantized, so that they become worth coding.
    vq_start_step: int = Field(default=100, ge=0)
    training: TrainingConfig = TrainingConfig()

    @property
    def crop_samples(self) -> int:
        """The crop, rounded to whole codes of the top level, at least one."""
        hop = self.model.hop_lengths[0]
        return max(1, round(self.crop_seconds * self.model.sample_rate / hop)) * hop


class DecoderTrainingConfig(TrainingConfig):
    """How the decoder and its discriminators are trained; what is not said apart holds for both."""

    learning_rate: float = Field(default=1e-4, gt=0)
    beta1: float = Field(default=0.8, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    discriminator_learning_rate: float = Field(default=2e-4, gt=0)
    discriminator_steps: int = Field(default=0, ge=0)  # the first ones, in which the discriminators learn alone

    @model_validator(mode="after")
    def _check(self) -> DecoderTrainingConfig:
        if self.discriminator_steps >= self.steps:
            raise ValueError(
                f"discriminator_steps: expected less than steps {self.steps}, found {self.discriminator_steps}"
            )
        return self


class DecoderStage(Config):
    """The decoder of a trained tokenizer learns against discriminators; the codes stay what they are."""

    adversarial: AdversarialConfig = AdversarialConfig()
    training: DecoderTrainingConfig = DecoderTrainingConfig()


class CodesStage(Config):
    # Codes of another run, instead of music: a folder, or any URL that fsspec knows. The tokenizer beside it is taken,
    # and only the priors are trained.
    path: str | None = None
    # The music that the priors learn, by path below data.folder ("chorales/*"); [] is all that the tokenizer learned from.
    only: tuple[str, ...] = ()
    # The training tracks are encoded this often, each time a bit later: more codes of the same music.
    shifts: int = Field(default=1, ge=1)


class LoraConfig(Config):
    """Low-rank adapters are trained beside frozen weights, and merged into them at the end; see `training/adapters.py`."""

    rank: int = Field(default=8, ge=1)  # of each adapter: more learn more, and cost more
    alpha: float = Field(default=16.0, gt=0)  # the adapters count alpha / rank
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what goes into the adapters


class PriorStage(Config):
    from_pretrained: str | None = None  # as the tokenizer's: training goes on from its prior of the same level
    lora: LoraConfig | None = None  # null trains all weights
    model: PriorConfig = PriorConfig()
    training: PriorTrainingConfig = PriorTrainingConfig()
    sampling: SamplingConfig = SamplingConfig()


class SamplesConfig(Config):
    """What the run leaves in its samples/ folder after each stage."""

    seconds: float = Field(default=10.0, gt=0)
    n: int = Field(default=2, ge=1)


class Recipe(Config):
    name: str
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU that has it, else fp32
    data: DataConfig = DataConfig()
    tokenizer: TokenizerStage = TokenizerStage()
    decoder_tuning: DecoderStage | None = None  # null leaves the decoder as the tokenizer stage made it
    codes: CodesStage = CodesStage()
    # One a level, coarse to fine; a single one serves all levels; [] trains a tokenizer alone.
    priors: tuple[PriorStage, ...] = (PriorStage(),)
    samples: SamplesConfig = SamplesConfig()
    # Where figures and samples are shown besides the run folder; [] nowhere.
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        self._check_pretrained()
        n_levels = self.tokenizer.model.n_levels
        if self.tokenizer.from_pretrained is None and len(self.priors) not in {0, 1, n_levels}:
            raise ValueError(f"priors: expected none, 1 or {n_levels} (one a level), found {len(self.priors)}")
        after, steps = self.tokenizer.vq_start_step, self.tokenizer.training.steps
        trained = self.tokenizer.from_pretrained is None
        if trained and after >= steps:
            raise ValueError(
                f"tokenizer.vq_start_step: expected less than tokenizer.training.steps {steps}, found {after}"
            )
        first = self.tokenizer.losses.waveform_warmup_steps
        if trained and 2 * first >= steps:
            raise ValueError(
                f"tokenizer.losses.waveform_warmup_steps: expected less than half of tokenizer.training.steps {steps}, else the "
                f"spectral terms never rise to their weights; found {first}"
            )
        quantizer = self.tokenizer.model.quantizer
        if trained and quantizer.kind == "gumbel" and quantizer.temperature_steps > steps - after:
            raise ValueError(
                f"tokenizer.model.quantizer.temperature_steps: expected at most training.steps - vq_start_step = "
                f"{steps - after}, else the decoder never meets the codes it will get, found {quantizer.temperature_steps}"
            )
        longest = max(self.tokenizer.losses.mel_windows) if self.tokenizer.losses.mel else 0
        if self.tokenizer.crop_samples < longest:
            raise ValueError(
                f"tokenizer.crop_seconds: expected at least the longest mel window, {longest} samples, "
                f"found {self.tokenizer.crop_samples} samples"
            )
        weights = self.tokenizer.losses.model_dump(exclude={"commitment", "kl", "compression"})
        if self.decoder_tuning and not any(isinstance(weight, float) and weight > 0 for weight in weights.values()):
            raise ValueError(
                "decoder_tuning: expected a reconstruction loss above 0 in tokenizer.losses, which the discriminators "
                "are weighed against; found none"
            )
        discriminators = self.decoder_tuning.adversarial.discriminators if self.decoder_tuning else ()
        longest = max((each.min_samples for each in discriminators), default=0)
        if self.tokenizer.crop_samples < longest:
            raise ValueError(
                f"tokenizer.crop_seconds: expected at least what a discriminator looks at, {longest} samples, "
                f"found {self.tokenizer.crop_samples} samples"
            )
        return self

    def _check_pretrained(self) -> None:
        for i, stage in enumerate(self.priors):
            if stage.from_pretrained is not None and self.tokenizer.from_pretrained is None:
                raise ValueError(
                    f"priors.{i}.from_pretrained: expected tokenizer.from_pretrained, too: a prior knows its codes"
                )
            if stage.lora is not None and stage.from_pretrained is None:
                raise ValueError(f"priors.{i}.lora: expected from_pretrained beside it: adapters need weights to adapt")

    @property
    def smallest_batch(self) -> int:
        """Of all stages: on more devices than that, one would have nothing to do."""
        stages = [self.tokenizer, *self.priors, *([self.decoder_tuning] if self.decoder_tuning else [])]
        return min(stage.training.batch_size for stage in stages)

    @property
    def n_priors(self) -> int:
        return self.tokenizer.model.n_levels if self.priors else 0

    def prior(self, level: int) -> PriorStage:
        return self.priors[level if len(self.priors) > 1 else 0]

    def prior_key(self, level: int) -> str:
        """Where the stage of a level's prior is in the recipe."""
        return f"priors.{level if len(self.priors) > 1 else 0}"

    def to_yaml(self) -> str:
        return yaml.safe_dump(_plain(self.model_dump()), sort_keys=False, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def find_recipe(name: str) -> Path:
    """A path, or the name of a recipe that comes with audiovq.

    Raises:
        ValueError: neither; names the known recipes.
    """
    path = Path(name)
    if path.is_file():
        return path
    for folder in recipe_folders():
        candidate = folder / f"{path.name.removesuffix('.yaml')}.yaml"
        if candidate.is_file() and path.parent in {Path(), Path("recipes")}:
            return candidate
    known = sorted(p.stem for folder in recipe_folders() for p in folder.glob("*.yaml"))
    raise ValueError(f"{name}: no such recipe; known recipes: {', '.join(known)}")


def header(path: Path) -> dict[str, str]:
    """The facts in a recipe's leading comment, `# Key: text`, by lower-case key; text may go on over lines."""
    facts: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("#").strip()
        first, colon, rest = text.partition(":")
        if colon and first and " " not in first:
            key = first.lower()
            facts[key] = rest.strip()
        elif key:
            facts[key] = f"{facts[key]} {text}".strip()
    return facts


def read_mapping(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's mapping with everything it `extends` laid beneath it; `data.folder` relative to its file."""
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    mapping = compat.current_recipe(conf.read_yaml(path), path.name)
    base = mapping.pop("extends", None)
    data = mapping.get("data")
    if isinstance(data, dict) and isinstance(data.get("folder"), str):
        data["folder"] = os.path.normpath(path.parent / data["folder"])
    codes = mapping.get("codes")
    if isinstance(codes, dict) and isinstance(codes.get("path"), str) and not is_url(codes["path"]):
        codes["path"] = os.path.normpath(path.parent / codes["path"])
    if base is None:
        return mapping
    if not isinstance(base, str) or not (path.parent / base).is_file():
        raise ValueError(f"{path}: extends: expected the name of a recipe beside it, found {base!r}")
    return conf.merge(read_mapping(path.parent / base, (*seen, path)), mapping)


def load_recipe(
    name: str, data: str | None = None, overrides: tuple[str, ...] = (), codes: str | None = None
) -> Recipe:
    """Read a recipe; `data` replaces its music folder, `codes` its codes; `overrides` are `a.b=value` with values as YAML.

    Raises:
        ValueError: unknown recipe, key or type; the message names the key's path and the nearest known key.
    """
    path = find_recipe(name)
    mapping = copy.deepcopy(read_mapping(path))
    mapping.setdefault("name", path.stem)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {override}: expected key=value, such as tokenizer.training.steps=100")
        conf.set_path(mapping, compat.current_key(key.strip()), conf.parse_yaml(value, f"--set {key}"))
    if data is not None:
        conf.set_path(mapping, "data.folder", str(Path(data).resolve()))
    if codes is not None:
        conf.set_path(mapping, "codes.path", codes if is_url(codes) else str(Path(codes).resolve()))
    return conf.build(Recipe, mapping, str(path))


def load_saved_recipe(path: Path) -> Recipe:
    """The recipe that a run folder keeps, complete."""
    return conf.build(Recipe, compat.current_recipe(conf.read_yaml(path), str(path), quiet=True), str(path))


# How a run is computed, not what: these may change when it goes on, perhaps on another machine.
FREE = {
    "device_batch_size",
    "compile",
    "sharded",
    "activation_checkpointing",
    "checkpoint_seconds",
    "workers",
    "trackers",
}


def fixed(value: Any) -> Any:
    """A recipe's mapping without what may change from one start of a run to the next."""
    if isinstance(value, dict):
        return {key: fixed(item) for key, item in value.items() if key not in FREE}
    return [fixed(item) for item in value] if isinstance(value, list | tuple) else value


def codes_place(run: Path) -> Path | str:
    """Where the codes of a run are: in its folder, or where its recipe says."""
    path = run / "recipe.yaml"
    return (load_saved_recipe(path).codes.path if path.is_file() else None) or run / "codes"


def first_difference(a: Any, b: Any, path: str = "") -> str | None:
    """The first key in which two recipes' mappings differ, as `path: a → b`; None if they agree."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        pairs = [(str(key), a.get(key), b.get(key)) for key in keys]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else f"{path}: {a!r} → {b!r}"
    return next((d for key, x, y in pairs if (d := first_difference(x, y, f"{path}.{key}".lstrip(".")))), None)
