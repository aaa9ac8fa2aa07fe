"""report.json of a run: codebook usage of the data set, and bits of each trained prior on held-out tracks."""

import json
from pathlib import Path
from typing import Any

import torch

from audiovq.data.shards import Shards
from audiovq.evaluation.code_statistics import code_statistics, held_out_bits, level_counts
from audiovq.pretrained import checkpoint
from audiovq.pretrained.locate import prior_folders
from audiovq.utils.files import write_text
from audiovq.utils.progress import say


def write_results(run: Path, shards: Shards, device: torch.device) -> None:
    """Measure, write report.json and print one line for each prior."""
    split = "valid" if shards.index.tracks.of("valid") else "train"
    levels: list[dict[str, Any]] = code_statistics(level_counts(shards, split), shards.index)
    for level, folder in enumerate(prior_folders(run)):
        prior, _ = checkpoint.load_prior(folder)
        levels[level] |= held_out_bits(prior.to(device), shards, split)
    write_text(run / "report.json", json.dumps({"split": split, "levels": levels}, indent=2))
    tracks = "held-out tracks" if split == "valid" else "the training tracks (none is held out)"
    for i, level in enumerate(level for level in levels if "bits_per_second" in level):
        say(
            f"level {i}: {level['bits_per_code']:.2f} bits per code on {tracks} "
            f"(unigram {level['unigram_bits_per_code']:.2f}), "
            f"{level['bits_per_second']:.0f} bits per second"
        )
