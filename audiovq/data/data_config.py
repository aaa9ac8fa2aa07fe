"""The recipe's settings of the data set."""

import os
from typing import Annotated, Literal

import torch
from pydantic import Field

from audiovq.config import Config
from audiovq.utils.environment import cpu_count


class DataConfig(Config):
    # Folder, searched recursively, relative to the recipe's file; or a URL, tar files or datasets://ID.
    folder: str = ""
    manifest: str | None = None  # JSONL, one track a line: {"path": …, labels…}; relative to the folder
    valid_fraction: float = Field(default=0.1, ge=0, lt=1)  # of the tracks, at least one if there are two
    min_seconds: float = Field(default=1.0, gt=0)  # shorter tracks are set aside
    cache_gigabytes: float = Field(default=2.0, ge=0)  # smaller data sets are decoded once, into memory
    credits: str | None = None  # text file for the model card; relative to the folder; default CREDITS.*
    # Processes that prepare the batches of each training process; 0: none but itself. auto: up to 8 with a GPU, else 0.
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = "auto"

    @property
    def n_workers(self) -> int:
        if self.workers != "auto":
            return min(self.workers, cpu_count())  # torch warns of more
        share = cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return max(0, min(8, share - 1)) if torch.cuda.is_available() else 0
