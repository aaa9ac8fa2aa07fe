"""Opus at its lowest rates and tokenizers, on the same music and with the same metrics.

    python benchmarks/opus.py samples --seconds 10                        # the bundled model
    python benchmarks/opus.py DIR --model default runs/mine --kbps 6 12 24 --notes

With --notes, a transcription judges which notes survive (extra `audiovq[notes]`).

For a fair comparison, all get the same excerpt (the middle of each track) at the tokenizers' sample rate and
channels, and their output is compared at that rate. Opus works at 48 kHz, so the excerpt is resampled for it and
back. libopus runs in ffmpeg with constrained variable rate, 60 ms packets and its highest effort; its kbps are
those of its packets, without container and headers. ffmpeg removes the encoder's delay; a rest of up to 20 ms is
found by cross-correlation and removed, which can only help Opus. A tokenizer's kbps are raw: every code has the
bits of a choice among all codes.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import soundfile
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from audiovq import Tokenizer
from audiovq.data import audio
from audiovq.data.resampling import resample
from audiovq.data.tracks import find_audio
from audiovq.evaluation.metrics import METRICS, Metric, compare
from audiovq.evaluation.notes import NOTE_METRICS
from audiovq.evaluation.tables import cell, mean_estimate
from audiovq.utils.progress import track as progress

OPUS_RATE = 48000
LAG_SECONDS = 0.02


def opus(waveform: Tensor, sample_rate: int, kbps: float) -> tuple[Tensor, float]:
    """Encode and decode with Opus: float [channels, samples] of the same length, and the kbps of its packets."""
    with tempfile.TemporaryDirectory() as folder:
        source, coded, decoded = (Path(folder) / name for name in ("source.wav", "coded.opus", "decoded.wav"))
        soundfile.write(source, resample(waveform, sample_rate, OPUS_RATE).T.numpy(), OPUS_RATE, subtype="FLOAT")
        _run("ffmpeg", "-v", "error", "-i", str(source), "-c:a", "libopus", "-b:a", f"{kbps}k", "-vbr", "constrained",
             "-frame_duration", "60", "-compression_level", "10", str(coded))  # fmt: skip
        _run("ffmpeg", "-v", "error", "-i", str(coded), "-ar", str(OPUS_RATE), "-c:a", "pcm_f32le", str(decoded))
        sizes = _run("ffprobe", "-v", "error", "-show_entries", "packet=size", "-of", "csv=p=0", str(coded))
        result, _ = audio.read_audio(decoded, sample_rate)
    n_bytes = sum(int(line.strip(",")) for line in sizes.split())
    seconds = waveform.shape[-1] / sample_rate
    return align(result, waveform, round(LAG_SECONDS * sample_rate)), n_bytes * 8 / seconds / 1000


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def align(waveform: Tensor, reference: Tensor, largest_lag: int) -> Tensor:
    """Shift a waveform to where it correlates best with the reference, and cut it to the same length."""
    n = reference.shape[-1]
    waveform = torch.nn.functional.pad(waveform[:, :n], (0, max(0, n - waveform.shape[-1])))
    spectrum = torch.fft.rfft(waveform, 2 * n) * torch.fft.rfft(reference, 2 * n).conj()
    correlation = torch.fft.irfft(spectrum.sum(dim=0))  # [lag]; negative lags at the end
    lags = torch.cat([torch.arange(largest_lag + 1), torch.arange(-largest_lag, 0)])
    lag = int(lags[correlation[lags].argmax()])
    return torch.nn.functional.pad(waveform, (-lag, lag))  # negative: cut there


def excerpts(folder: Path, tokenizer: Tokenizer, seconds: float) -> list[Tensor]:
    found = []
    for path in progress(find_audio(folder), "read", len(find_audio(folder))):
        info = audio.audio_info(path)
        n = min(info.samples, round(seconds * info.sample_rate))
        waveform, _ = audio.read_audio(
            path, tokenizer.sample_rate, tokenizer.config.channels, (info.samples - n) // 2, n
        )
        found.append(waveform)
    return found


def judge(
    music: list[Tensor], tokenizers: dict[str, Tokenizer], rates: list[float], metrics: Mapping[str, Metric]
) -> dict[str, list[dict[str, float]]]:
    """Metrics and kbps of each track, for each coder."""
    sample_rate = next(iter(tokenizers.values())).sample_rate
    rows: dict[str, list[dict[str, float]]] = {}
    for source in progress(music, "judge", len(music)):
        coded = {}
        for model, tokenizer in tokenizers.items():
            codes, c = tokenizer.encode(source, sample_rate), tokenizer.config
            for k in range(1, c.n_levels + 1):
                kbps = sum(c.code_rates[:k]) * c.bits_per_code / 1000
                coded[f"{model}, {k} of {c.n_levels} levels"] = tokenizer.decode(codes, k), kbps
        coded |= {f"Opus at {kbps:g} kbps": opus(source, sample_rate, kbps) for kbps in rates}
        for name, (waveform, kbps) in coded.items():
            rows.setdefault(name, []).append({"kbps": kbps, **compare(waveform, source, sample_rate, metrics)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", nargs="+", default=["default"], help="tokenizers of one sample rate")
    parser.add_argument("--kbps", type=float, nargs="*", default=[6, 8, 12, 16, 24])
    parser.add_argument("--notes", action="store_true", help="compare transcriptions, too")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each track, from its middle")
    arguments = parser.parse_args()
    tokenizers = {model: Tokenizer.from_pretrained(model) for model in arguments.model}
    tokenizer, *others = tokenizers.values()
    if any(other.sample_rate != tokenizer.sample_rate for other in others):
        parser.error(f"--model: expected one sample rate, found {sorted({t.sample_rate for t in tokenizers.values()})}")
    music = excerpts(arguments.data, tokenizer, arguments.seconds)
    rows = judge(music, tokenizers, arguments.kbps, NOTE_METRICS if arguments.notes else METRICS)
    names = list(next(iter(rows.values()))[0])
    table = Table("", *(name.replace("_", " ") for name in names))
    table.title = f"{len(music)} excerpts at {tokenizer.sample_rate} Hz, mean ± 95 % confidence"
    for coder, group in rows.items():
        table.add_row(coder, *(cell(mean_estimate([row[name] for row in group])) for name in names))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
