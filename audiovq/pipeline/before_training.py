"""Before a training begins: which music it takes if none was named, and a word if it will take days."""

from __future__ import annotations

import os
from pathlib import Path

from audiovq.config import recipe_folders
from audiovq.data.tracks import find_audio
from audiovq.planning.quick import describe_machine, rough_hours
from audiovq.recipe import Recipe, load_saved_recipe
from audiovq.utils.progress import say

LONG_HOURS = 12.0  # from here on a training is announced as long


def with_music(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with a music folder. One that names neither music nor codes takes the first of: the music of this run when
    it began, `music/` in the current folder, $AUDIOVQ_MUSIC, the recordings in samples/; one line says which.

    Args:
        run: the run's folder, which need not exist.
    Raises:
        ValueError: there is no music in any of these places.
    """
    if recipe.data.folder or recipe.codes.path:
        return recipe
    saved = run / "recipe.yaml"
    if saved.is_file():
        folder = Path(load_saved_recipe(saved).data.folder)
    else:
        folder = find_music(recipe.name)
        say(f"no --data: the music is {folder}")
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": str(folder.resolve())})})


def find_music(name: str) -> Path:
    """The first place that has music; raises ValueError if none has."""
    named = os.environ.get("AUDIOVQ_MUSIC")
    if named and not Path(named).is_dir():
        raise ValueError(f"AUDIOVQ_MUSIC: expected a folder of music, found no folder {named}")
    places = [Path("music"), *([Path(named)] if named else [])]
    places += [folder.parent / "samples" / "recordings" for folder in recipe_folders()]
    for place in places:
        if place.is_dir() and find_audio(place):
            return place
    raise ValueError(
        f"{name}: no music to learn from; name a folder with --data DIR (or put music into a folder music/ here, or set "
        "AUDIOVQ_MUSIC)"
    )


def announce_duration(recipe: Recipe, n_devices: int) -> None:
    """Say how long a long training takes, and what fits this machine; nothing for a short one."""
    hours = rough_hours(recipe, n_devices)
    if hours < LONG_HOURS:
        return
    music = f" --data {recipe.data.folder}" if recipe.data.folder else ""
    say(
        f"{recipe.name} takes roughly {rounded(hours)} hours on {describe_machine()}. For this machine, in minutes: "
        f"audiovq train recipes/finetune.yaml{music}"
    )
    say(f"{recipe.name} begins all the same; Ctrl-C stops it, and the same command resumes")


def rounded(hours: float) -> str:
    """Two digits that count: 13,482 -> 13,000."""
    digits = len(str(int(hours))) - 2
    return f"{round(hours, -digits):,.0f}"
