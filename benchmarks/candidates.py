"""The tokenizers that `tokenizer_peers.py` and `ablations.py` train side by side, behind one small interface.

Ours, and the peers' architectures: EnCodec and DAC from transformers' configs, SNAC from its package, Jukebox's plan
rebuilt. At their published widths DAC (77 M parameters) and SNAC (50 M) pass only minutes of music through in 30
CPU-minutes; EnCodec has half its published width here, DAC an eighth and SNAC a quarter, so that each makes enough steps to learn.
"""

from __future__ import annotations

from collections.abc import Callable

import snac
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel
from vector_quantize_pytorch import ResidualVQ

from audiovq.config import build
from audiovq.tokenizer.data_init import Bypass, initialise_codebooks, initialise_statistics
from audiovq.tokenizer.losses import LossConfig
from audiovq.tokenizer.vqvae import VQVAE, VQVAEConfig

SAMPLE_RATE = 24000
LOSSES = LossConfig(  # the bundled model's, for 24 kHz
    mel=10, mel_windows=(512, 2048), spectral_convergence=10, stft_windows=(512, 2048, 8192), waveform_l1=0, commitment=0.1, kl=0.01
)  # fmt: skip
PHASE_LOCKED = LossConfig(mel=0.5, mel_windows=(512, 2048), stft=0, waveform_l1=100, commitment=0.1)
Step = tuple[list[Tensor], Tensor]  # reconstructions, auxiliary loss (weighted)


class Candidate(nn.Module):
    """A tokenizer with a codebook a level, coarse to fine; codebooks at one rate follow each other."""

    hop_lengths: list[int]
    codebook_size: int
    multiple: int  # waveforms are as long as a multiple of it
    losses: LossConfig = LOSSES
    seed = 0  # of its weights, random numbers and crops of the music
    learning_rates: tuple[float, ...] = (2e-4, 5e-4, 1e-3, 2e-3)  # of which the best after a minute is taken

    @property
    def bits_per_second(self) -> float:
        bits = torch.tensor(float(self.codebook_size)).log2().item()
        return sum(SAMPLE_RATE / hop for hop in self.hop_lengths) * bits

    def forward(self, waveform: Tensor) -> Step:  # [b, 1, samples]
        raise NotImplementedError

    def encode(self, waveform: Tensor) -> list[Tensor]:  # [b, 1, samples] -> int64 [b, t] a level
        raise NotImplementedError

    def decode(self, codes: list[Tensor]) -> Tensor:  # the first k levels -> [b, 1, samples]
        raise NotImplementedError


class Ours(Candidate):
    """audiovq's VQ-VAE, whatever its config."""

    learning_rates = (5e-4, 1e-3, 2e-3)

    def __init__(self, losses: LossConfig = LOSSES, vq_start_step: int = 100, **config: object):
        super().__init__()
        self.losses, self.vq_start_step, self.n_steps = losses, vq_start_step, 0
        self.network = VQVAE(build(VQVAEConfig, {"sample_rate": SAMPLE_RATE, **config}, "candidate"))
        self.hop_lengths = list(self.network.config.hop_lengths)
        self.codebook_size = self.network.config.codebook_size
        self.multiple = self.hop_lengths[0]

    def forward(self, waveform: Tensor) -> Step:
        quantizers: list = self.network.quantizers()
        if self.training:
            if self.n_steps == 0:
                initialise_statistics(self.network, waveform)
            if self.n_steps == self.vq_start_step:
                initialise_codebooks(self.network, waveform)
            if self.n_steps < self.vq_start_step:
                quantizers = [Bypass(quantizer) for quantizer in quantizers]
            self.n_steps += 1
        output = self.network(waveform, quantizers)
        weighted = [getattr(self.losses, name) * value for name, value in output.losses.items()]
        return output.reconstructions, torch.stack([*weighted, torch.zeros(())]).sum()

    def encode(self, waveform: Tensor) -> list[Tensor]:
        return self.network.encode(waveform)

    def decode(self, codes: list[Tensor]) -> Tensor:
        return self.network.decode(codes)


