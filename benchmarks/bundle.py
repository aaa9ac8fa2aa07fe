"""Copy a finished run's models, in half precision, to where the bundled model lies.

    python benchmarks/bundle.py runs/quickstart audiovq/models/default

Rounding the tokenizer changes its hash, so the priors are told the new one. Prints the size.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch

from audiovq import api, checkpoint


def main(run: Path, target: Path) -> None:
    checkpoint.save_tokenizer(target / "tokenizer", checkpoint.load_tokenizer(run / "tokenizer"), torch.float16)
    rounded = checkpoint.tokenizer_hash(checkpoint.load_tokenizer(target / "tokenizer"))
    for folder in api.prior_folders(run):
        prior, pick = checkpoint.load_prior(folder)
        prior.spec = dataclasses.replace(prior.spec, tokenizer_hash=rounded)
        checkpoint.save_prior(target / folder.name, prior, pick, torch.float16)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
