"""`audiovq export`: a run or a model folder -> a folder to share, whose card says what the run knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from audiovq.config import read_json
from audiovq.data.tracks import Scan
from audiovq.pretrained import checkpoint
from audiovq.pretrained.hub import save_pretrained
from audiovq.pretrained.locate import prior_folders, resolve_model
from audiovq.recipe import Recipe, load_saved_recipe

CREDITS = ("CREDITS*", "ATTRIBUTION*", "LICENSE*", "LICENCE*")
SAID = {"licence": ("license", "licence", "copyright"), "artist": ("artist", "author", "composer")}


def export_model(
    source: str, folder: Path, half: bool = False, onnx: bool = False, license: str | None = None,
    credits: Path | None = None, repo_id: str | None = None,
) -> list[str]:  # fmt: skip
    """Write the models of a run (or of a model folder, or a hub id) into a new folder; returns lines for the user.

    Args:
        license: of the weights, as the hub names it, such as cc-by-4.0.
        credits: text file for the card; default what the recipe names, else a CREDITS file beside the music.
    Raises:
        ValueError: no model, a folder that is not empty, or a run whose credits file is missing.
    """
    place = resolve_model(source)
    inner = place / "tokenizer" if (place / "tokenizer").is_dir() else place
    network = checkpoint.load_tokenizer(inner)
    loaded = [checkpoint.load_prior(path) for path in prior_folders(place)]
    known = run_facts(place) | {"license": license}
    if credits is not None:
        known["credits"] = _read_text(credits)
    facts = save_pretrained(
        folder, network, [prior for prior, _ in loaded], [pick for _, pick in loaded], half=half, onnx=onnx,
        repo_id=repo_id, **known,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{folder}: tokenizer and {len(loaded)} priors, {size / 1e6:.1f} MB; read its README.md before you share it"
    ]
    if facts.onnx:
        lines.append(
            f"onnx: {facts.onnx['codes_equal']:.2%} of the codes as by torch, samples within {facts.onnx['waveform_error']:.1g}"
        )
    if not facts.credits and "licence" not in facts.labels_said:
        lines.append(
            "no credits or licences of the music were found: add them to README.md, or name a file with --credits"
        )
    return lines


def run_facts(place: Path) -> dict[str, Any]:
    """What a run says of data, recipe and results, as `CardFacts` has it; nothing for a folder that is no run.

    Names of local folders are left out: they are nobody else's business.
    """
    if not (place / "recipe.yaml").is_file():
        return {}
    recipe = load_saved_recipe(place / "recipe.yaml")
    facts: dict[str, Any] = {
        "name": recipe.name,
        "recipe": _public(recipe).to_yaml(),
        "recipe_facts": _main_facts(recipe, place),
    }
    if (place / "data" / "tracks.jsonl").is_file():
        scan = Scan.load(place / "data")
        facts |= {
            "data": scan.report(),
            "labels_said": _labels_said(scan),
            "credits": find_credits(scan.folder, recipe),
        }
    if (place / "report.json").is_file():
        report = read_json(place / "report.json")
        facts |= {"split": report["split"], "levels": report["levels"]}
    return facts


def _public(recipe: Recipe) -> Recipe:
    name = Path(recipe.data.folder).name
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": name})})


def _main_facts(recipe: Recipe, place: Path) -> dict[str, Any]:
    tuned = checkpoint.tuning_steps(place / "tokenizer") if (place / "tokenizer").is_dir() else 0
    tokenizer = f"{recipe.tokenizer.training.steps} steps of {recipe.tokenizer.training.batch_size} crops"
    priors = {f"{p.training.steps} steps of {p.training.batch_size} windows" for p in recipe.priors}
    return {
        "recipe": f"`{recipe.name}`, seed {recipe.seed}",
        "tokenizer": tokenizer + (f"; decoder tuned for {tuned} steps against discriminators" if tuned else ""),
        "priors": " / ".join(sorted(priors)),
    }


def _labels_said(scan: Scan) -> dict[str, list[str]]:
    """Licences and authors that the tracks' labels name."""
    said = {}
    for name, keys in SAID.items():
        values = sorted({track.labels[key] for track in scan.tracks for key in keys if key in track.labels})
        if values:
            said[name] = values
    return said


def find_credits(music: Path, recipe: Recipe) -> str:
    """The file that the recipe names, else one beside the music, or a CREDITS file one folder up; empty if there is none."""
    if recipe.data.credits is not None:
        return _read_text(music / recipe.data.credits)
    candidates = [
        *(p for pattern in CREDITS for p in sorted(music.glob(pattern))),
        *sorted(music.parent.glob(CREDITS[0])),
    ]
    texts = [path for path in candidates if path.is_file() and path.suffix.lower() in {"", ".md", ".txt"}]
    return _read_text(texts[0]) if texts else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a text file with credits ({error})") from None
