"""The recipe's settings of the data set."""

from pydantic import Field

from audiovq.config import Config


class DataConfig(Config):
    # Folder, searched recursively, relative to the recipe's file; or a URL, tar files or datasets://ID.
    folder: str = ""
    manifest: str | None = None  # JSONL, one track a line: {"path": …, labels…}; relative to the folder
    valid_fraction: float = Field(default=0.1, ge=0, lt=1)  # of the tracks, at least one if there are two
    min_seconds: float = Field(default=1.0, gt=0)  # shorter tracks are set aside
    cache_gigabytes: float = Field(default=2.0, ge=0)  # smaller data sets are decoded once, into memory
    credits: str | None = None  # text file for the model card; relative to the folder; default CREDITS.*
    workers: int = Field(default=0, ge=0, le=1024)  # processes that prepare batches; 0 does it in the training process
