"""Losses against plain NumPy and known answers."""

import math

import numpy as np
import pytest
import torch

from audiovq.evaluation.code_statistics import code_statistics
from audiovq.tokenizer.losses import LossConfig, MelSpectrogram, ReconstructionLoss, stft_magnitude
from audiovq.tokenizer.quantizer import FSQuantizer, Quantized
from audiovq.tokenizer.vqvae import VQVAEConfig
from audiovq.training.tokenizer_task import code_metrics, codebook_use

ALL = LossConfig(
    mel=1, mel_windows=(256, 512), stft=1, stft_windows=(256,), spectral_convergence=1, compression=0.3, waveform_l1=1, waveform_l2=1
)  # fmt: skip


def sine(frequency: float, seconds: float = 1.0, rate: int = 16000, amplitude: float = 0.5) -> torch.Tensor:
    return amplitude * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * rate)) / rate)[None]


def test_a_full_scale_sine_has_magnitude_one_half() -> None:
    magnitude = stft_magnitude(sine(1000, amplitude=1.0), torch.hann_window(1024))
    assert float(magnitude[0, 64, 20]) == pytest.approx(0.5, rel=1e-3)


def test_terms_equal_numpy() -> None:
    x, y = 0.3 * torch.randn(2, 1, 4096), 0.3 * torch.randn(2, 1, 4096)
    terms = ReconstructionLoss(ALL, 16000)(x, y)
    a, b = x.numpy(), y.numpy()
    assert float(terms["waveform_l1"]) == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    assert float(terms["waveform_l2"]) == pytest.approx(((a - b) ** 2).mean(), rel=1e-5)

    def magnitude(w: np.ndarray, n: int) -> np.ndarray:
        window = np.hanning(n + 1)[:-1]
        padded = np.pad(w[:, 0], ((0, 0), (n // 2, n // 2)))
        frames = np.stack([padded[:, i : i + n] for i in range(0, 4097, n // 4)], axis=1)
        return np.abs(np.fft.rfft(frames * window)) / window.sum()

    p, q = magnitude(a, 256), magnitude(b, 256)
    convergence = np.linalg.norm(p - q) / np.linalg.norm(q)
    logs = np.abs(np.log(np.maximum(p, 1e-5)) - np.log(np.maximum(q, 1e-5))).mean()
    assert float(terms["stft"]) == pytest.approx(convergence + logs, rel=1e-3)
    each = [np.linalg.norm(p[i] ** 0.3 - q[i] ** 0.3) / np.linalg.norm(q[i] ** 0.3) for i in range(2)]
    assert float(terms["spectral_convergence"]) == pytest.approx(np.mean(each), rel=1e-3)
    mels = []
    for n in (256, 512):
        filters = MelSpectrogram(16000, n).get_buffer("filters").numpy()
        m, k = (np.log10(np.maximum(magnitude(w, n) @ filters, 1e-5)) for w in (a, b))
        mels.append(np.abs(m - k).mean())
    assert float(terms["mel"]) == pytest.approx(np.mean(mels), rel=1e-3)


def test_a_perfect_reconstruction_costs_nothing_and_weights_count() -> None:
    x = 0.3 * torch.randn(1, 1, 4096)
    loss = ReconstructionLoss(ALL, 16000)
    assert all(float(value) == pytest.approx(0, abs=1e-6) for value in loss(x, x).values())
    only = ReconstructionLoss(LossConfig(mel=0, stft=0, waveform_l1=3, waveform_l2=0, commitment=2), 16000)
    terms = only(x, 0 * x)
    assert set(terms) == {"waveform_l1"}
    terms["commitment"] = torch.tensor(0.5)
    assert float(only.weighted(terms)) == pytest.approx(3 * float(x.abs().mean()) + 1.0, rel=1e-5)
    assert float(only.weighted({})) == 0  # a quantizer without losses


def test_what_is_loud_counts_in_the_convergence_and_silence_does_not_blow_it_up() -> None:
    """A missing partial costs more than as much noise where the music has nothing; `stft` has it the other way round."""
    music = sine(500)[None] + sine(1500, amplitude=0.1)[None]
    torch.manual_seed(0)
    missing, noisy = sine(500)[None], music + 1e-3 * torch.randn_like(music)
    loss = ReconstructionLoss(
        LossConfig(mel=0, stft=1, spectral_convergence=1, stft_windows=(1024,), waveform_l1=0), 16000
    )
    without, with_noise = loss(missing, music), loss(noisy, music)
    assert without["spectral_convergence"] > 1.5 * with_noise["spectral_convergence"]
    assert without["stft"] < with_noise["stft"]
    silent = torch.zeros(1, 1, 4096, requires_grad=True)
    quiet = loss(silent, torch.zeros(1, 1, 4096))["spectral_convergence"]
    quiet.backward()
    assert float(quiet) == 0
    assert silent.grad is not None
    assert bool(silent.grad.isfinite().all())
    assert float(loss(0.01 * music, 0 * music)["spectral_convergence"].detach()) < 2


def test_the_waveform_comes_first_and_the_spectrum_rises_after() -> None:
    loss = ReconstructionLoss(
        LossConfig(mel=3, stft=2, spectral_convergence=1, waveform_l1=3, commitment=2, waveform_warmup_steps=100), 16000
    )
    terms = {name: torch.tensor(1.0) for name in ("mel", "stft", "spectral_convergence", "waveform_l1", "commitment")}
    assert [float(loss.weighted(terms, step)) for step in (0, 100, 150, 200, 1000)] == [5, 5, 8, 11, 11]
    assert float(loss.weighted(terms)) == 11  # as in an evaluation
    with pytest.raises(ValueError, match="waveform_warmup_steps: expected a weight for waveform_l1"):
        LossConfig(waveform_l1=0, waveform_warmup_steps=100)


def test_no_mel_band_is_empty() -> None:
    for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        for rate in (8000, 24000, 44100):
            assert float(MelSpectrogram(rate, n).get_buffer("filters").sum(dim=0).min()) > 0, (n, rate)


def test_entropy_and_perplexity_of_known_frequencies() -> None:
    codes = np.array([0] * 50 + [1] * 25 + [2] * 25)
    assert code_statistics(np.bincount(codes, minlength=8), 2.0)["unigram_bits_per_second"] == pytest.approx(3.0)
    assert code_statistics(np.zeros(8, dtype=np.int64), 2.0)["unigram_bits_per_second"] == 0
    perplexities, usages = codebook_use([torch.from_numpy(codes), torch.zeros(2, 5, dtype=torch.int64)], 8)
    assert perplexities.tolist() == pytest.approx([2**1.5, 1.0], rel=1e-5)
    assert usages.tolist() == [3 / 8, 1 / 8]


def test_bits_a_second_of_levels_and_of_their_kl() -> None:
    config = VQVAEConfig(sample_rate=8000, hop_lengths=(200, 100), quantizer=FSQuantizer.Config(levels=(4, 2)))
    codes = [torch.tensor([[0] * 4 + [1] * 2 + [7] * 2]), torch.tensor([[3] * 16])]
    vectors = torch.zeros(1, 8, 2)
    certain = code_metrics([Quantized(vectors, c, vectors, {}) for c in codes], config)
    assert float(certain["unigram_bits_per_second_0"]) == pytest.approx(1.5 * 40, rel=1e-5)
    assert float(certain["unigram_bits_per_second_1"]) == pytest.approx(0, abs=1e-4)
    assert float(certain["kl_bits_per_second"]) == pytest.approx(3 * (40 + 80), rel=1e-5)  # log2 of 8 codes, constant
    nats = [0.5, 1.25]
    drawn = [Quantized(vectors, c, vectors, {"kl": torch.tensor(x)}) for c, x in zip(codes, nats, strict=True)]
    expected = (0.5 * 40 + 1.25 * 80) / math.log(2)
    assert float(code_metrics(drawn, config)["kl_bits_per_second"]) == pytest.approx(expected, rel=1e-5)
