"""Seconds that commands take, start-up included: median of five, and the real-time factors of encode and decode.

python benchmarks/startup.py [MODEL]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from audiovq import Generator, Tokenizer, api
from audiovq.data.audio import read_audio
from audiovq.data.resampling import resample

ROOT = Path(__file__).parent.parent


def command_seconds(*command: str, n: int = 5) -> float:
    times = []
    for _ in range(n):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "audiovq", *command], check=True, capture_output=True, cwd=ROOT)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def best_of(function: object, n: int = 3) -> float:
    times = []
    for _ in range(n):
        began = time.perf_counter()
        function()  # type: ignore[operator]
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else str(api.bundled_model())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, model {model}")
    print(f"audiovq --help                 {command_seconds('--help'):6.2f} s")
    twenty = command_seconds(
        "sample", "--model", model, "--seconds", "20", "--seed", "0", "--out", "/tmp/startup.wav", n=3
    )
    print(f"audiovq sample --seconds 20    {twenty:6.2f} s, start-up included")
    generator = Generator.from_pretrained(model)
    n_codes = sum(map(len, generator.sample_codes(20, seed=0)[0].levels))
    seconds = best_of(lambda: generator.sample_codes(20, seed=0), n=2)
    print(f"sampling 20 s, one piece       {seconds:6.2f} s, {n_codes / seconds:.0f} codes a second")
    waveform, rate = read_audio(next((ROOT / "samples").rglob("*.opus")))
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_pretrained(model)
    waveform = waveform.mean(dim=0, keepdim=True)
    from_rate = resample(waveform, rate, tokenizer.sample_rate)
    length = from_rate.shape[1] / tokenizer.sample_rate
    codes = tokenizer.encode(from_rate, tokenizer.sample_rate)
    encode = length / best_of(lambda: tokenizer.encode(from_rate, tokenizer.sample_rate))
    decode = length / best_of(lambda: tokenizer.decode(codes))
    print(f"encode, decode on one thread   {encode:.0f} × and {decode:.0f} × real time ({length:.0f} s of music)")


if __name__ == "__main__":
    main()
