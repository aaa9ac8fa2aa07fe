"""What each default of the tokenizer was chosen for: one thing changed at a time, all else equal.

    python benchmarks/ablations.py train --data MUSIC --test TEST_MUSIC --work WORK [--minutes 6]
    python benchmarks/ablations.py table --work WORK

As `tokenizer_peers.py`: same music, same losses, same CPU-seconds on one thread, the best of its learning rates.
"""

from __future__ import annotations

from candidates import BASE, CANDIDATES, LOSSES, WAVEFORM_FIRST, WITH_PHASE, Candidate, Ours
from tokenizer_peers import main

from audiovq.tokenizer.losses import LossConfig

CONV_FRONT = {"front": {"kind": "conv", "base_dim": 32, "max_stride": 8, "n_blocks": 1}, "n_blocks": 3}
EMA, ISTFT = BASE["quantizer"], BASE["decoder"]
SHORT = BASE | {"quantize_after": 100}  # as fits into minutes
PHASE = WAVEFORM_FIRST.model_copy(update={"waveform_first": 200})

CHANGES: dict[str, dict] = {
    "default": {},
    "a codebook a level": {"shared_codebook": False},
    "independent levels, hops 1024/512/256": {"topology": "independent", "hop_lengths": [1024, 512, 256]},
    "not decorrelated": {"decorrelate": False},
    "rotation gradient": {"quantizer": {**EMA, "gradient": "rotation"}},
    "gumbel": {"quantizer": {"kind": "gumbel", "codebook_size": 512, "codebook_dim": 8, "temperature_steps": 300}},
    "fsq": {"quantizer": {"kind": "fsq", "levels": [8, 8, 8]}},
    "istft decoder, complex": {"decoder": {**ISTFT, "spectrum": "complex"}},
    "conv decoder": {"decoder": {"kind": "conv", "base_dim": 48, "n_stride_blocks": 1, "n_blocks": 3}},
    "conv front": {"encoder": CONV_FRONT},
    "no revival": {"quantizer": {**EMA, "revival_fraction": 0.0}},
}


def changed(losses: LossConfig, config: dict) -> Candidate:
    candidate = Ours(losses, **config)
    candidate.learning_rates = (5e-4, 1e-3)  # between which the best was found for all of ours
    return candidate


if __name__ == "__main__":
    CANDIDATES.clear()
    CANDIDATES.update({name: lambda change=change: changed(LOSSES, SHORT | change) for name, change in CHANGES.items()})
    CANDIDATES["with phase"] = lambda: changed(PHASE, SHORT | WITH_PHASE | {"quantize_after": 250})
    main()
