"""Reconstruction losses: terms between a waveform and its reconstruction, each with a weight."""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from audiovq.config import Config, Window
from audiovq.distributed import collectives
from audiovq.tokenizer.fronts import mel_filters
from audiovq.tokenizer.pitch import POWER, NoteSpectrogram, peak_weights
from audiovq.utils.chunking import in_microbatches

LOG_FLOOR = 1e-5  # smaller magnitudes are silence
SPECTRAL = ("mel", "stft", "spectral_convergence")  # terms that do not depend on phase


class LossConfig(Config):
    """Weights of the loss terms; a term of weight 0 is not computed."""

    mel: float = Field(default=15.0, ge=0)
    mel_windows: tuple[Window, ...] = Field(default=(512, 1024, 2048, 4096), min_length=1)  # samples
    stft: float = Field(default=0.0, ge=0)
    spectral_convergence: float = Field(default=0.0, ge=0)
    compression: float = Field(default=0.5, gt=0, le=1)  # power of the magnitudes in `spectral_convergence`
    # Samples, of `stft` and `spectral_convergence`.
    stft_windows: tuple[Window, ...] = Field(default=(512, 1024, 2048), min_length=1)
    waveform_l1: float = Field(default=5.0, ge=0)
    waveform_l2: float = Field(default=0.0, ge=0)
    # Training steps in which mel, stft and spectral_convergence have weight 0; over as many more they rise to their
    # weights. Spectral terms accept any phase, and a network that has found a wrong one does not leave it.
    waveform_warmup_steps: int = Field(default=0, ge=0)
    tones: float = Field(default=0.0, ge=0)  # decoder tones: the loudness of each step of pitch
    commitment: float = Field(default=0.25, ge=0)  # quantizer ema
    kl: float = Field(default=0.01, ge=0)  # quantizer gumbel

    @model_validator(mode="after")
    def _check(self) -> "LossConfig":
        if self.waveform_warmup_steps and not (self.waveform_l1 or self.waveform_l2):
            raise ValueError("waveform_warmup_steps: expected a weight for waveform_l1 or waveform_l2, found none")
        return self


class ToneLoss(nn.Module):
    """How far the loudness that a `ToneDecoder` gives its oscillators is from that of the music: ‖w (aᶜ - bᶜ)‖ / ‖w bᶜ‖ for
    each item, with magnitudes b of `NoteSpectrogram`, the power c = `POWER` and the weights w = `peak_weights`."""

    def __init__(self, sample_rate: int, hop_length: int, pitches: Tensor):
        super().__init__()
        self.spectrogram = NoteSpectrogram(sample_rate, hop_length, pitches)

    def forward(self, log_loudness: Tensor, target: Tensor) -> Tensor:
        """[b, channels, steps, time] and the music [b, channels, samples] -> a scalar, the mean over items."""
        with torch.autocast(target.device.type, enabled=False):
            wanted = self.spectrogram(target.flatten(0, 1))[1] ** POWER
            found, weights = (POWER * log_loudness.flatten(0, 1)).exp(), peak_weights(wanted)
            distance = (weights * (found - wanted)).flatten(1).norm(dim=1)
            return (distance / (weights * wanted).flatten(1).norm(dim=1).clamp(min=1e-3)).mean()


def stft_magnitude(waveform: Tensor, window: Tensor) -> Tensor:
    """[..., samples] -> [n, bins, frames], with a hop of a quarter window; a full-scale sine has about 0.5."""
    flat, n_fft = waveform.reshape(-1, waveform.shape[-1]), len(window)
    spectrum = torch.stft(flat, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-14).sqrt() / window.sum()


