"""Copy a finished run's models, in half precision, to where the bundled model lies.

    python benchmarks/bundle.py runs/quickstart audiovq/models/default

Rounding the tokenizer changes its hash, so the priors are told the new one. Prints the size.
"""

from __future__ import annotations

import sys
from pathlib import Path

from audiovq import api, checkpoint


def main(run: Path, target: Path) -> None:
    loaded = [checkpoint.load_prior(folder) for folder in api.prior_folders(run)]
    tokenizer = checkpoint.load_tokenizer(run / "tokenizer")
    api.save_models(target, tokenizer, [prior for prior, _ in loaded], [pick for _, pick in loaded], half=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
