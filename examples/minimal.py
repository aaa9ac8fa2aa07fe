"""The whole idea of audiovq in one file: learn a code for music, learn to predict it, sample, decode.

    python examples/minimal.py  # about 3 minutes on 2 CPU cores; writes minimal.wav

1. `Tokenizer` turns a waveform into integers and back: a VQ-VAE (arXiv:1711.00937) with residual levels at
   three temporal resolutions and one shared codebook. Coarse codes hold what lasts, fine codes add detail.
2. `Prior` is a decoder-only transformer over the codes of one level. Level 0 is predicted from its own past,
   a finer level also from all coarser codes, which makes it an upsampler (Jukebox, arXiv:2005.00341).

Shapes: b batch, s samples, t frames or codes in time, f frequency bins, d channels, k codebook entries.
"""

import argparse
import math
import time
from pathlib import Path

import librosa
import soundfile
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLE_RATE = 16000
N_FFT, HOP = 2048, 512  # a window of 128 ms separates the notes of a chord; 31.25 frames a second
FRAMES_PER_CODE = (4, 2, 1)  # of each level, coarse to fine: 7.8, 15.6 and 31.25 codes a second
CODEBOOK_SIZE, CODEBOOK_DIM, WIDTH = 512, 32, 192  # of the tokenizer
CONTEXT, DIM, N_HEADS, N_LAYERS = 128, 128, 4, 2  # of a prior; 128 codes of level 0 are 16 seconds


