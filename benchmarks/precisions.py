"""What a precision costs in quality: bits a code that each gives real music, step by step, and how many draws it changes.

python benchmarks/precisions.py [MODEL] [--codes 256]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch.nn import functional as F

from audiovq import Generator, api
from audiovq.data.audio import read_audio
from audiovq.prior.conditioners import Conditions
from audiovq.prior.prior import Prior
from audiovq.sampling.decode_state import coarser_at_rate_above
from audiovq.sampling.engine import new_engine, precisions
from audiovq.sampling.next_code import gumbel_noise

TRACK = next((Path(__file__).parent.parent / "samples").rglob("*.opus"))


@torch.inference_mode()
def stepped_logits(prior: Prior, levels: list[torch.Tensor], n: int, n_samples: int, precision: str) -> torch.Tensor:
    """[n, codebook_size], teacher-forced."""
    level, outside = prior.spec.level, prior.spec.codebook_size
    codes = F.pad(levels[level][None, :n], (1, 0), value=outside)
    around = coarser_at_rate_above(prior, [row[None] for row in levels[:level]], 1, n)
    labels = {name: torch.zeros(1, dtype=torch.int64) for name in prior.spec.vocabularies}
    conditions = Conditions(labels, torch.tensor([n_samples]), torch.tensor([0]))
    context = prior.context(around, conditions, n).expand(1, -1, -1)
    engine = new_engine(prior, 1, precision)
    return torch.cat([engine.step(codes[:, t], context[:, t]).clone() for t in range(n)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(api.bundled_model()))
    parser.add_argument("--codes", type=int, default=256)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = Generator.from_pretrained(given.model)
    codes = generator.tokenizer.encode(*read_audio(TRACK))
    print(f"{given.model} on {TRACK.name}, the first {given.codes} codes of each level")
    print("level  precision  bits a code  difference  deviation of a logit  draws changed")
    for prior in generator.priors:
        n = min(given.codes, len(codes.levels[prior.spec.level]))
        target = codes.levels[prior.spec.level][:n]
        noise = gumbel_noise(0, 0, prior.spec.level, 0, n, prior.spec.codebook_size)
        exact = stepped_logits(prior, codes.levels, n, codes.n_samples, "fp32")
        for precision in precisions(prior.head.weight.device):
            logits = stepped_logits(prior, codes.levels, n, codes.n_samples, precision)
            bits, base = (float(F.cross_entropy(x, target)) / math.log(2) for x in (logits, exact))
            changed = float(((logits + noise).argmax(-1) != (exact + noise).argmax(-1)).float().mean())
            print(
                f"{prior.spec.level:5}  {precision:9}  {bits:11.4f}  {bits - base:+10.5f}  {float((logits - exact).std()):20.5f}  {changed:13.4f}"
            )


if __name__ == "__main__":
    main()
