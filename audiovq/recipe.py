"""A recipe: one YAML file with all settings of a run. It is composed of the components' own configs."""

import email
import itertools
import json
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from audiovq import config as conf
from audiovq.config import Config
from audiovq.data.data_config import DataConfig
from audiovq.data.storage import is_url
from audiovq.prior.prior import PriorConfig, SamplingConfig
from audiovq.tokenizer.discriminators import AdversarialConfig
from audiovq.tokenizer.losses import LossConfig
from audiovq.tokenizer.vqvae import VQVAEConfig
from audiovq.utils import compat


class TrainingConfig(Config):
    """How one network is trained."""

    steps: int = Field(default=1000, ge=1)
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: priors learn more per step, which takes longer
    batch_size: int = Field(default=8, ge=1, le=1 << 20)  # global batch: examples per step, on all devices together
    # Micro-batch: examples that a device computes at once; null: its whole share. Results stay the same, but
    # for a per cent of the gradients in tuning a decoder, whose adversarial terms are weighed in each micro-batch.
    device_batch_size: int | None = Field(default=None, ge=1, le=1 << 20)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    final_fraction: float = Field(default=0.0, ge=0, le=1)  # of the learning rate, at the end of the cosine
    weight_decay: float = Field(default=0.01, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.98, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    log_steps: int = Field(default=25, ge=1)
    evaluate_steps: int = Field(default=250, ge=1)  # steps between two evaluations on held-out tracks
    evaluate_batches: int = Field(default=4, ge=1, le=1 << 20)
    checkpoint_seconds: float = Field(default=60.0, ge=0)  # between two checkpoints; 0: after every step
    keep_checkpoints: int = Field(default=1, ge=1)  # how many of the last ones stay
    keep_every_steps: int = Field(default=0, ge=0)  # those after every so many steps stay, too; 0: none
    # Decay of a moving average of the weights, which is evaluated and saved in their place; null: none.
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    # Stop after this many evaluations without a lower held-out loss, and keep the best weights; 0: never.
    patience: int = Field(default=0, ge=0)
    compile: bool = False  # torch.compile of the repeated blocks: slow to start, then faster on a GPU


class PriorTrainingConfig(TrainingConfig):
    """How a prior is trained; the last three keys are for priors that are too large for a device."""

    sharded: bool = False  # shard weights, gradients and moments over the devices (FSDP2)
    # With sharded: how many devices, such as those of a node, share one copy of the weights (HSDP); 0: all.
    shard_devices: int = Field(default=0, ge=0)
    activation_checkpointing: bool = False  # compute activations again in the backward pass: less memory

    def devices_per_copy(self, n_devices: int) -> int:
        """Of so many devices, how many share one copy of the weights; ValueError if that does not divide them."""
        n = self.shard_devices or n_devices
        if n_devices % n:
            raise ValueError(f"shard_devices: expected a divisor of the {n_devices} devices, found {n}")
        return n


class TokenizerStage(Config):
    # Use the tokenizer of `default` (the bundled model), a run, folder, hub id, or published codec (hf:…); null: train one.
    from_pretrained: str | None = None
    model: VQVAEConfig = VQVAEConfig()
    losses: LossConfig = LossConfig()
    # The music to train it with, by path below data.folder ("songs/*"); []: all.
    only: tuple[str, ...] = ()
    crop_seconds: float = Field(default=0.68, gt=0, le=86400)
    # Step at which the codebooks start; before it latents are not quantized, so that they become useful.
    vq_start_step: int = Field(default=100, ge=0)
    # Decoder tones: the step at which sound is made; before it only the loudness of tones is learned, several times as fast.
    sound_start_step: int = Field(default=0, ge=0)
    training: TrainingConfig = TrainingConfig()

    @property
    def crop_samples(self) -> int:
        """The crop, rounded to whole codes of the coarsest level, at least one."""
        hop = self.model.multiple
        return max(1, round(self.crop_seconds * self.model.sample_rate / hop)) * hop


class DecoderTrainingConfig(TrainingConfig):
    """How decoder and discriminators are trained; keys without a `discriminator_` twin apply to both."""

    learning_rate: float = Field(default=1e-4, gt=0)
    beta1: float = Field(default=0.8, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    discriminator_learning_rate: float = Field(default=2e-4, gt=0)
    discriminator_steps: int = Field(default=0, ge=0)  # the first steps train only the discriminators

    @model_validator(mode="after")
    def _check(self) -> "DecoderTrainingConfig":
        if self.discriminator_steps >= self.steps:
            found = self.discriminator_steps
            raise ValueError(f"discriminator_steps: expected less than steps {self.steps}, found {found}")
        return self


class DecoderStage(Config):
    """The decoder of a trained tokenizer is tuned against discriminators; codes stay the same."""

    adversarial: AdversarialConfig = AdversarialConfig()
    training: DecoderTrainingConfig = DecoderTrainingConfig()


class CodesStage(Config):
    # Codes of another run, instead of music: a folder, or any URL that fsspec knows, whose files are
    # downloaded once. The run copies their tokenizer and trains only priors.
    path: str | None = None
    # The music for the priors, by path below data.folder ("chorales/*"); []: all music of the tokenizer.
    only: tuple[str, ...] = ()
    # How often each training track is encoded, each time from a later start: more codes of the same music.
    shifts: int = Field(default=1, ge=1, le=1024)


class PriorStage(Config):
    # As for the tokenizer; training starts from that model's prior of the same level.
    from_pretrained: str | None = None
    model: PriorConfig = PriorConfig()
    training: PriorTrainingConfig = PriorTrainingConfig()
    sampling: SamplingConfig = SamplingConfig()


class SamplesConfig(Config):
    """The audio that a run writes to its samples/ folder after each stage."""

    seconds: float = Field(default=10.0, gt=0, le=86400)
    n: int = Field(default=2, ge=1, le=1024)


class Recipe(Config):
    name: str
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on a GPU that has it, else fp32
    data: DataConfig = DataConfig()
    tokenizer: TokenizerStage = TokenizerStage()
    decoder_tuning: DecoderStage | None = None  # null: the decoder stays as the tokenizer stage trained it
    codes: CodesStage = CodesStage()
    # One for each level, coarse to fine; a single one applies to all levels; []: only a tokenizer is trained.
    priors: tuple[PriorStage, ...] = (PriorStage(),)
    samples: SamplesConfig = SamplesConfig()
    # Where metrics are shown, besides the run folder.
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if not (self.name.isprintable() and self.name.strip(". ")) or ".." in Path(self.name).parts:
            raise ValueError(f"name: expected a name for a folder, found {self.name!r:.40}")
        if self.tokenizer.model.codec and (self.decoder_tuning or not self.tokenizer.from_pretrained):
            key = "decoder_tuning" if self.decoder_tuning else "tokenizer.model.codec"
            raise ValueError(f"{key}: expected null; a published codec comes from from_pretrained, and stays as it is")
        if self.tokenizer.from_pretrained is None:
            for i in (i for i, stage in enumerate(self.priors) if stage.from_pretrained):
                reason = "because a prior needs the codes of its tokenizer"
                raise ValueError(f"priors.{i}.from_pretrained: expected tokenizer.from_pretrained, too, {reason}")
            _check_tokenizer(self.tokenizer)
            n, n_levels = len(self.priors), self.tokenizer.model.n_levels
            if n not in {0, 1, n_levels}:
                raise ValueError(f"priors: expected none, 1 or {n_levels} (one for each level), found {n}")
        n_samples, longest = self.tokenizer.crop_samples, longest_window(self)
        if self.batch_sizes(("tokenizer", "decoder")) and n_samples < longest:
            expected = f"at least {longest} samples, the longest window of losses, discriminators and decoder"
            raise ValueError(f"tokenizer.crop_seconds: expected {expected}, found {n_samples} samples")
        losses = self.tokenizer.losses.model_dump(exclude={"commitment", "kl", "compression"})
        weights = [weight for weight in losses.values() if isinstance(weight, float)]
        if self.decoder_tuning is not None and not any(weights):
            expected = "a reconstruction loss with a weight above 0 in tokenizer.losses"
            reason = "because the adversarial loss is scaled to it; found none"
            raise ValueError(f"decoder_tuning: expected {expected}, {reason}")
        return self

    def batch_sizes(self, stages: Container[str]) -> dict[str, int]:
        """The batch size of each network that these stages train, by its key in the recipe."""
        found = {}
        if "tokenizer" in stages and not (self.tokenizer.from_pretrained or self.codes.path):
            found["tokenizer"] = self.tokenizer.training
        if "decoder" in stages and self.decoder_tuning and not self.codes.path:
            found["decoder_tuning"] = self.decoder_tuning.training
        if "priors" in stages:
            found |= {f"priors.{i}": stage.training for i, stage in enumerate(self.priors)}
        return {f"{key}.training.batch_size": training.batch_size for key, training in found.items()}

    @property
    def n_priors(self) -> int:
        return self.tokenizer.model.n_levels if self.priors else 0

    def prior(self, level: int) -> PriorStage:
        return self.priors[level if len(self.priors) > 1 else 0]

    def prior_key(self, level: int) -> str:
        return f"priors.{level if len(self.priors) > 1 else 0}"

    def to_yaml(self) -> str:
        return conf.to_yaml(self.model_dump(mode="json"))


def _check_tokenizer(stage: TokenizerStage) -> None:
    """The parts of the training must fit into its steps."""
    steps, start, warmup = stage.training.steps, stage.vq_start_step, stage.losses.waveform_warmup_steps
    for key, found in (("vq_start_step", start), ("sound_start_step", stage.sound_start_step)):
        if found >= steps:
            raise ValueError(f"tokenizer.{key}: expected less than tokenizer.training.steps {steps}, found {found}")
    if stage.sound_start_step and not (stage.model.decoder.kind == "tones" and stage.losses.tones):
        raise ValueError("tokenizer.sound_start_step: expected a decoder of kind tones, and a weight for losses.tones")
    if 2 * warmup >= steps:
        expected = f"less than half of tokenizer.training.steps {steps}, so that the spectral terms reach their weights"
        raise ValueError(f"tokenizer.losses.waveform_warmup_steps: expected {expected}; found {warmup}")
    quantizer = stage.model.quantizer
    if quantizer.kind == "gumbel" and quantizer.temperature_steps > steps - start:
        key, most = "tokenizer.model.quantizer.temperature_steps", f"training.steps - vq_start_step = {steps - start}"
        reason = f"so that the decoder is trained on hard codes; found {quantizer.temperature_steps}"
        raise ValueError(f"{key}: expected at most {most}, {reason}")


def longest_window(recipe: Recipe) -> int:
    """Samples: the longest window of losses, discriminators and an inverse STFT."""
    losses, model = recipe.tokenizer.losses, recipe.tokenizer.model
    decoder = getattr(model.decoder, "overlap", 0) * model.hop_lengths[0 if model.topology == "independent" else -1]
    discriminators = recipe.decoder_tuning.adversarial.discriminators if recipe.decoder_tuning else ()
    mel = losses.mel_windows if losses.mel else ()
    views = [size for each in discriminators for size in getattr(each, "windows", ()) or each.periods]
    return max([decoder, *mel, *views], default=0)


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its path or a name that audiovq has; ValueError with the known names."""
    path = Path(name)
    if path.is_file():
        return path
    known, stem = conf.known_recipes(), path.name.removesuffix(".yaml")
    if stem in known and path.parent in {Path(), Path("recipes")}:
        return known[stem]
    raise ValueError(f"{name}: no such recipe; known recipes: {', '.join(sorted(known))}")


def header(path: Path) -> dict[str, str]:
    """The facts in a recipe's first comment, `# Key: text`, by lower-case key; more lines of a text are indented."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8-sig").splitlines())
    facts = email.message_from_string("\n".join(line.lstrip("#").removeprefix(" ") for line in lines))
    return {key.lower(): " ".join(text.split()) for key, text in facts.items()}


def read_mapping(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's mapping, merged over the one that it `extends`. Paths are relative to the recipe's file."""
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    mapping = compat.current_recipe(conf.read_yaml(path), path.name)
    base = mapping.pop("extends", None)
    _resolve_paths(mapping, path.parent)
    if base is None:
        return mapping
    if not isinstance(base, str) or not (path.parent / base).is_file():
        raise ValueError(f"{path}: extends: expected the name of a recipe in the same folder, found {base!r:.40}")
    return conf.merge(read_mapping(path.parent / base, (*seen, path)), mapping)


def load_recipe(name: str, data: str | None = None, overrides: Sequence[str] = (), codes: str | None = None) -> Recipe:
    """Read a recipe, by its path or its name, and change some of its values: `data.folder`, `codes.path`, and
    by overrides `a.b=value` with a value in YAML. ValueError with the path of a wrong key or value."""
    path = find_recipe(name)
    mapping = read_mapping(path)
    mapping.setdefault("name", path.stem)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {override}: expected key=value, such as tokenizer.training.steps=100")
        conf.set_path(mapping, compat.current_key(key.strip()), conf.parse_yaml(value, f"--set {key}"))
    for key, value in (("data.folder", data), ("codes.path", codes)):
        if value is not None:
            conf.set_path(mapping, key, value)
    _resolve_paths(mapping, Path.cwd())
    return conf.build(Recipe, mapping, str(path))


def _resolve_paths(mapping: dict[str, Any], folder: Path) -> None:
    """Make the paths in a recipe's mapping absolute, in place; a `~` at the beginning is the home folder."""
    for section, key in (("data", "folder"), ("codes", "path")):
        settings: Any = mapping.get(section)
        place = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(place, str) and place and not is_url(place):
            settings[key] = os.path.normpath(folder / os.path.expanduser(place))


def load_saved_recipe(path: Path) -> Recipe:
    return conf.build(Recipe, compat.current_recipe(conf.read_yaml(path), str(path), quiet=True), str(path))


def codes_place(run: Path) -> Path | str:
    path = run / "recipe.yaml"
    return (load_saved_recipe(path).codes.path if path.is_file() else None) or run / "codes"


# Keys that may change when a run is resumed, perhaps on another machine: they do not change its results.
RESUME_MUTABLE = {
    *("device_batch_size", "compile", "sharded", "shard_devices", "activation_checkpointing"),
    *("checkpoint_seconds", "keep_checkpoints", "keep_every_steps", "workers", "trackers"),
}


def first_difference(a: Any, b: Any, path: str = "", ignored: Container[str] = ()) -> str | None:
    """The first key, but for `ignored` ones, in which two mappings differ, as `path: a → b`; or None."""
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = [(key, a.get(key), b.get(key)) for key in a | b if key not in ignored]
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(str(i), x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b else f"{path}: {json.dumps(a)} → {json.dumps(b)}"  # as in YAML
    differences = (first_difference(x, y, f"{path}.{key}".lstrip("."), ignored) for key, x, y in pairs)
    return next(filter(None, differences), None)