class MelSpectrogram(nn.Module):
    """Mel magnitudes of one window size, with at most `n_mels` bands; short windows have fewer, none empty."""

    def __init__(self, sample_rate: int, n_fft: int, n_mels: int = 320):
        super().__init__()
        self.n_fft = n_fft
        filters = mel_filters(n_fft, max(5, min(n_mels, int(n_fft / 6.4))), sample_rate)
        filters = filters[:, filters.any(dim=0)]  # from 48 kHz on there are bands without a bin
        self.filters = nn.Buffer(filters, persistent=False)  # [bins, mels]
        self.window = nn.Buffer(torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:  # [..., samples] -> [n, mels, frames]
        return self.bands(stft_magnitude(waveform, self.window))

    def bands(self, magnitude: Tensor) -> Tensor:  # [n, bins, frames] -> [n, mels, frames]
        return torch.einsum("nft,fm->nmt", magnitude, self.filters)


def mean_log_difference(a: Tensor, b: Tensor, log: Callable[[Tensor], Tensor]) -> Tensor:
    return (log(a.clamp(min=LOG_FLOOR)) - log(b.clamp(min=LOG_FLOOR))).abs().mean()


class ReconstructionLoss(nn.Module):
    """The terms of `LossConfig`, by name.

    mel: mean |Δ log10 mel| over several windows (DAC, arXiv:2306.06546, section 3.4). stft: spectral
    convergence + mean |Δ log magnitude| (Parallel WaveGAN, arXiv:1910.11480, section 2.2). All bins
        count alike; most are above 4 kHz, and a tokenizer then spends its codes on their noise.
    spectral_convergence: ‖|X|^c - |Y|^c‖ / ‖|Y|^c‖ for each item, with magnitudes to the power c (power law:
        PHASEN, arXiv:1911.04697, section 3.4). Loud bins count most.
    waveform_l1, waveform_l2: mean |Δ| and Δ² of samples; with them, codes hold the phase.
    """

    mels: Any  # nn.ModuleList of MelSpectrogram

    def __init__(self, config: LossConfig, sample_rate: int):
        super().__init__()
        self.config = config
        mel_windows = config.mel_windows if config.mel > 0 else ()
        self.mels = nn.ModuleList(MelSpectrogram(sample_rate, n) for n in mel_windows)
        self.linear_windows = config.stft_windows if config.stft + config.spectral_convergence > 0 else ()
        self.windows = sorted({*mel_windows, *self.linear_windows})  # terms share the spectrum of a window
        for n in self.windows:
            self.register_buffer(f"window_{n}", torch.hann_window(n), persistent=False)

    def forward(self, x: Tensor, target: Tensor, microbatch_size: int | None = None) -> dict[str, Tensor]:
        """The terms that have a weight, between reconstruction and original, float [b, channels, samples], unweighted:
        means over the items of this rank, `microbatch_size` at a time. Convergence in `stft` is over all ranks."""
        with torch.autocast(target.device.type, enabled=False):
            pieces = in_microbatches(self._sums, microbatch_size, x.float(), target.float())
            sums = {name: torch.stack([piece[name] for piece in pieces]).sum(dim=0) for name in pieces[0]}
            squares = sums.pop("squares", None)
            terms = {name: value / len(target) for name, value in sums.items()}
            if squares is not None:
                squares = collectives.sum_with_gradient(squares)
                difference, whole = squares.clamp(min=1e-20).sqrt()  # [windows] each
                terms["stft"] = terms["stft"] + (difference / whole.clamp(min=LOG_FLOOR)).mean()
        return terms

    def _sums(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Each term's sum over items; `stft` has two parts: logarithms, and `squares` [2, windows]."""
        c, n, sums = self.config, len(x), {}
        # Magnitudes of reconstruction and target by window size, [n · channels, bins, frames] each.
        windows = {n_fft: self.get_buffer(f"window_{n_fft}") for n_fft in self.windows}
        spectra = {n_fft: (stft_magnitude(x, w), stft_magnitude(y, w)) for n_fft, w in windows.items()}
        linear = [spectra[n_fft] for n_fft in self.linear_windows]
        if c.mel > 0:
            bands = [map(mel.bands, spectra[mel.n_fft]) for mel in self.mels]
            sums["mel"] = n * torch.stack([mean_log_difference(a, b, torch.log10) for a, b in bands]).mean()
        if c.stft > 0:
            sums["stft"] = n * torch.stack([mean_log_difference(a, b, torch.log) for a, b in linear]).mean()
            squares = [torch.stack([(a - b).square().sum(), b.square().sum()]) for a, b in linear]
            sums["squares"] = torch.stack(squares, dim=1)
        if c.spectral_convergence > 0:
            powers = [[x.clamp(min=LOG_FLOOR).flatten(1) ** c.compression for x in pair] for pair in linear]
            ratios = [(a - b).norm(dim=1) / b.norm(dim=1) for a, b in powers]  # [n · channels] each
            sums["spectral_convergence"] = n * torch.stack(ratios).mean()
        if c.waveform_l1 > 0:
            sums["waveform_l1"] = n * (x - y).abs().mean()
        if c.waveform_l2 > 0:
            sums["waveform_l2"] = n * (x - y).square().mean()
        return sums

    def weighted(self, terms: dict[str, Tensor], step: int | None = None) -> Tensor:
        """The weighted sum of terms, or of the quantizers' losses, with the weights of a step if given."""
        weights = {name: getattr(self.config, name) for name in terms}
        if step is not None and self.config.waveform_warmup_steps:
            rise = min(1.0, max(0.0, step / self.config.waveform_warmup_steps - 1))
            weights |= {name: rise * weights[name] for name in SPECTRAL if name in terms}
        return sum((weights[name] * value for name, value in terms.items()), torch.zeros(()))
