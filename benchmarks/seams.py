"""Is a seam of `--segments` audible? Seams against the inside, by the priors' bits and by spectral flux.

Bits: of each generated code under its own prior with all that was drawn before (no segments), the mean over the codes just
after a seam and over all others, with the same positions of a piece that was drawn sequentially. Flux: mean
difference of successive log-mel frames at the seams and elsewhere.

python benchmarks/seams.py [MODEL] [--seconds 60] [--segments 4] [--seeds 2]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from audiovq import Generator, api
from audiovq.prior.prior import Prior
from audiovq.sampling.decode_state import coarser_at_rate_above
from audiovq.sampling.generate import generate
from audiovq.sampling.guidance import GuidedPrior, piece_conditions
from audiovq.sampling.request import Request
from audiovq.sampling.segments import SegmentLayout, lay_out_segments
from audiovq.tokenizer.losses import MelSpectrogram

AFTER = 16  # codes after a seam that count as at it


@torch.inference_mode()
def bits(prior: Prior, levels: list[Tensor], request: Request) -> Tensor:
    """[n_codes] of one piece, each code given all before it in the attention window."""
    level = prior.spec.level
    codes = F.pad(levels[level], (1, 0), value=prior.spec.codebook_size)
    n = codes.shape[1] - 1
    guided = GuidedPrior(prior, piece_conditions(prior, request, 1))
    cache, parts = prior.new_cache(1), []
    guided.write_prefix(cache)
    for start in range(0, n, 256):
        end = min(start + 256, n)
        window = coarser_at_rate_above(prior, levels[:level], 1, n, start, end)
        logits = prior(codes[:, start:end], guided.context(window, start, end), cache)[0]
        parts.append(F.cross_entropy(logits, codes[0, start + 1 : end + 1], reduction="none") / math.log(2))
    return torch.cat(parts)


def at_seams(n: int, seams: list[int], before: int, after: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    for seam in seams:
        mask[max(seam - before, 0) : seam + after] = True
    return mask


def flux(waveform: Tensor, sample_rate: int) -> Tensor:
    """[frames - 1]; frame i begins at sample i · 256."""
    mel = MelSpectrogram(sample_rate, 1024)(waveform).clamp(min=1e-5).log10().flatten(0, -2)
    return mel.diff(dim=-1).abs().mean(dim=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(api.bundled_model()))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = Generator.from_pretrained(given.model)
    n_samples = round(given.seconds * generator.sample_rate)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(given.seeds):
        pieces = {}
        for name, n_segments in (("sequential", 1), ("segments", given.segments)):
            request = Request(n_samples, [0], seed, {}, segments=n_segments)
            began = time.process_time()
            pieces[name] = generate(generator.priors, generator.sampling, request)
            found.setdefault(("seconds to draw", name), []).append(time.process_time() - began)
        for name, levels in pieces.items():
            compare(generator, levels, name, Request(n_samples, [0], seed, {}), given.segments, found)
    print(f"{given.model}, {given.seconds:g} s, {given.segments} segments, {given.seeds} seeds: means")
    for key in dict.fromkeys(key for key, _ in found):
        row = "  ".join(f"{name} {statistics.mean(values):8.4f}" for (k, name), values in found.items() if k == key)
        print(f"{key:42}  {row}")


def compare(
    generator: Generator,
    levels: list[Tensor],
    name: str,
    request: Request,
    n_segments: int,
    found: dict[tuple[str, str], list[float]],
) -> None:
    waveform = generator.tokenizer.decode(generator.tokenizer.make_codes([x[0] for x in levels], request.n_samples))
    change = flux(waveform, generator.sample_rate)
    for prior in generator.priors[1:]:
        level, hop = prior.spec.level, prior.spec.hop_lengths[prior.spec.level]
        plan: SegmentLayout = lay_out_segments(
            levels[level].shape[1], n_segments, prior.config.transformer.window, prior.spec.ratio
        )
        seams = [start + plan.overlap for start in plan.starts[1:]]
        here = at_seams(plan.n_codes, seams, 0, AFTER)
        cost = bits(prior, levels, request)
        frames = at_seams(len(change), [seam * hop // 256 for seam in seams], 4, 4)
        for key, value in {
            f"level {level}: bits a code, seams ({len(seams)} × {AFTER})": cost[here],
            f"level {level}: bits a code, elsewhere": cost[~here],
            f"level {level}: flux, 8 frames at a seam": change[frames],
            f"level {level}: flux, elsewhere": change[~frames],
        }.items():
            found.setdefault((key, name), []).append(float(value.mean()))


if __name__ == "__main__":
    main()
