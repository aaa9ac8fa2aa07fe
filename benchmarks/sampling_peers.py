"""Codes a second of a prior against transformers: `generate` of a Llama and of MusicGen's decoder of the same size.

Random weights of the same width, depth, heads, vocabulary and MLP; the same number of codes from an empty beginning,
drawn at temperature 1 from all codes. One thread, processor time of this process, all in turns within one run, and the
medians of the turns (of the multiples, too): other work on the machine slows all of them alike. MusicGen's decoder has one codebook here, no text to
attend to, and an MLP of two matrices as large as the three of the others. Needs `pip install -e '.[peers]'`.

python benchmarks/sampling_peers.py [--turns 5] [--codes 128] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from audiovq.prior.prior import Prior, PriorConfig, PriorSpec
from audiovq.prior.transformer import TransformerConfig
from audiovq.sampling.engine import new_engine, precisions
from audiovq.sampling.next_code import gumbel_noise, next_code

SIZES = [(192, 4, 4), (256, 8, 4), (512, 8, 8), (512, 11, 8)]  # dim, layers, heads; the first is the bundled model's
VOCABULARY = 1024


def make_prior(dim: int, n_layers: int, n_heads: int, window: int) -> Prior:
    transformer = TransformerConfig(dim=dim, n_layers=n_layers, n_heads=n_heads, context=window)
    prior = Prior(PriorConfig(transformer=transformer), PriorSpec(0, [256], 16000, VOCABULARY, "f" * 64, {}))
    return prior.eval().requires_grad_(False)


def make_llama(prior: Prior) -> transformers.LlamaForCausalLM:
    c = prior.config.transformer
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=c.dim, intermediate_size=c.hidden, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, max_position_embeddings=2 * c.context,
        )
    ).eval()  # fmt: skip


def make_musicgen(prior: Prior) -> transformers.MusicgenForCausalLM:
    c = prior.config.transformer
    return transformers.MusicgenForCausalLM(
        transformers.MusicgenDecoderConfig(
            vocab_size=VOCABULARY, hidden_size=c.dim, ffn_dim=3 * c.hidden // 2, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_codebooks=1, max_position_embeddings=2 * c.context, pad_token_id=VOCABULARY,
        )
    ).eval()  # fmt: skip


def ours(prior: Prior, batch: int, n: int, precision: str) -> Callable[[], None]:
    """The loop of sampling/generate.py: noise, steps and draws."""
    context = torch.zeros(batch, prior.config.transformer.dim)

    def run() -> None:
        noise = torch.stack([gumbel_noise(0, i, 0, 0, n, VOCABULARY) for i in range(batch)])
        engine = new_engine(prior, batch, precision)
        codes = torch.full((batch,), VOCABULARY)
        for t in range(n):
            codes = next_code(engine.step(codes, context), noise[:, t], 1.0)

    return run


def plain(prior: Prior, batch: int, n: int) -> Callable[[], None]:
    """The prior's own forward with its cache, as training code would call it."""

    def run() -> None:
        noise = torch.stack([gumbel_noise(0, i, 0, 0, n, VOCABULARY) for i in range(batch)])
        cache, codes = prior.transformer.new_cache(batch), torch.full((batch,), VOCABULARY)
        context = torch.zeros(batch, 1, prior.config.transformer.dim)
        for t in range(n):
            codes = next_code(prior(codes[:, None], context, cache)[:, 0], noise[:, t], 1.0)

    return run


def theirs(
    model: transformers.LlamaForCausalLM | transformers.MusicgenForCausalLM, batch: int, n: int
) -> Callable[[], None]:
    ids = torch.zeros(batch, 1, dtype=torch.int64)
    model.generation_config.pad_token_id = model.config.pad_token_id or 0
    options: dict[str, object] = {"do_sample": True, "top_k": 0, "eos_token_id": None}
    if isinstance(model, transformers.MusicgenForCausalLM):
        model.generation_config.decoder_start_token_id = VOCABULARY
        model.generation_config.num_return_sequences = 1
    return lambda: model.generate(ids, max_new_tokens=n, min_new_tokens=n, **options)  # type: ignore[operator,return-value,arg-type]


def in_turns(runs: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Seconds of processor time, a list of turns each; one turn more comes first and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - began)
    return seconds


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--codes", type=int, default=128)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    known = precisions()
    print(f"default precision {known[-1]}; ", end="")
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    )
    names = ["llama", "musicgen", "plain", *known]
    print("steps a second (× the Llama's)".ljust(34) + "".join(name.rjust(15) for name in names))
    rows = []
    for size in SIZES:
        prior = make_prior(*size, window=max(2 * given.codes, 256))
        millions = sum(p.numel() for p in prior.parameters()) / 1e6
        llama, musicgen = make_llama(prior), make_musicgen(prior)
        for batch in (1, 8):
            runs = {
                name: theirs(model, batch, given.codes) for name, model in (("llama", llama), ("musicgen", musicgen))
            }
            runs["plain"] = plain(prior, batch, given.codes)
            runs |= {name: ours(prior, batch, given.codes, name) for name in known}
            seconds = in_turns(runs, given.turns)
            speed = {name: given.codes / statistics.median(times) for name, times in seconds.items()}
            ratio = {
                name: statistics.median(a / b for a, b in zip(seconds["llama"], times, strict=True))
                for name, times in seconds.items()
            }
            cells = (f"{speed[name]:.0f} ({ratio[name]:.1f}×)".rjust(15) for name in names)
            label = f"{size[0]} × {size[1]}, {millions:.1f} M, batch {batch}"
            print(label.ljust(34) + "".join(cells), flush=True)
            rows.append(
                {
                    "dim": size[0],
                    "layers": size[1],
                    "millions": millions,
                    "batch": batch,
                    "steps_per_second": speed,
                    "ratio": ratio,
                }
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
