"""Before a training begins: the music of a recipe that names none, and a message if it takes long."""

import contextlib
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from audiovq.config import recipe_folders
from audiovq.data.sources import local_music
from audiovq.data.tracks import check_music_folder, find_audio
from audiovq.distributed import collectives
from audiovq.pipeline.run_folder import RunFolder
from audiovq.planning.estimate import make_plan, music_seconds
from audiovq.recipe import Recipe, load_saved_recipe
from audiovq.utils.progress import duration, say

LONG_HOURS = 12.0  # a training that takes longer is announced


def with_music(recipe: Recipe, run: Path | None = None) -> Recipe:
    """A recipe with a music folder. A recipe that names neither music nor codes gets the first of: the music with
    which this `run` began, the folder `music/` in the current folder, $AUDIOVQ_MUSIC, and the recordings in samples/.
    One line says which. Raises ValueError if none of these has music."""
    is_new = not (run and (run / "recipe.yaml").is_file())
    if recipe.data.folder or recipe.codes.path:
        if is_new and not recipe.codes.path:
            check_music_folder(local_music(recipe.data.folder))  # before a folder is made for the run
        return recipe
    if run and not is_new:
        folder = load_saved_recipe(run / "recipe.yaml").data.folder
    else:
        say(f"no --data: the music is {(found := find_music(recipe.name))}")
        folder = os.path.realpath(found)
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": folder})})


def find_music(name: str) -> Path:
    """The first folder with music; ValueError if there is none."""
    named = os.environ.get("AUDIOVQ_MUSIC")
    if named and not Path(named).is_dir():
        raise ValueError(f"AUDIOVQ_MUSIC: expected a folder of music, found no folder {named}")
    places = [Path("music"), *([Path(named)] if named else [])]
    places += [folder.parent / "samples" / "recordings" for folder in recipe_folders()]
    for place in places:
        if place.is_dir() and find_audio(place):
            return place
    advice = "name a folder with --data DIR, put music into the folder music/ here, or set AUDIOVQ_MUSIC"
    raise ValueError(f"{name}: no music folder; {advice}")


def announce_duration(files: RunFolder, stages: Sequence[str], n_devices: int) -> dict[str, float]:
    """Print the hours of a long training, a command that fits this machine, and priors that are far too large. All
    `stages` to do are tried with one example, so that what is impossible is found now, and not after hours. Raises
    ValueError if one cannot be trained with these settings, devices or memory. Returns `Task.example_flops` by stage."""
    if not stages:
        return {}
    recipe = files.recipe
    seconds = 0.0  # rank 0 looks through the music
    with contextlib.suppress(ValueError):  # the scan at the beginning of the training says what is wrong
        if collectives.from_rank_0((files.path / "data" / "tracks.jsonl").is_file()):
            seconds = float(files.scan().only(recipe.codes.only).tracks.seconds.sum())
        elif collectives.rank() == 0:
            seconds = music_seconds(recipe)
    collectives.barrier()
    if not (seconds := collectives.from_rank_0(math.ceil(seconds))):
        return {}
    plan = make_plan(recipe, seconds, stages, n_devices=n_devices)
    for stage in plan["stages"]:
        if stage.get("too_large"):
            say(f"{stage['stage']}: {stage['size']}")
        parts = {name: size for name, size in stage.get("memory_parts", {}).items() if name != "activations"}
        if (needed := sum(parts.values())) > (memory := plan["memory_bytes"]):
            found = f"found {needed / 1e9:.3g} GB of {', '.join(parts)}; make it smaller, or shard it over more GPUs"
            expected = f"expected a network that fits into {memory / 1e9:.3g} GB of memory"
            raise ValueError(f"{stage['stage']}: {expected}, {found}")
    if plan["hours"] >= LONG_HOURS:
        command = f"audiovq train recipes/finetune.yaml --data {shlex.quote(recipe.data.folder or 'DIR')}"
        needed = f"{recipe.name} takes roughly {duration(3600 * plan['hours'])} on this machine ({plan['device']})"
        say(f"{needed}. A command for this machine, which takes minutes: {command}")
        say(f"{recipe.name} begins all the same; Ctrl-C stops it, and the same command resumes it")
    return {stage["stage"]: stage.get("example_flops", 0.0) for stage in plan["stages"]}
