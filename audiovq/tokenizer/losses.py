"""What the tokenizer is trained to keep: terms between a waveform and its reconstruction, each with its weight."""

from __future__ import annotations

import torch
import torchaudio
from pydantic import Field, model_validator
from torch import Tensor, nn

from audiovq.config import Config
from audiovq.distributed import collectives
from audiovq.utils.microbatch import in_microbatches

LOG_FLOOR = 1e-5  # amplitudes below count as silence
MAGNITUDES = ("mel", "stft", "spectral_convergence")  # terms that no phase changes


class LossConfig(Config):
    """Weights of the loss terms; a term of weight 0 is not computed."""

    mel: float = Field(default=15.0, ge=0)
    mel_windows: tuple[int, ...] = (512, 1024, 2048, 4096)  # samples
    stft: float = Field(default=0.0, ge=0)
    spectral_convergence: float = Field(default=0.0, ge=0)
    compression: float = Field(default=0.5, gt=0, le=1)  # power of the magnitudes that `spectral_convergence` compares
    stft_windows: tuple[int, ...] = (512, 1024, 2048)  # samples, of `stft` and `spectral_convergence`
    waveform_l1: float = Field(default=5.0, ge=0)
    waveform_l2: float = Field(default=0.0, ge=0)
    # Training steps in which mel, stft and convergence do not count; over as many more they rise to their weights. Magnitudes
    # are content with any phase, and a network that has found one of those never finds the right one.
    waveform_warmup_steps: int = Field(default=0, ge=0)
    commitment: float = Field(default=0.25, ge=0)  # quantizer ema
    kl: float = Field(default=0.01, ge=0)  # quantizer gumbel

    @model_validator(mode="after")
    def _check(self) -> LossConfig:
        if self.waveform_warmup_steps and not (self.waveform_l1 or self.waveform_l2):
            raise ValueError(
                "waveform_warmup_steps: expected a weight for waveform_l1 or waveform_l2, which come first, found none"
            )
        return self


def stft_magnitude(waveform: Tensor, n_fft: int, window: Tensor) -> Tensor:
    """Magnitudes with a quarter-window hop, [..., samples] -> [n, bins, frames], scaled so a full-scale sine is ~0.5."""
    flat = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(
        flat, n_fft, n_fft // 4, window=window, center=True, pad_mode="constant", normalized=False, return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return (power + 1e-14).sqrt() / window.sum()


class MelSpectrogram(nn.Module):
    """Mel magnitudes of one window size; up to `n_mels` bands, fewer for short windows, so that no band is empty."""

    def __init__(self, sample_rate: int, n_fft: int, n_mels: int = 320):
        super().__init__()
        self.n_fft = n_fft
        self.n_mels = max(5, min(n_mels, int(n_fft / 6.4)))
        filters = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, 0.0, sample_rate / 2, self.n_mels, sample_rate, norm=None, mel_scale="slaney"
        )
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:  # [..., samples] -> [n, mels, frames]
        return self.bands(stft_magnitude(waveform, self.n_fft, self.window))  # type: ignore[arg-type]

    def bands(self, magnitude: Tensor) -> Tensor:  # of `stft_magnitude`, [n, bins, frames] -> [n, mels, frames]
        return torch.einsum("nft,fm->nmt", magnitude, self.filters)