class EnCodec(Candidate):
    """arXiv:2210.13438. transformers has no training for its quantizer, so that is `ResidualVQ` with EnCodec's settings
    (EMA 0.99, k-means start, revival, a random number of codebooks)."""

    def __init__(self, num_filters: int = 16, n_codebooks: int = 2):
        super().__init__()
        model = EncodecModel(EncodecConfig(sampling_rate=SAMPLE_RATE, num_filters=num_filters))
        self.encoder, self.decoder = model.encoder, model.decoder
        self.codebook_size, hop = 1024, model.config.hop_length
        self.hop_lengths, self.multiple = [hop] * n_codebooks, hop
        self.quantizer = ResidualVQ(
            dim=model.config.hidden_size, num_quantizers=n_codebooks, codebook_size=self.codebook_size, decay=0.99,
            kmeans_init=True, kmeans_iters=10, threshold_ema_dead_code=2, quantize_dropout=True,
        )  # fmt: skip

    def forward(self, waveform: Tensor) -> Step:
        latents = rearrange(self.encoder(waveform), "b d t -> b t d")
        quantized, _, commitment = self.quantizer(latents)
        return [self.decoder(rearrange(quantized, "b t d -> b d t"))], commitment.sum()

    def encode(self, waveform: Tensor) -> list[Tensor]:
        _, codes, _ = self.quantizer(rearrange(self.encoder(waveform), "b d t -> b t d"))
        return list(codes.unbind(dim=-1))

    def decode(self, codes: list[Tensor]) -> Tensor:
        vectors = self.quantizer.get_output_from_indices(torch.stack(codes, dim=-1))
        return self.decoder(rearrange(vectors, "b t d -> b d t"))


class DAC(Candidate):
    """arXiv:2306.06546, with transformers' strides for 24 kHz."""

    learning_rates = (1e-4,)  # its authors'; 2e-4 and 2e-3 were better after a minute and fell apart later

    def __init__(self, encoder_dim: int = 8, decoder_dim: int = 192, n_codebooks: int = 3):
        super().__init__()
        self.codebook_size = 2048
        self.model = DacModel(
            DacConfig(
                sampling_rate=SAMPLE_RATE, encoder_hidden_size=encoder_dim, decoder_hidden_size=decoder_dim,
                downsampling_ratios=[2, 4, 8, 8], upsampling_ratios=[8, 8, 4, 2], n_codebooks=n_codebooks,
                codebook_size=self.codebook_size, quantizer_dropout=0.5,
            )
        )  # fmt: skip
        self.model.apply_weight_norm()  # as its authors trained it; transformers leaves it out
        self.multiple = 512
        self.hop_lengths = [512] * n_codebooks

    def forward(self, waveform: Tensor) -> Step:
        output = self.model(waveform)
        return [output.audio_values.view_as(waveform)], output.loss.mean()

    def encode(self, waveform: Tensor) -> list[Tensor]:
        return list(self.model.encode(waveform).audio_codes.unbind(dim=1))

    def decode(self, codes: list[Tensor]) -> Tensor:
        vectors = self.model.quantizer.from_codes(torch.stack(codes, dim=1))[0]
        return self.model.decode(vectors).audio_values[:, None]


class SNAC(Candidate):
    """arXiv:2410.14411, with our hops. Its package has no loss: the commitment and codebook terms are DAC's."""

    learning_rates = (1e-4, 2e-4)

    def __init__(self, encoder_dim: int = 12, decoder_dim: int = 256):
        super().__init__()
        self.codebook_size = 512
        self.model = snac.SNAC(
            sampling_rate=SAMPLE_RATE, encoder_dim=encoder_dim, encoder_rates=[2, 4, 4, 8], decoder_dim=decoder_dim,
            decoder_rates=[8, 4, 4, 2], attn_window_size=32, codebook_size=self.codebook_size, vq_strides=[4, 2, 1],
        )  # fmt: skip
        self.hop_lengths = [256 * stride for stride in self.model.vq_strides]
        self.multiple = 256 * 32
        self.terms: list[Tensor] = []
        for quantizer in self.model.quantizer.quantizers:
            quantizer.register_forward_hook(self._note)

    def _note(self, quantizer: nn.Module, inputs: tuple[Tensor], outputs: tuple[Tensor, Tensor]) -> None:
        """The quantizer keeps its latents and codebook vectors to itself; both are quickly made again."""
        latents = inputs[0]
        if quantizer.stride > 1:
            latents = F.avg_pool1d(latents, quantizer.stride, quantizer.stride)
        latents, vectors = quantizer.in_proj(latents), quantizer.decode_code(outputs[1])
        self.terms.append(0.25 * F.mse_loss(latents, vectors.detach()) + F.mse_loss(vectors, latents.detach()))

    def forward(self, waveform: Tensor) -> Step:
        self.terms = []
        reconstruction, _ = self.model(waveform)
        return [reconstruction], torch.stack(self.terms).sum()

    def encode(self, waveform: Tensor) -> list[Tensor]:
        return self.model.encode(waveform)

    def decode(self, codes: list[Tensor]) -> Tensor:
        total = torch.zeros(())
        for quantizer, level in zip(self.model.quantizer.quantizers, codes, strict=False):
            step = quantizer.out_proj(quantizer.decode_code(level))
            total = total + step.repeat_interleave(quantizer.stride, dim=-1)
        return self.model.decoder(total)


