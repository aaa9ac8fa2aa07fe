"""The real music that a model is compared with: tracks of its run, or of another folder."""

import dataclasses
from pathlib import Path

from audiovq.data.sources import local_music
from audiovq.data.tracks import DataConfig, Scan, scan
from audiovq.recipe import load_saved_recipe


def held_out_music(folder: Path, model: str, data: str | None) -> Scan:
    """All tracks of the folder `data`; without it, the tracks that the run in `folder` held out, or a ValueError."""
    return scan_folder(data) if data is not None else _part(_run_music(folder, model), "valid", model)


def training_and_held_out_music(folder: Path, model: str, data: str | None) -> tuple[Scan, Scan]:
    """The tracks that the priors of a run learned from, and held-out tracks. `data` replaces the held-out
    tracks; for a model that is not a run, it is split into both. ValueError if there are none."""
    if not _is_run(folder) and data is not None:
        music = scan_folder(data)
        return _part(music, "train", model), _part(music, "valid", model)
    music = _run_music(folder, model).only(load_saved_recipe(folder / "recipe.yaml").codes.only)
    return _part(music, "train", model), (scan_folder(data) if data is not None else _part(music, "valid", model))


def scan_folder(data: str) -> Scan:
    return scan(local_music(data), DataConfig(folder=data))


def _is_run(folder: Path) -> bool:
    return (folder / "data" / "tracks.jsonl").is_file()


def _run_music(folder: Path, model: str) -> Scan:
    if not _is_run(folder):
        advice = f"name a folder of music: audiovq eval {model} DATA"
        raise ValueError(f"{model}: not a run, so it has no held-out tracks; {advice}")
    return Scan.load(folder / "data")


def _part(music: Scan, split: str, model: str) -> Scan:
    tracks = music.tracks.of(split)
    if not tracks and split == "valid":
        raise ValueError(f"{model}: no track is held out; name a folder of music: audiovq eval {model} DATA")
    return dataclasses.replace(music, tracks=tracks)