class ConvBlock(nn.Sequential):  # [b, d, t] -> [b, d, t]
    def __init__(self, dilation: int):
        wide = nn.Conv1d(WIDTH, WIDTH, kernel_size=3, padding=dilation, dilation=dilation)
        super().__init__(nn.BatchNorm1d(WIDTH), wide, nn.GELU(), nn.Conv1d(WIDTH, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Tokenizer(nn.Module):
    def __init__(self):
        super().__init__()
        bins = N_FFT // 2 + 1
        self.mean, self.scale = nn.Buffer(torch.zeros(bins, 1)), nn.Buffer(torch.ones(()))  # of the spectrum
        # The last normalization fixes the scale of the latents, so that no commitment loss is needed.
        latents = nn.Conv1d(WIDTH, CODEBOOK_DIM, 1), nn.BatchNorm1d(CODEBOOK_DIM, affine=False)
        self.encoder = nn.Sequential(nn.Conv1d(bins, WIDTH, 1), *map(ConvBlock, (1, 2, 4)), *latents)
        output = nn.BatchNorm1d(WIDTH), nn.Conv1d(WIDTH, bins, 1)
        self.decoder = nn.Sequential(nn.Conv1d(CODEBOOK_DIM, WIDTH, 1), *map(ConvBlock, (1, 2, 4)), *output)
        # The codebook has no gradient. An entry is a moving average of the latents that choose it.
        self.codebook = nn.Buffer(torch.randn(CODEBOOK_SIZE, CODEBOOK_DIM))
        self.sums, self.counts = nn.Buffer(0 * self.codebook), nn.Buffer(torch.zeros(CODEBOOK_SIZE))

    def spectrum(self, waveform: Tensor) -> Tensor:  # [b, s] -> [b, f, t = s / HOP]
        stft = torch.stft(waveform, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
        return (stft.abs()[..., :-1] ** 0.3 - self.mean) / self.scale  # the power makes soft partials count

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """[b, d, t] -> codes int64 [b, levels, t], coarse ones repeated; the sum of their entries [b, d, t]."""
        total, codes, residuals = torch.zeros_like(latents), [], []
        for n in FRAMES_PER_CODE:
            # A level quantizes what the coarser ones have left, averaged over the n frames of a code.
            residuals.append(repeat(F.avg_pool1d(latents - total, n), "b d t -> b (t n) d", n=n))
            codes.append(torch.cdist(residuals[-1], self.codebook[None]).argmin(dim=-1))  # the nearest entry
            total = total + rearrange(self.codebook[codes[-1]], "b t d -> b d t")
        if self.training:
            self.update_codebook(torch.cat(residuals).detach().flatten(0, 1), torch.cat(codes).flatten())
        return torch.stack(codes, dim=1), total

    def update_codebook(self, latents: Tensor, codes: Tensor) -> None:  # [n, d] and [n], of all levels
        self.counts.lerp_(torch.bincount(codes, minlength=CODEBOOK_SIZE).float(), 0.03)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, latents), 0.03)
        # A dead entry, which few latents choose, restarts at a random latent. At first all are dead.
        average = len(codes) / CODEBOOK_SIZE
        dead = self.counts < 0.05 * average
        self.counts[dead] = average
        self.sums[dead] = average * latents[torch.randint(len(latents), (int(dead.sum()),))]
        self.codebook.copy_(self.sums / self.counts[:, None])

    def loss(self, waveform: Tensor) -> Tensor:  # [b, s] -> squared error of the spectrum
        target = self.spectrum(waveform)  # [b, f, t]
        latents = self.encoder(target)  # [b, d, t]
        _, total = self.quantize(latents)
        # Straight-through: the decoder gets rounded latents, the encoder a gradient as if they were not.
        # Half of the crops pass unrounded: the encoder learns before the codebook does (arXiv:2410.00037).
        rounding = (total - latents).detach() * (torch.rand(len(latents), 1, 1) < 0.5)
        return F.mse_loss(self.decoder(latents + rounding), target)

    def encode(self, waveform: Tensor) -> Tensor:  # [s] -> int64 [levels, t], where coarse codes repeat
        padded = F.pad(waveform, (0, -len(waveform) % (HOP * FRAMES_PER_CODE[0])))
        return self.quantize(self.encoder(self.spectrum(padded[None])))[0][0]

    def decode(self, codes: Tensor) -> Tensor:  # [levels, t] -> float32 [t * HOP]
        total = rearrange(self.codebook[codes].sum(dim=0), "t d -> 1 d t")
        magnitude = (self.decoder(total) * self.scale + self.mean).clamp(min=0) ** (1 / 0.3)  # [1, f, t]
        # Griffin-Lim finds a phase that fits the magnitudes. audiovq learns one, which takes longer.
        magnitude = F.pad(magnitude, (0, 1), mode="replicate")[0].numpy()  # the frame that `spectrum` drops
        return torch.from_numpy(librosa.griffinlim(magnitude, n_iter=48, hop_length=HOP, random_state=0))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.RMSNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.mlp = nn.Sequential(nn.RMSNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:  # [b, t, d] -> [b, t, d]
        q, k, v = rearrange(self.qkv(self.norm(x)), "b t (qkv h d) -> qkv b h t d", qkv=3, h=N_HEADS)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # no position sees a later one
        x = x + self.out(rearrange(attended, "b h t d -> b t (h d)"))
        return x + self.mlp(x)


class Prior(nn.Module):
    def __init__(self, level: int):
        super().__init__()
        self.own = nn.Embedding(1 + CODEBOOK_SIZE, DIM)  # 0 means that no earlier code is known
        self.coarser = nn.ModuleList(nn.Embedding(CODEBOOK_SIZE, DIM) for _ in range(level))
        self.mix = nn.Conv1d(DIM, DIM, kernel_size=9, padding=4)  # of neighbouring coarser codes
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, DIM))
        blocks = [TransformerBlock() for _ in range(N_LAYERS)]
        self.blocks = nn.Sequential(nn.Dropout(0.2), *blocks, nn.RMSNorm(DIM))
        self.head = nn.Linear(DIM, CODEBOOK_SIZE)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [b, levels, t] at the rate of the last level, the one to predict -> logits [b, t, k]."""
        *coarser, own = codes.unbind(dim=1)
        # Shifted by one: at position i the transformer sees the codes before i, but all of the coarser ones.
        x = self.own(F.pad(own[:, :-1] + 1, (1, 0))) + self.positions[: own.shape[1]]  # [b, t, d]
        for embedding, level in zip(self.coarser, coarser, strict=True):
            x = x + self.mix(embedding(level).transpose(1, 2)).transpose(1, 2)
        return self.head(self.blocks(x))

    def loss(self, codes: Tensor) -> Tensor:  # [b, levels, t] -> nats per code
        return F.cross_entropy(self(codes).transpose(1, 2), codes[:, -1])

    def sample(self, coarser: Tensor, temperature: float = 1.0) -> Tensor:
        """Codes of coarser levels [levels - 1, t] -> codes of this level, int64 [t], drawn one by one."""
        codes = F.pad(coarser, (0, 0, 0, 1))  # [levels, t]; the last row is yet to be filled
        for i in range(codes.shape[1]):
            start = max(0, i + 1 - CONTEXT)  # what is older than the context is forgotten
            logits = self(codes[None, :, start : start + CONTEXT])[0, i - start]  # [k]
            codes[-1, i] = torch.multinomial((logits / temperature).softmax(dim=-1), 1)
        return codes[-1]


def fit(name: str, model: Tokenizer | Prior, data: Tensor, length: int, n_steps: int) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters(), betas=(0.9, 0.95))
    started = reported = time.time()
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1, (step + 1) / 30) * (1 - step / n_steps)
        starts = torch.randint(data.shape[-1] - length + 1, (16,)).tolist()  # of crops of the data [..., t]
        loss = model.loss(torch.stack([data[..., start : start + length] for start in starts]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, n_steps - 1) or time.time() - reported > 4:
            reported = time.time()
            print(f"{name}: step {step + 1}/{n_steps}, loss {loss:.3f}, {reported - started:.0f} s", flush=True)
    model.eval().requires_grad_(False)


def load(path: Path, speed: float = 1.0) -> Tensor:  # -> float32 [s], mono; a higher speed raises the pitch
    waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(librosa.resample(waveform.mean(axis=1), orig_sr=rate * speed, target_sr=SAMPLE_RATE))


def log_mel(waveform: Tensor) -> Tensor:  # [s] -> dB [mel bands, t]
    mel = librosa.feature.melspectrogram(y=waveform.numpy(), sr=SAMPLE_RATE)
    return 10 * torch.from_numpy(mel).clamp(min=1e-5).log10()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--music", type=Path, default=Path(__file__).parent.parent / "samples" / "chorales")
    parser.add_argument("--steps", type=int, nargs=3, default=[900, 150, 200], help="tokenizer prior upsampler")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path, default=Path("minimal.wav"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    # The last file is held out to measure with. The others, in seven keys, become one long waveform.
    files = sorted(path for path in args.music.glob("*") if path.suffix in {".opus", ".wav", ".flac", ".mp3"})
    if len(files) < 2:
        parser.error(f"--music: expected at least two audio files in {args.music}, found {len(files)}")
    train = torch.cat([load(path, 2 ** (key / 12)) for key in range(-3, 4) for path in files[:-1]])
    held_out = load(files[-1])
    print(f"{len(files) - 1} files, in seven keys {len(train) / SAMPLE_RATE / 60:.0f} minutes", flush=True)

    # Stage 1: the tokenizer, on crops of one second.
    tokenizer = Tokenizer()
    deviation, mean = torch.std_mean(tokenizer.spectrum(train[None, : 60 * SAMPLE_RATE]), dim=2)  # [1, f]
    tokenizer.mean, tokenizer.scale = nn.Buffer(mean.T), nn.Buffer(deviation.mean())
    fit("tokenizer", tokenizer, train, 32 * HOP, args.steps[0])
    codes = torch.cat([tokenizer.encode(part) for part in train.split(256 * HOP)], dim=1)  # [3, t]
    test = tokenizer.encode(held_out)
    mel, decoded = log_mel(held_out), log_mel(tokenizer.decode(test)[: len(held_out)])
    baseline = F.l1_loss(mel.mean(dim=1, keepdim=True).expand_as(mel), mel)
    print(f"held out: log-mel distance {F.l1_loss(decoded, mel):.2f} dB; of the mean spectrum {baseline:.2f} dB")

    # Stages 2 to 4: a prior for each level, which then samples the codes of this level for a new piece.
    piece = torch.zeros(0, math.ceil(args.seconds * SAMPLE_RATE / HOP), dtype=torch.int64)  # [levels, t]
    for level, n in enumerate(FRAMES_PER_CODE):
        prior = Prior(level)
        fit(f"level {level}", prior, codes[: level + 1, ::n], CONTEXT, args.steps[min(level, 1) + 1])
        windows = test[: level + 1, ::n].unfold(1, CONTEXT, CONTEXT)  # [levels, b, t]
        bits = prior.loss(windows.transpose(0, 1)).item() / math.log(2)
        counts = torch.bincount(codes[level], minlength=CODEBOOK_SIZE) + 1
        unigram = -(counts / counts.sum())[test[level]].log2().mean()
        print(f"held out: level {level}, {bits:.2f} bits per code; by frequency alone {unigram:.2f}", flush=True)
        sampled = prior.sample(piece[:, ::n], temperature=0.85 if level else 1.0)
        piece = torch.cat([piece, repeat(sampled, "t -> 1 (t n)", n=n)[:, : piece.shape[1]]])
    soundfile.write(args.out, tokenizer.decode(piece).numpy()[: round(args.seconds * SAMPLE_RATE)], SAMPLE_RATE)
    print(f"{args.out}: {args.seconds} s")


if __name__ == "__main__":
    main()
