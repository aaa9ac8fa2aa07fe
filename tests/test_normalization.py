"""Normalization of latents, against plain NumPy."""

import numpy as np
import torch

from audiovq.tokenizer.normalization import BatchNorm, ZCAWhitening


def test_batch_norm_equals_numpy_and_keeps_statistics() -> None:
    layer = BatchNorm(3, momentum=0.5).train()
    x = torch.randn(4, 25, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    flat = x.numpy().reshape(-1, 3)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    assert np.allclose(layer(x).numpy().reshape(-1, 3), expected, atol=1e-3)
    assert np.allclose(layer.mean.numpy(), flat.mean(0) / 2, rtol=1e-3)
    for _ in range(30):
        layer(x)
    assert np.allclose(layer.eval()(x).numpy().reshape(-1, 3), expected, atol=1e-2)


def test_whitening_gives_channels_of_unit_covariance() -> None:
    layer = ZCAWhitening(3, momentum=0.5).train()
    mixing = torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 1.0]])
    x = torch.randn(8, 500, 3) @ mixing
    for _ in range(30):
        layer(x)
    flat = layer.eval()(x).numpy().reshape(-1, 3)
    assert np.allclose(flat.T @ flat / len(flat), np.eye(3), atol=1e-3)
    symmetric = layer.matrix.numpy()
    assert np.allclose(symmetric, symmetric.T, atol=1e-6)  # ZCA: the whitening without a rotation
    with torch.autocast("cpu", torch.bfloat16):  # float32 even under autocast
        assert layer(x).dtype == layer.train()(x).dtype == torch.float32
    before = layer.matrix.clone()
    layer.train()(torch.full_like(x, torch.nan))  # in a step that will be skipped: no error, no change
    assert torch.allclose(layer.matrix, before, atol=1e-6)
    for _ in range(300):
        layer.train()(x * torch.tensor([1.0, 1.0, 0.0]))  # a dead channel
    assert float(layer.matrix.max()) < 10
