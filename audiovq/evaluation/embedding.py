"""Embeddings of music, which the Fréchet distance compares. musicnn (Pons and Serra 2019, arXiv:1909.06654; ISC
licence) predicts 50 tags from 3 s of music at 16 kHz. Its penultimate layer is the embedding. Its wheel on PyPI has
the weights as a TensorFlow checkpoint."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
import torchaudio
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiovq.data import audio
from audiovq.data.resampling import resample
from audiovq.utils.environment import errors_as

SAMPLE_RATE = 16000
N_FFT, STFT_HOP, N_MELS = 512, 256, 96
PATCH_FRAMES = 187  # 3 s, the window it was trained on
PATCH_SAMPLES = (PATCH_FRAMES - 1) * STFT_HOP  # frames are centred; the first one is around sample 0
DIM = 200
BATCH_NORM_EPSILON = 1e-3  # TensorFlow's default

WHEEL = "musicnn-0.1.0-py3-none-any.whl"
FOLDER = "1b/6f/38229e7d99c438e11114bbfa39c8c39185458c398011d0b6d7d7c7401617"
URL = f"https://files.pythonhosted.org/packages/{FOLDER}/{WHEEL}"
SHA256 = "f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa"


def fetch_weights(folder: Path | None = None) -> Path:
    """The wheel with the weights (29 MB), downloaded once into the user's cache folder and checked. Raises
    ValueError if it cannot be downloaded; the message says how to get it by hand."""
    folder = folder or Path(pooch.os_cache("audiovq"))
    failure = f"{folder / WHEEL}: the weights of the music embedding cannot be downloaded"
    advice = f"; download them where there is a network: pip download --no-deps musicnn==0.1.0 -d {folder}"
    with errors_as(failure, advice=advice):
        return Path(pooch.retrieve(URL, f"sha256:{SHA256}", fname=WHEEL, path=folder, progressbar=False))


def conv_norm(n_in: int, n_out: int, kernel: tuple[int, int], padding: tuple[int, int]) -> nn.Sequential:
    """[b, n_in, time, frequency] -> [b, n_out, time, frequency']; `padding` is before and after the time axis."""
    convolution, norm = nn.Conv2d(n_in, n_out, kernel), nn.BatchNorm2d(n_out, BATCH_NORM_EPSILON)
    return nn.Sequential(nn.ZeroPad2d((0, 0, *padding)), convolution, nn.ReLU(), norm)


class Musicnn(nn.Module):
    """The network up to its penultimate layer: log-mel patches [b, 187, 96] -> [b, 200]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm2d(1, BATCH_NORM_EPSILON)
        # Timbre: wide in frequency (38 and 67 bands), 7 frames long. Rhythm: one band, 128 to 32 frames long.
        fronts = [conv_norm(1, 204, (7, width), (3, 3)) for width in (38, 67)]
        fronts += [conv_norm(1, 51, (length, 1), ((length - 1) // 2, length // 2)) for length in (128, 64, 32)]
        self.fronts = nn.ModuleList(fronts)
        widths = (2 * 204 + 3 * 51, 64, 64)  # 561 features from the fronts
        self.middle = nn.ModuleList(conv_norm(1, 64, (7, width), (3, 3)) for width in widths)
        self.norm_pooled = nn.BatchNorm1d(2 * (widths[0] + 3 * 64), BATCH_NORM_EPSILON)
        self.dense = nn.Linear(2 * (widths[0] + 3 * 64), DIM)
        self.norm_out = nn.BatchNorm1d(DIM, BATCH_NORM_EPSILON)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.norm_in(patches[:, None])  # [b, 1, time, bands]
        features = [torch.cat([front(x).amax(dim=3) for front in self.fronts], dim=1)]  # [b, 561, time]
        for i, layer in enumerate(self.middle):
            y = layer(rearrange(features[-1], "b d t -> b 1 t d")).squeeze(3)  # [b, 64, time]
            features.append(y + features[-1] if i else y)
        x = torch.cat(features, dim=1)  # [b, 753, time]
        # The maximum and the mean over time, one after the other for each feature: [b, 1506].
        pooled = torch.stack([x.amax(dim=2), x.mean(dim=2)], dim=2).flatten(1)
        return self.norm_out(F.relu(self.dense(self.norm_pooled(pooled))))


@torch.no_grad()
def load_weights(network: Musicnn, data: bytes) -> None:
    """Copy weights from the data file of the TensorFlow checkpoint in the wheel. The file has all variables as
    little-endian float32 in the order of their names, and after each trained one the two moments of Adam. TensorFlow
    numbers layers of a kind in the order in which they were made."""
    layers: list[Any] = [*network.fronts, *network.middle]
    norms: list[Any] = [network.norm_in, *(layer[-1] for layer in layers), network.norm_pooled, network.norm_out]
    variables: dict[str, Tensor] = dict.fromkeys(("beta1_power", "beta2_power"), torch.zeros(()))  # Adam's; not needed
    for i, (_, convolution, *_) in enumerate(layers):
        name = f"conv2d_{i}" if i else "conv2d"
        variables[f"{name}/kernel"] = convolution.weight.permute(2, 3, 1, 0)  # [height, width, in, out]
        variables[f"{name}/bias"] = convolution.bias
    for i, norm in enumerate(norms):
        name = f"batch_normalization_{i}" if i else "batch_normalization"
        variables |= {f"{name}/gamma": norm.weight, f"{name}/beta": norm.bias}
        variables |= {f"{name}/moving_mean": norm.running_mean, f"{name}/moving_variance": norm.running_var}
    variables |= {"dense/kernel": network.dense.weight.T, "dense/bias": network.dense.bias}
    offset = 0
    for name in sorted(variables):
        target = variables[name]  # a view of the network's own memory
        values = np.frombuffer(data, "<f4", target.numel(), offset)
        target.copy_(torch.tensor(values).view(target.shape))
        is_trained = "moving" not in name and "power" not in name
        offset += values.nbytes * (3 if is_trained else 1)


class MusicEmbedding:
    """Waveforms -> embeddings of 3 s windows. Raises ValueError as `fetch_weights`.

    >>> embed = MusicEmbedding()
    >>> vectors = embed(waveform, sample_rate)  # float32 [windows, 200]
    """

    window_seconds = PATCH_SAMPLES / SAMPLE_RATE

    def __init__(self, device: str | torch.device | None = None):
        self.device = torch.device(device or "cpu")
        with zipfile.ZipFile(fetch_weights()) as wheel:
            data = wheel.read("musicnn/MTT_musicnn/.data-00000-of-00001")
        network = Musicnn()
        load_weights(network, data)
        self.network = network.to(self.device).eval()
        options = {"n_mels": N_MELS, "norm": "slaney", "mel_scale": "slaney", "pad_mode": "constant"}
        mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, N_FFT, hop_length=STFT_HOP, **options)
        self.mel = mel.to(self.device)

    @torch.inference_mode()
    def __call__(self, waveform: Tensor, sample_rate: int, batch_size: int = 16) -> np.ndarray:
        """float [channels, samples] -> float32 [windows of 3 s, 200]; ValueError for less than 3 s of audio."""
        mono = resample(audio.downmix(waveform.float(), 1).to(self.device), sample_rate, SAMPLE_RATE)[0]
        log_mel = torch.log10(1 + 10000 * self.mel(mono).T)  # [frames, 96]
        n = len(log_mel) // PATCH_FRAMES
        if n == 0:
            found = f"found {waveform.shape[-1] / sample_rate:.1f} s"
            raise ValueError(f"embedding: expected at least {self.window_seconds:.1f} s of audio, {found}")
        patches = log_mel[: n * PATCH_FRAMES].view(n, PATCH_FRAMES, N_MELS)
        return torch.cat([self.network(part) for part in patches.split(batch_size)]).cpu().numpy()
