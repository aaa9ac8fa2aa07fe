"""Writes a folder of models to share: a tokenizer and its priors, with a model card (README.md, as the hub reads it)."""

import copy
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import huggingface_hub
import jinja2
import torch
import yaml

from audiovq import config as conf
from audiovq.data.tracks import Scan, credits_files
from audiovq.pretrained import checkpoint, onnx_files, onnx_generator
from audiovq.pretrained.identity import tokenizer_hash
from audiovq.pretrained.locate import is_hub_name, prior_folders, push_folder, resolve_model, tokenizer_folder
from audiovq.prior.prior import Prior, SamplingConfig
from audiovq.prior.spec import PriorSpec
from audiovq.recipe import Recipe, load_saved_recipe
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.environment import errors_as, require
from audiovq.utils.files import atomic_folder, check_new_folder

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
LONGEST_CREDITS = 20000  # characters
MOST_VALUES = 20  # of a label that are listed
COLUMNS = ("bits_per_code", "unigram_bits_per_code", "bits_per_second", "usage")
# Labels of tracks that are listed in the card, with the names that they may have.
LISTED_LABELS = {"licence": ("license", "licence", "copyright"), "artist": ("artist", "author", "composer")}
Models = tuple[VQVAE, Sequence[Prior], Sequence[SamplingConfig]]


@dataclass
class RunFacts:
    """Facts about the training; the card leaves out unknown ones."""

    name: str = ""
    license: str | None = None  # as the hub names it, such as cc-by-4.0, or other
    license_name: str | None = None  # with the license `other`
    license_text: str | None = None  # Markdown: which part is under which licence
    data: dict[str, Any] = field(default_factory=dict)  # hours, tracks, train_tracks, valid_tracks
    labels: dict[str, list[str]] = field(default_factory=dict)  # licences and artists, from the tracks
    credits: str = ""  # text of the credits file
    parents: list[str] = field(default_factory=list)  # models that the training began from
    original: str = ""  # text of the card of the model folder that is exported
    recipe: str = ""  # YAML
    split: str = ""  # the tracks that the levels were measured on
    levels: list[dict[str, Any]] = field(default_factory=list)  # of report.json


def export_model(source: str, folder: Path, credits: Path | None = None, **options: Any) -> list[str]:
    """Write the models of a run, of a model folder or of a hub id into a new folder; returns lines for the user.
    `credits` is a text file for the card. Options are those of `save_pretrained`, and the licence of `RunFacts`."""
    int8, onnx = options.get("int8"), options.get("onnx")
    licence = {k: v for k in ("license", "license_name", "license_text") if (v := options.pop(k, None))}
    if int8 and not onnx:
        raise ValueError("--int8: expected with --onnx or --web, whose priors get 8-bit weights; found neither")
    if onnx:
        require("onnx", "onnxruntime", "onnxscript", install="pip install 'audiovq[onnx]'")
    place = resolve_model(source)
    network = checkpoint.load_tokenizer(tokenizer_folder(place))
    loaded = [checkpoint.load_prior(path) for path in prior_folders(place)]
    priors, sampling = [prior for prior, _ in loaded], [settings for _, settings in loaded]
    run = dataclasses.replace(run_facts(place), **({"license_name": None} | licence if licence else {}))
    run.credits = _read_text(credits) if credits else run.credits
    compared = save_pretrained(folder, network, priors, sampling, run=run, **options)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lines = [f"{folder}: tokenizer and {len(loaded)} priors, {size / 1e6:.1f} MB; read README.md before you share it"]
    if compared:
        equal, error = compared["codes_equal"], compared["waveform_error"]
        lines.append(f"onnx: {equal:.2%} of the codes equal those of torch, samples within {error:.1g}")
        if "logit_error" in compared:
            rounded = ", before their weights were rounded to 8 bits" if int8 else ""
            lines.append(f"onnx: logits of the priors within {compared['logit_error']:.1g}{rounded}")
    if not (run.credits or run.original or "licence" in run.labels):
        advice = "add them to README.md, or name a file with --credits"
        lines.append(f"no credits or licences of the music were found: {advice}")
    return lines


