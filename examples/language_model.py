"""A language model of music with the library transformers: audiovq's codes are its tokens.

    pip install -e '.[peers]'
    audiovq train recipes/finetune.yaml --data DIR
    python examples/language_model.py runs/finetune music.wav --steps 20

All levels become one sequence of frames (`Codes.flatten`): a frame has one code of level 0 and the codes of the finer levels in
its time, coarse to fine; code c of level i has the id `i * codebook_size + c`. A few steps only make noise: the example shows
how the parts fit together. audiovq's own priors generate music.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, Trainer, TrainingArguments

from audiovq import CodeDataset, Tokenizer
from audiovq.data.audio_writer import write_audio
from audiovq.data.flattening import Flattening


def train(data: CodeDataset, steps: int, folder: Path) -> Any:
    """Train a small Llama model of the codes; returns the `Trainer`."""
    ids = data.flattening
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=ids.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, bos_token_id=ids.bos_token_id, eos_token_id=None, pad_token_id=ids.pad_token_id,
    ))  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=max(1, steps // 2),
        report_to=[], save_strategy="no", use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    return trainer


class OnlyItsPlace(LogitsProcessor):
    """Allows at each place only the ids of its level, and in the bundled tokenizer of its slot: four codes in a row take
    turns, each with a quarter of the codebook."""

    def __init__(self, ids: Flattening, slots: int):
        self.first, self.size, self.slots = ids.offsets.tolist(), ids.codebook_size // slots, slots

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        frame, place = divmod(input_ids.shape[1] - 1, len(self.first))
        first = self.first[place] + frame % self.slots * self.size
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, first : first + self.size] = scores[:, first : first + self.size]
        return allowed


def generate(tokenizer: Tokenizer, model: Any, n_frames: int, seed: int = 0) -> Tensor:
    """Generate ids with transformers' `generate`; returns the waveform [channels, samples]."""
    torch.manual_seed(seed)
    ids = tokenizer.flattening()
    start = torch.tensor([[ids.bos_token_id]], device=model.device)
    made = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, max_new_tokens=n_frames * len(ids.levels),
        logits_processor=LogitsProcessorList([OnlyItsPlace(ids, tokenizer.config.slots)]),
    )  # fmt: skip
    return tokenizer.decode(ids.unflatten(made[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    tokenizer, data = Tokenizer.from_pretrained(options.run), CodeDataset(options.run, n_frames=16, special=True)
    trainer = train(data, options.steps, options.out.parent)
    print("loss:", [round(line["loss"], 3) for line in trainer.state.log_history if "loss" in line])
    write_audio(options.out, generate(tokenizer, trainer.model.eval(), n_frames=32), tokenizer.sample_rate)


if __name__ == "__main__":
    main()
