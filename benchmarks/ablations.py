"""What each default of the tokenizer was chosen for: one thing changed at a time, all else equal.

    python benchmarks/ablations.py train --data MUSIC --test TEST_MUSIC --work WORK [--minutes 6]
    python benchmarks/ablations.py table --work WORK

As `tokenizer_peers.py`: same music, same losses, same CPU-seconds on one thread, the better of three learning rates.
"""

from __future__ import annotations

from candidates import BASE, CANDIDATES, Ours
from tokenizer_peers import main

CONV_FRONT = {"front": {"kind": "conv", "base_dim": 32, "max_stride": 8, "n_blocks": 1}, "n_blocks": 3}
EMA = BASE["quantizer"]

CHANGES: dict[str, dict] = {
    "default": {},
    "a codebook a level": {"shared_codebook": False},
    "independent levels": {"topology": "independent"},
    "rotation gradient": {"quantizer": {**EMA, "gradient": "rotation"}},
    "gumbel": {"quantizer": {"kind": "gumbel", "codebook_size": 512, "codebook_dim": 16, "temperature_steps": 300}},
    "fsq": {"quantizer": {"kind": "fsq", "levels": [8, 8, 8]}},
    "conv decoder": {"decoder": {"kind": "conv", "base_dim": 48, "n_stride_blocks": 1, "n_blocks": 3}},
    "conv front": {"encoder": CONV_FRONT},
    "no revival": {"quantizer": {**EMA, "revival_fraction": 0.0}},
}

if __name__ == "__main__":
    CANDIDATES.clear()
    CANDIDATES.update({name: lambda change=change: Ours(**BASE | change) for name, change in CHANGES.items()})
    main()