def save_pretrained(
    folder: str | Path, network: VQVAE, priors: Sequence[Prior] = (), sampling: Sequence[SamplingConfig] = (), *,
    half: bool = False, onnx: bool = False, int8: bool = False, repo_id: str | None = None, run: RunFacts | None = None,
) -> dict[str, float] | None:  # fmt: skip
    """Write a folder to share, with weights, configs and a model card; it appears when it is whole.

    Args:
        half: weights in half precision. Rounding makes another tokenizer, so the saved priors get its hash.
        onnx: add the folder onnx, see `onnx_files` and `onnx_generator`.
        int8: 8-bit weights of the priors in that folder.
        repo_id: its name on the hub, for the card.
        run: facts for the card.
    Returns:
        How the ONNX files compare with torch, see `export_onnx` and `export_generator`. Raises ValueError if the folder
        is not empty, or cannot be written.
    """
    folder, run, dtype = Path(folder).absolute(), run or RunFacts(), torch.float16 if half else None
    check_new_folder(folder)
    with atomic_folder(folder) as temporary:
        checkpoint.save_tokenizer(temporary / "tokenizer", network, dtype)
        saved = checkpoint.load_tokenizer(temporary / "tokenizer")
        identity = tokenizer_hash(saved)
        for level, prior in enumerate(priors):
            renamed = copy.copy(prior)  # shares the weights
            renamed.spec = dataclasses.replace(prior.spec, tokenizer_hash=identity)
            settings = sampling[level] if sampling else SamplingConfig()
            checkpoint.save_prior(temporary / f"prior-{level}", renamed, settings, dtype)
        compared = None
        if onnx:
            compared = onnx_files.export_onnx(temporary / "onnx", saved)
            compared |= export_generator(temporary / "onnx", temporary, saved, run.name or folder.name, int8)
        facts: dict[str, Any] = {"config": network.config, "tokenizer_hash": identity, "half": half, "onnx": compared}
        facts["n_parameters"] = sum(p.numel() for n in (network, *priors) for p in n.parameters())
        facts["name"] = run.name or (repo_id or folder.name).split("/")[-1]
        card = model_card(run, [prior.spec for prior in priors], repo_id=repo_id or "OWNER/NAME", **facts)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return compared


