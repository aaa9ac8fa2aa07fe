"""A language model of music with the library transformers: audiovq's codes are its tokens.

    pip install -e '.[peers]'
    python examples/language_model.py samples/chorales codes.wav --steps 20

`CodeTokenizer` works like a tokenizer of text: called with waveforms it returns `input_ids` for `Trainer`, and `decode` turns
ids back into a waveform. All levels become one sequence of frames. A frame has one code of level 0 and the codes of the finer
levels in its time, coarse to fine; code c of level i has the id `i * codebook_size + c`. A few steps only make noise: the
example shows how the parts fit together. audiovq's own priors generate music.
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
    """Waveforms -> `input_ids` and back, for any model of transformers."""

    def __init__(self, tokenizer: Tokenizer):
        c = tokenizer.config
        self.tokenizer, self.n_levels, self.codebook_size = tokenizer, c.n_levels, c.codebook_size
        self.bos_token_id = self.pad_token_id = c.n_levels * c.codebook_size
        self.vocab_size = self.pad_token_id + 1
        self.counts = [c.hop_lengths[0] // hop for hop in c.hop_lengths]  # codes of each level in a frame
        self.levels = torch.cat(
            [torch.full((n,), i) for i, n in enumerate(self.counts)]
        )  # level of each place in a frame

    @property
    def frame(self) -> int:
        """Number of ids in a frame."""
        return len(self.levels)

    def __call__(self, waveforms: list[Tensor], sampling_rate: int, max_length: int | None = None) -> dict[str, Tensor]:
        """Encode, flatten and pad the waveforms: int64 [n, length], and the attention mask."""
        rows = [self.flatten(self.tokenizer.encode(waveform, sampling_rate))[:max_length] for waveform in waveforms]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}

    def flatten(self, codes: Codes) -> Tensor:
        """Codes -> int64 [1 + n_frames · frame], without a last frame that is not full."""
        n = min(len(level) // count for level, count in zip(codes.levels, self.counts, strict=True))
        parts = [
            level[: n * count].reshape(n, count) + i * self.codebook_size
            for i, (level, count) in enumerate(zip(codes.levels, self.counts, strict=True))
        ]
        return torch.cat([torch.tensor([self.bos_token_id]), torch.cat(parts, dim=1).flatten()])

    def decode(self, ids: Tensor) -> Tensor:
        """int64 [1 + n_frames · frame] -> float [channels, samples] at the tokenizer's sample rate."""
        c = self.tokenizer.config
        n_frames = (len(ids) - 1) // self.frame
        frames = ids[1 : 1 + n_frames * self.frame].reshape(n_frames, self.frame) - self.levels * self.codebook_size
        levels = [frames[:, self.levels == i].flatten() for i in range(self.n_levels)]
        n_samples, hops = n_frames * c.hop_lengths[0], list(c.hop_lengths)
        codes = Codes(levels, n_samples, c.sample_rate, hops, c.codebook_size, c.channels, self.tokenizer.hash)
        return self.tokenizer.decode(codes)

    def only_its_level(self) -> LogitsProcessorList:
        """For `generate`: allows at each place only the ids of its level."""
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
    """Sequences of whole frames of the encoded tracks, each after a bos token."""

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
    """Train a small Llama model of the codes; returns the `Trainer`."""
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
    """Generate ids with transformers' `generate`; returns the waveform [channels, samples]."""
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
