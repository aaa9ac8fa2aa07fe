"""Audio that a run makes after each stage, to listen to its progress."""

from collections import Counter
from pathlib import Path

import torch

from audiovq import api
from audiovq.data import audio
from audiovq.data.audio_writer import write_audio
from audiovq.data.tracks import Scan
from audiovq.recipe import SamplesConfig
from audiovq.tokenizer.vqvae import VQVAE
from audiovq.utils.files import output_name


def reconstruct_samples(folder: Path, network: VQVAE, data: Scan, config: SamplesConfig, device: torch.device) -> None:
    """The beginning of a few held-out tracks, and their reconstructions from the first 1, 2, … levels."""
    tokenizer = api.Tokenizer(network, device)
    tracks = (data.tracks.of("valid") or data.tracks.of("train")).take(slice(config.n))
    stems = Counter(Path(track.path).stem for track in tracks)
    for i, track in enumerate(tracks):
        n, rate = int(config.seconds * track.sample_rate), tokenizer.sample_rate
        source, _ = audio.read_audio(data.folder / track.path, rate, tokenizer.config.channels, 0, n)
        codes = tokenizer.encode(source, rate)
        waveforms = {"source": source}
        waveforms |= {f"levels-{k}": tokenizer.decode(codes, k) for k in range(1, len(codes.levels) + 1)}
        name = Path(track.path).stem
        if max(stems.values()) > 1:  # two albums may have a track 01
            name = f"{i}-{name}"
        name = output_name(name, "-levels-99.wav").removesuffix("-levels-99.wav")
        for part, waveform in waveforms.items():
            write_audio(folder / f"{name}-{part}.wav", waveform, rate)


def generate_samples(run: Path, config: SamplesConfig, device: torch.device) -> None:
    """New music from the priors trained so far, with the tokenizer for the levels that have none."""
    generator = api.Generator.from_pretrained(run, device)
    folder, rate = run / "samples" / f"prior-{len(generator.priors) - 1}", generator.sample_rate
    items = generator.sample(config.seconds, seed=0, n=config.n, progress=True)
    for i, item in enumerate(items):
        write_audio(folder / f"item-{i}.wav", item, rate)
