"""Exports the models of a run: the folder of `save_pretrained`, with what the run knows in its model card."""

import dataclasses
from pathlib import Path, PureWindowsPath
from typing import Any

from audiovq import config as conf
from audiovq.data.tracks import Scan
from audiovq.pretrained import checkpoint, onnx_files
from audiovq.pretrained.locate import is_hub_name, prior_folders, resolve_model, tokenizer_folder
from audiovq.pretrained.save import RunFacts, save_pretrained
from audiovq.recipe import Recipe, load_saved_recipe
from audiovq.utils.extras import require

CREDITS = ("CREDITS*", "ATTRIBUTION*", "LICENSE*", "LICENCE*")
# Labels of tracks that are listed in the card, with the names that they may have.
LISTED_LABELS = {"licence": ("license", "licence", "copyright"), "artist": ("artist", "author", "composer")}


def export_model(
    source: str,
    folder: Path,
    half: bool = False,
    onnx: bool = False,
    repo_id: str | None = None,
    credits: Path | None = None,
    **licence: str | None,
) -> list[str]:
    """Write the models of a run, of a model folder or of a hub id into a new folder.

    Args:
        half, repo_id: see `save_pretrained`.
        onnx: add the tokenizer as onnx/encode.onnx and onnx/decode.onnx.
        credits: text file for the card; default see `find_credits`.
        licence: license, license_name and license_text of `RunFacts`.
    Returns:
        Lines for the user.
    Raises:
        ValueError: no model, a folder that is not empty, or a credits file that is missing.
    """
    if onnx:
        require("onnx", "onnxruntime", "onnxscript", install="pip install 'audiovq[onnx]'")
    place = resolve_model(source)
    network = checkpoint.load_tokenizer(tokenizer_folder(place))
    loaded = [checkpoint.load_prior(path) for path in prior_folders(place)]
    priors, sampling = [prior for prior, _ in loaded], [settings for _, settings in loaded]
    run = dataclasses.replace(run_facts(place), **licence)
    if credits is not None:
        run.credits = _read_text(credits)
    options: dict[str, Any] = {"half": half, "repo_id": repo_id, "run": run}
    if onnx:
        options["export_onnx"] = onnx_files.export_onnx
    compared = save_pretrained(folder, network, priors, sampling, **options)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    contents = f"tokenizer and {len(loaded)} priors, {size / 1e6:.1f} MB"
    lines = [f"{folder}: {contents}; read README.md before you share it"]
    if compared:
        equal, error = compared["codes_equal"], compared["waveform_error"]
        lines.append(f"onnx: {equal:.2%} of the codes equal those of torch, samples within {error:.1g}")
    if not run.credits and "licence" not in run.labels:
        advice = "add them to README.md, or name a file with --credits"
        lines.append(f"no credits or licences of the music were found: {advice}")
    return lines


def run_facts(place: Path) -> RunFacts:
    """What a run knows about data, recipe and results; nothing for a folder that is not a run."""
    if not (place / "recipe.yaml").is_file():
        return RunFacts()
    recipe = load_saved_recipe(place / "recipe.yaml")
    facts = RunFacts(recipe.name, recipe=without_local_paths(recipe).to_yaml())
    tokenizer = f"{recipe.tokenizer.training.steps} steps of {recipe.tokenizer.training.batch_size} crops"
    if (place / "tokenizer").is_dir() and (steps := checkpoint.tuning_steps(place / "tokenizer")):
        tokenizer += f"; decoder tuned for {steps} steps against discriminators"
    priors = {f"{p.training.steps} steps of {p.training.batch_size} windows" for p in recipe.priors}
    facts.recipe_facts = {
        "recipe": f"`{recipe.name}`, seed {recipe.seed}",
        "tokenizer": tokenizer,
        "priors": " / ".join(sorted(priors)),
    }
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
    places = [(content["data"], "folder"), (content["data"], "manifest"), (content["data"], "credits")]
    places += [(part, "from_pretrained") for part in (content["tokenizer"], *content["priors"])]
    for part, key in [*places, (content["codes"], "path")]:
        value = part[key]
        is_hub_id = key == "from_pretrained" and value and is_hub_name(value)
        part[key] = value and (value if is_hub_id else PureWindowsPath(value.split("?")[0]).name)
    return conf.build(Recipe, content, recipe.name)


def find_credits(music: Path, recipe: Recipe) -> str:
    """The text of the file that the recipe names; else of a credits or licence file in the music folder, or
    of a CREDITS file one folder up; empty if there is none."""
    if recipe.data.credits is not None:
        return _read_text(music / recipe.data.credits)
    found = [path for pattern in CREDITS for path in sorted(music.glob(pattern))]
    found += sorted(music.parent.glob(CREDITS[0]))
    texts = [path for path in found if path.is_file() and path.suffix.lower() in {"", ".md", ".txt"}]
    return _read_text(texts[0]) if texts else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text file with credits ({error})") from None