class ReconstructionLoss(nn.Module):
    """The weighted terms of `LossConfig`, by name.

    mel: mean |Δ log10 mel| over several windows (DAC, arXiv:2306.06546, section 3.4).
    stft: spectral convergence + mean |Δ log magnitude| (Parallel WaveGAN, arXiv:1910.11480, section 2.2).
    spectral_convergence: that convergence of each item's magnitudes to a power, ‖|X|^c - |Y|^c‖ / ‖|Y|^c‖ (power law: PHASEN,
        arXiv:1911.04697, section 3.4). What is loud counts, and of the empty bins between partials little; `stft` counts
        all bins alike, most of them above 4 kHz, so that a tokenizer spends itself on their noise.
    waveform_l1, waveform_l2: on samples; they decide whether phase is coded.
    """

    def __init__(self, config: LossConfig, sample_rate: int):
        super().__init__()
        self.config = config
        self.mels = nn.ModuleList(MelSpectrogram(sample_rate, n) for n in config.mel_windows if config.mel > 0)
        # A window that both terms have gives one spectrum for both.
        linear = config.stft_windows if config.stft + config.spectral_convergence > 0 else ()
        self.windows = sorted({mel.n_fft for mel in self.mels} | set(linear))  # type: ignore[arg-type]
        for n in self.windows:
            self.register_buffer(f"window_{n}", torch.hann_window(n), persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor, microbatch_size: int | None = None) -> dict[str, Tensor]:
        """float [b, channels, samples] twice -> unweighted scalar terms (those with a weight).

        The spectral convergence is that of all ranks' items together, the rest are means over this rank's.

        Args:
            microbatch_size: items that are looked at together, to save memory; the result is the same.
        """
        c = self.config
        with torch.autocast(target.device.type, enabled=False):
            pieces = in_microbatches(self._sums, microbatch_size, reconstruction.float(), target.float())
            sums = {name: torch.stack([piece[name] for piece in pieces]).sum(dim=0) for name in pieces[0]}
            terms = {name: value / len(target) for name, value in sums.items() if name != "squares"}
            if c.stft > 0:
                difference, whole = collectives.sum_with_gradient(sums["squares"]).clamp(min=1e-20).sqrt()
                terms["stft"] = terms["stft"] + (difference / whole.clamp(min=LOG_FLOOR)).mean()
        return terms

    def _sums(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Each term's mean over the items, times the items; and for the convergence [2, windows] sums of squares."""
        c, n, sums = self.config, len(x), {}
        spectra = {size: (self._magnitude(x, size), self._magnitude(y, size)) for size in self.windows}
        if c.mel > 0:
            sums["mel"] = n * torch.stack([self._mel(*spectra[mel.n_fft], mel) for mel in self.mels]).mean()  # type: ignore[index]
        if c.stft > 0:
            logs, squares = zip(*(self._stft(*spectra[size]) for size in c.stft_windows), strict=True)
            sums["stft"], sums["squares"] = n * torch.stack(logs).mean(), torch.stack(squares, dim=1)
        if c.spectral_convergence > 0:
            sums["spectral_convergence"] = n * torch.stack([self._convergence(*spectra[size]) for size in c.stft_windows]).mean()
        if c.waveform_l1 > 0:
            sums["waveform_l1"] = n * (x - y).abs().mean()
        if c.waveform_l2 > 0:
            sums["waveform_l2"] = n * (x - y).square().mean()
        return sums

    def weighted(self, terms: dict[str, Tensor], step: int | None = None) -> Tensor:
        """The terms (or those of the quantizers) summed with their weights; at a training step, with those of that step."""
        weights = {name: getattr(self.config, name) for name in terms}
        if step is not None and self.config.waveform_warmup_steps:
            risen = min(1.0, max(0.0, step / self.config.waveform_warmup_steps - 1))
            weights |= {name: risen * weights[name] for name in MAGNITUDES if name in terms}
        return sum((weights[name] * value for name, value in terms.items()), torch.zeros(()))

    def _magnitude(self, waveform: Tensor, n_fft: int) -> Tensor:
        return stft_magnitude(waveform, n_fft, getattr(self, f"window_{n_fft}"))

    def _mel(self, a: Tensor, b: Tensor, mel: MelSpectrogram) -> Tensor:
        """Of two magnitudes [n, bins, frames]."""
        return (mel.bands(a).clamp(min=LOG_FLOOR).log10() - mel.bands(b).clamp(min=LOG_FLOOR).log10()).abs().mean()

    def _stft(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Of two magnitudes: mean |Δ log magnitude|, and the sums of squares [2] of their difference and of the target's."""
        log_difference = (a.clamp(min=LOG_FLOOR).log() - b.clamp(min=LOG_FLOOR).log()).abs().mean()
        return log_difference, torch.stack([(a - b).square().sum(), b.square().sum()])

    def _convergence(self, a: Tensor, b: Tensor) -> Tensor:  # of two magnitudes -> [n]
        a, b = (x.clamp(min=LOG_FLOOR) ** self.config.compression for x in (a, b))
        return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
