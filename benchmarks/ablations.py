"""Ablations of the tokenizer's defaults: one change at a time, everything else equal.

    python benchmarks/ablations.py train --data MUSIC --test TEST_MUSIC --work WORK [--minutes 2.5]
    python benchmarks/ablations.py table --work WORK    # every run
    python benchmarks/ablations.py means --work WORK    # every change, its runs together

The seed alone moves a short run as much as most changes do, so each change is trained with three seeds: "gumbel",
"gumbel, seed 1" and "gumbel, seed 2" differ in their initial weights and their crops of the music. As in
`tokenizer_peers.py`, all have the same music, the same CPU-seconds on one thread, and the best of their learning
rates. The default is that of the bundled model and of recipes/music.yaml, at 24 kHz. Because defaults are chosen on
TEST_MUSIC, models are finally evaluated on other music.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

import click
from candidates import BASE, CANDIDATES, LOSSES, WAVEFORM_FIRST, WITH_PHASE, Candidate, Ours
from tokenizer_peers import main

from audiovq.config import read_json
from audiovq.tokenizer.losses import LossConfig

LOGARITHMS = LossConfig(
    mel=5, mel_windows=(512, 2048), stft=10, stft_windows=(1024, 4096), waveform_l1=0, commitment=0.1, kl=0.01
)
DEFAULT = BASE | {"vq_start_step": 100}
STFT_FRONT = {"front": {"kind": "stft", "overlap": 8}, "n_blocks": 3}
EMA, ISTFT = BASE["quantizer"], BASE["decoder"]
CONV_FRONT = {"front": {"kind": "conv", "base_dim": 32, "max_stride": 8, "n_blocks": 1}, "n_blocks": 3}
PHASE = WAVEFORM_FIRST.model_copy(update={"waveform_warmup_steps": 200})

CHANGES: dict[str, dict] = {  # of `DEFAULT`; `losses` of `LOSSES`
    "default": {},
    "a codebook a level": {"shared_codebook": False},
    "independent levels, hops 1024/512/256": {"topology": "independent", "hop_lengths": [1024, 512, 256]},
    "not decorrelated": {"whiten_latents": False},
    "gumbel": {"quantizer": {"kind": "gumbel", "codebook_size": 512, "codebook_dim": 8, "temperature_steps": 300}},
    "fsq": {"quantizer": {"kind": "fsq", "levels": [8, 8, 8]}},
    "rotation gradient": {"quantizer": {**EMA, "gradient": "rotation"}},
    "no revival": {"quantizer": {**EMA, "revival_fraction": 0.0}},
    "conv decoder": {"decoder": {"kind": "conv", "base_dim": 48, "n_stride_blocks": 1, "n_blocks": 3}},
    "istft decoder, complex": {"decoder": {**ISTFT, "spectrum": "complex"}},
    "stft front": {"encoder": STFT_FRONT},
    "conv front": {"encoder": CONV_FRONT},
    "loss: log spectra, no convergence": {"losses": LOGARITHMS},
    "loss: convergence of plain magnitudes": {"losses": LOSSES.model_copy(update={"compression": 1.0})},
    "with phase": {"losses": PHASE, **WITH_PHASE, "vq_start_step": 250},
}


N_SEEDS = 3


def run_name(change: str, seed: int) -> str:
    return f"{change}, seed {seed}" if seed else change


def changed(change: dict, seed: int) -> Candidate:
    candidate = Ours(**{"losses": LOSSES, **DEFAULT, **change})
    candidate.seed = seed
    candidate.learning_rates = (5e-4, 1e-3)  # between which the best was found for all of ours
    return candidate


@main.command()
@click.option("--work", type=Path, required=True)
def means(work: Path) -> None:
    """Print means over the seeds of each change, ± their standard deviation.

    The mel distance is also given relative to the default with the same seed.
    """
    runs = {facts["name"]: facts for facts in map(read_json, sorted(work.glob("*/facts.json"))) if "prefixes" in facts}
    print(
        "| changed | runs | steps | mel (prefixes) | relative to the default | SI-SDR, dB | level, dB | chroma | CQT |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for change in CHANGES:
        seeds = [seed for seed in range(N_SEEDS) if run_name(change, seed) in runs]
        if seeds:
            print(row(change, seeds, runs))


def row(change: str, seeds: list[int], runs: dict[str, dict]) -> str:
    mine = [runs[run_name(change, seed)]["prefixes"] for seed in seeds]
    prefixes = " / ".join(f"{fmean(levels[k]['mel_distance'] for levels in mine):.3f}" for k in range(len(mine[0])))
    mel, chroma, cqt, level, si_sdr = (
        [levels[-1][name] for levels in mine]
        for name in ("mel_distance", "chroma_distance", "cqt_distance", "level_db", "si_sdr_db")
    )
    paired = [
        found - runs[run_name("default", seed)]["prefixes"][-1]["mel_distance"]
        for found, seed in zip(mel, seeds, strict=True)
        if run_name("default", seed) in runs
    ]
    steps = fmean(runs[run_name(change, seed)]["steps"] for seed in seeds)
    return (
        f"| {change} | {len(seeds)} | {steps:.0f} | {prefixes} {deviation(mel, 3)} | {' '.join(f'{d:+.3f}' for d in paired)} "
        f"| {fmean(si_sdr):.1f} | {fmean(level):.1f} {deviation(level, 1)} | {fmean(chroma):.3f} {deviation(chroma, 3)} "
        f"| {fmean(cqt):.3f} {deviation(cqt, 3)} |"
    )


def deviation(values: list[float], digits: int) -> str:
    return f"± {stdev(values):.{digits}f}" if len(values) > 1 else ""


if __name__ == "__main__":
    CANDIDATES.clear()
    CANDIDATES.update({
        run_name(name, seed): lambda change=change, seed=seed: changed(change, seed)
        for name, change in CHANGES.items()
        for seed in range(N_SEEDS)
    })  # fmt: skip
    main()