WAVEFORM_FIRST = LossConfig(
    mel=3, mel_windows=(512, 2048), stft=3, stft_windows=(1024, 4096), waveform_l1=50, waveform_warmup_steps=800, commitment=0.1,
    kl=0.01,
)  # fmt: skip
BASE = {  # the bundled model's plan, for 24 kHz: phases are not in the codes
    "hop_lengths": [1024, 512, 512],
    "dim": 256,
    "whiten_latents": True,
    "vq_start_step": 300,
    "encoder": {"front": {"kind": "mel"}, "n_blocks": 3},
    "decoder": {"kind": "istft", "dim": 320, "n_blocks": 6, "overlap": 8},
    "quantizer": {"kind": "ema", "codebook_size": 512, "codebook_dim": 8, "decay": 0.97, "revival_fraction": 0.05},
}
WITH_PHASE = {  # of low notes, which the waveform's own loss brings into the codes
    "vq_start_step": 900,
    "level_dropout": 0.3,
    "encoder": {"front": {"kind": "stft", "overlap": 4}, "n_blocks": 1},
    "decoder": {"kind": "istft", "dim": 320, "n_blocks": 3, "overlap": 4, "spectrum": "complex"},
}
# For waveforms: no strong spectral loss, which is content with any phase and so hides the way to the right one; real and
# imaginary parts from a shallow network, which is soon nearly linear; codes only when there is something to code.
CODEC = {
    "hop_lengths": [512, 512, 512],
    "dim": 256,
    "vq_start_step": 1000,
    "level_dropout": 0.1,
    "encoder": {"front": {"kind": "stft", "overlap": 4}, "n_blocks": 1},
    "decoder": {"kind": "istft", "dim": 256, "n_blocks": 2, "overlap": 4, "spectrum": "complex"},
    "quantizer": {"kind": "ema", "codebook_size": 1024, "codebook_dim": 8, "decay": 0.97, "revival_fraction": 0.05},
}
JUKEBOX = {  # one autoencoder of its plan, arXiv:2005.00341, appendix B; 256 codes, to match the rate
    "hop_lengths": [128],
    "topology": "independent",
    "dim": 64,
    "vq_start_step": 0,
    "encoder": {"front": {"kind": "conv", "block": "dilated", "base_dim": 32, "max_stride": 2, "n_blocks": 4},
                "block": "dilated", "n_blocks": 0},
    "decoder": {"kind": "conv", "block": "dilated", "base_dim": 32, "max_stride": 2, "n_stride_blocks": 4, "n_blocks": 0},
    "quantizer": {"kind": "ema", "codebook_size": 256, "codebook_dim": 64},
}  # fmt: skip

CANDIDATES: dict[str, Callable[[], Candidate]] = {
    "audiovq": lambda: Ours(**BASE),
    "encodec": EnCodec,
    "dac": DAC,
    "snac": SNAC,
    "jukebox": lambda: Ours(**JUKEBOX),
    "codec": lambda: Ours(PHASE_LOCKED, **CODEC),
    # Other plans: 164 and 234 codes a second, where the first has 117.
    "plan 1024/512/256": lambda: Ours(**BASE | {"hop_lengths": [1024, 512, 256]}),
    "plan 512/256/256": lambda: Ours(**BASE | {"hop_lengths": [512, 256, 256]}),
}
