"""A language model of music by transformers: audiovq's codes are its tokens.

    pip install 'audiovq[peers]'
    python examples/language_model.py samples/chorales codes.wav --steps 20

`CodeTokenizer` is to audio what a transformers tokenizer is to text: called with waveforms it returns `input_ids`, ready for
`Trainer`; `decode` turns ids back into a waveform. All levels become one sequence: for each top code, its own, then those of
the finer levels in its time, coarse to fine; level i's code c is the id `first[i] + c`. A few steps make noise: it shows how
the parts fit, and audiovq's own priors are made for this job.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, Trainer, TrainingArguments

from audiovq import Codes, Tokenizer
from audiovq.data import audio
from audiovq.data.audio_writer import write_audio
from audiovq.data.tracks import find_audio


class CodeTokenizer:
    """Waveforms -> `input_ids` and back, for any transformers model."""

    def __init__(self, tokenizer: Tokenizer):
        c = tokenizer.config
        self.tokenizer, self.n_levels, self.codebook_size = tokenizer, c.n_levels, c.codebook_size
        self.bos_token_id = self.pad_token_id = c.n_levels * c.codebook_size
        self.vocab_size = self.pad_token_id + 1
        self.counts = [c.hop_lengths[0] // hop for hop in c.hop_lengths]  # codes of each level in a top code's time
        self.levels = torch.cat([torch.full((n,), i) for i, n in enumerate(self.counts)])  # of each place in a frame

    @property
    def frame(self) -> int:
        """Ids for one top code."""
        return len(self.levels)

    def __call__(self, waveforms: list[Tensor], sampling_rate: int, max_length: int | None = None) -> dict[str, Tensor]:
        """Encode, put the levels into one sequence each, and pad: int64 [n, length] with its attention mask."""
        rows = [self.flatten(self.tokenizer.encode(waveform, sampling_rate))[:max_length] for waveform in waveforms]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}

    def flatten(self, codes: Codes) -> Tensor:
        """int64 [1 + frames · frame]; a last frame that is not full is left out."""
        n = min(len(level) // count for level, count in zip(codes.levels, self.counts, strict=True))
        parts = [
            level[: n * count].reshape(n, count) + i * self.codebook_size
            for i, (level, count) in enumerate(zip(codes.levels, self.counts, strict=True))
        ]
        return torch.cat([torch.tensor([self.bos_token_id]), torch.cat(parts, dim=1).flatten()])

    def decode(self, ids: Tensor) -> Tensor:
        """int64 [1 + frames · frame] -> float [channels, samples] at the tokenizer's rate."""
        c = self.tokenizer.config
        frames = (
            ids[1:][: (len(ids) - 1) // self.frame * self.frame].reshape(-1, self.frame)
            - self.levels * self.codebook_size
        )
        levels = [frames[:, self.levels == i].flatten() for i in range(self.n_levels)]
        n_samples = len(frames) * c.hop_lengths[0]
        return self.tokenizer.decode(
            Codes(
                levels, n_samples, c.sample_rate, list(c.hop_lengths), c.codebook_size, c.channels, self.tokenizer.hash
            )
        )

    def only_its_level(self) -> LogitsProcessorList:
        """For `generate`: at each place only the ids of the level whose turn it is."""
        outer = self

        class OnlyItsLevel(LogitsProcessor):
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                level = int(outer.levels[(input_ids.shape[1] - 1) % outer.frame])
                allowed = torch.full_like(scores, float("-inf"))
                first = level * outer.codebook_size
                allowed[:, first : first + outer.codebook_size] = scores[:, first : first + outer.codebook_size]
                return allowed

        return LogitsProcessorList([OnlyItsLevel()])


class Windows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Stretches of whole frames of the encoded tracks, each behind a beginning."""

    def __init__(self, rows: Tensor, mask: Tensor, frame: int, n_frames: int):
        bos = rows[0, :1]
        self.windows = [
            torch.cat([bos, row[start : start + n_frames * frame]])
            for row, n in zip(rows, mask.sum(dim=1).tolist(), strict=True)
            for start in range(1, n - n_frames * frame + 1, n_frames * frame)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def train(
    codes: CodeTokenizer, waveforms: list[Tensor], rate: int, steps: int, folder: Path, n_frames: int = 16
) -> Any:
    """A small Llama over the codes; returns the `Trainer` when it is done."""
    batch = codes(waveforms, sampling_rate=rate)
    data = Windows(batch["input_ids"], batch["attention_mask"], codes.frame, n_frames)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=codes.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, bos_token_id=codes.bos_token_id, eos_token_id=None, pad_token_id=codes.pad_token_id,
    ))  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-3, logging_steps=max(1, steps // 2),
        report_to=[], save_strategy="no", use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    return trainer


def generate(codes: CodeTokenizer, model: Any, n_frames: int, seed: int = 0) -> Tensor:
    """New ids by transformers' own `generate`, as a waveform [channels, samples]."""
    torch.manual_seed(seed)
    start = torch.tensor([[codes.bos_token_id]], device=model.device)
    ids = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, max_new_tokens=n_frames * codes.frame,
        logits_processor=codes.only_its_level(),
    )  # fmt: skip
    return codes.decode(ids[0].cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("music", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="audiovq/models/default", help="a run, a folder or a hub id")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    codes = CodeTokenizer(Tokenizer.from_pretrained(options.model))
    rate = codes.tokenizer.sample_rate
    waveforms = [audio.read_audio(path, rate, codes.tokenizer.config.channels)[0] for path in find_audio(options.music)]
    trainer = train(codes, waveforms, rate, options.steps, options.out.parent)
    print("loss:", [round(line["loss"], 3) for line in trainer.state.log_history if "loss" in line])
    write_audio(options.out, generate(codes, trainer.model.eval(), n_frames=32), rate)


if __name__ == "__main__":
    main()
