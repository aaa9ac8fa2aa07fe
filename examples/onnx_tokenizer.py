"""Music -> codes -> music with onnxruntime, without torch and audiovq.

    audiovq export runs/quickstart shared --onnx
    pip install onnxruntime soundfile
    python examples/onnx_tokenizer.py shared/onnx music.wav again.wav

The metadata of the files have all facts about the model. `pieces` in them explains how to encode a recording that does not fit
into memory in chunks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]  # of the extra "onnx"
import soundfile


class OnnxTokenizer:
    def __init__(self, folder: Path):
        self.encoder = onnxruntime.InferenceSession(str(folder / "encode.onnx"))
        self.decoder = onnxruntime.InferenceSession(str(folder / "decode.onnx"))
        self.rules = json.loads(self.encoder.get_modelmeta().custom_metadata_map["audiovq"])
        self.hops = self.rules["hop_lengths"]

    def encode(self, waveform: np.ndarray) -> list[np.ndarray]:
        """float32 [channels, samples] at the model's sample rate -> int64 [ceil(samples / hop)] per level."""
        n_samples = waveform.shape[1]
        padded = np.pad(waveform, ((0, 0), (0, -n_samples % self.rules["samples_multiple"])))
        levels: Any = self.encoder.run(None, {"waveform": padded[None].astype(np.float32)})
        return [level[0, : -(-n_samples // hop)] for level, hop in zip(levels, self.hops, strict=True)]

    def decode(self, levels: list[np.ndarray], n_samples: int) -> np.ndarray:
        """Codes of all levels, or only of the first ones -> float32 [channels, n_samples]."""
        multiple = self.rules["samples_multiple"]
        inputs = {}
        for i, hop in enumerate(self.hops):
            codes = np.full((1, -(-n_samples // multiple) * multiple // hop), -1, dtype=np.int64)
            if i < len(levels):
                codes[0, : len(levels[i])] = levels[i]
            inputs[f"codes_{i}"] = codes
        waveform: Any = self.decoder.run(None, inputs)[0]
        return waveform[0, :, :n_samples]


def main(folder: str, source: str, target: str) -> None:
    tokenizer = OnnxTokenizer(Path(folder))
    audio, rate = soundfile.read(source, dtype="float32", always_2d=True)
    if rate != tokenizer.rules["sample_rate"]:
        raise SystemExit(f"{source}: expected {tokenizer.rules['sample_rate']} Hz, found {rate}; resample it first")
    mono = tokenizer.rules["channels"] == 1
    waveform = audio.mean(axis=1, keepdims=True).T if mono else audio[:, :2].T
    levels = tokenizer.encode(waveform)
    print("codes per level:", [len(level) for level in levels])
    soundfile.write(target, tokenizer.decode(levels, waveform.shape[1]).T, rate)


if __name__ == "__main__":
    main(*sys.argv[1:])