class Shareable:
    """Adds `save_pretrained` and `push_to_hub` to a class that defines `_models`."""

    def _models(self) -> Models:
        raise NotImplementedError

    def save_pretrained(self, folder: str | Path, half: bool = False) -> None:
        """Write a folder to share: weights, configs and a model card (that of `audiovq export` has more). Half
        precision makes it another tokenizer with codes of its own. ValueError if the folder is not empty."""
        save_pretrained(folder, *self._models(), half=half)

    def push_to_hub(self, repo_id: str, *, half: bool = False, **options: Any) -> list[str]:
        """Send the model to the Hugging Face hub; gives one line per file, and one with the address. For `half`
        see `save_pretrained`, for the options (private, revision, token, dry_run) see `push_folder`."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            save_pretrained(folder, *self._models(), half=half, repo_id=repo_id)
            return push_folder(folder, repo_id, **options)


def export_generator(folder: Path, model: Path, network: VQVAE, name: str, int8: bool = False) -> dict[str, float]:
    """The files of `onnx_generator` for the priors in the folder of a model; nothing if there are none."""
    loaded = [checkpoint.load_prior(path) for path in prior_folders(model)]
    if not loaded:
        return {}
    decoder = onnx_files.DecodeGraph(network, len(loaded), spectra=True)
    return onnx_generator.export_generator(folder, network, decoder, loaded, name, int8)


def run_facts(place: Path) -> RunFacts:
    """What a run knows about data, recipe and results; of another folder what its card says."""
    if not (place / "recipe.yaml").is_file():
        if not (path := place / "README.md").is_file():
            return RunFacts()
        with errors_as(f"{path}: expected a model card", OSError, TypeError, ValueError, yaml.YAMLError):
            card = huggingface_hub.ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        return RunFacts(**{k: card.data.get(k) for k in ("license", "license_name")}, original=card.text)
    recipe = load_saved_recipe(place / "recipe.yaml")
    public = without_local_paths(recipe)
    facts = RunFacts(recipe.name, recipe=public.to_yaml())
    facts.parents = sorted({name for part in (public.tokenizer, *public.priors) if (name := part.from_pretrained)})
    if (place / "data" / "tracks.jsonl").is_file():
        scan = Scan.load(place / "data")
        facts.data, facts.credits = scan.report(), find_credits(scan.folder, recipe)
        for name, keys in LISTED_LABELS.items():
            values = {track.labels[key] for track in scan.tracks for key in keys if key in track.labels}
            if values:
                facts.labels[name] = sorted(values)
    if (place / "report.json").is_file():
        report = conf.read_json(place / "report.json")
        facts.split, facts.levels = report["split"], report["levels"]
    return facts


def without_local_paths(recipe: Recipe) -> Recipe:
    """The recipe to publish: of each path, URL or local model only the last name is left; hub ids stay."""
    content = recipe.model_dump()
    places = [(content["data"], key) for key in ("folder", "manifest", "credits")] + [(content["codes"], "path")]
    places += [(part, "from_pretrained") for part in (content["tokenizer"], *content["priors"])]
    for part, key in places:
        if part[key] and not (key == "from_pretrained" and is_hub_name(part[key])):
            part[key] = PureWindowsPath(part[key].split("?")[0]).name
    return conf.build(Recipe, content, recipe.name)


def find_credits(music: Path, recipe: Recipe) -> str:
    """The text of the file that the recipe names; else of the first of `credits_files`; empty if there is none."""
    if recipe.data.credits is not None:
        return _read_text(music / recipe.data.credits)
    texts = credits_files(music) if music.is_dir() else []
    return _read_text(texts[0]) if texts else ""


def _read_text(path: Path) -> str:
    with errors_as(f"{path}: expected a text file with credits", OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")[:LONGEST_CREDITS]


def model_card(run: RunFacts, specs: Sequence[PriorSpec], **facts: Any) -> str:
    """The whole README.md, from facts about the run, the specs of the priors, and what the template names besides."""
    tags = ["audiovq", "music", "audio", "vq-vae", "audio-tokenizer"]
    tags += ["music-generation"] if specs else []
    licence: Any = {"license": run.license, "license_name": run.license_name}
    task = "text-to-audio" if specs else "audio-to-audio"
    metadata = huggingface_hub.ModelCardData(**licence, library_name="audiovq", pipeline_tag=task, tags=tags)
    template = load_template(TEMPLATE, listed=_listed)
    return template.render(run=run, specs=specs, metadata=metadata.to_yaml(), columns=COLUMNS, **facts)


def load_template(path: Path, autoescape: bool = False, **filters: Any) -> jinja2.Template:
    options: Any = dict.fromkeys(("trim_blocks", "lstrip_blocks", "keep_trailing_newline"), True)
    loader, undefined = jinja2.FileSystemLoader(path.parent), jinja2.StrictUndefined
    environment = jinja2.Environment(loader=loader, undefined=undefined, autoescape=autoescape, **options)
    environment.filters |= filters
    return environment.get_template(path.name)


def _listed(values: Sequence[str]) -> str:
    more = f", … ({len(values)} in all)" if len(values) > MOST_VALUES else ""
    text = ", ".join(values[:MOST_VALUES]) + more
    return " ".join("".join(c for c in text if c not in "<>`|[]*_#").split())  # which Markdown or HTML would interpret
