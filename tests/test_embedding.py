"""The music embedding, and the checkpoint reader under it. What needs the weights is skipped where they cannot be had."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRACK

from audiovq.data.audio import read_audio
from audiovq.evaluation import embedding
from audiovq.evaluation.embedding import MusicEmbedding, fetch_weights
from audiovq.evaluation.tf_checkpoint import read_checkpoint


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    """A LevelDB block whose keys share what they have in common with the key before."""
    content, before = b"", b""
    for key, value in entries:
        shared = next((i for i in range(len(key)) if key[: i + 1] != before[: i + 1]), len(key))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + struct.pack("<II", 0, 1)


def entry(kind: int, shape: tuple[int, ...], offset: int, n_bytes: int) -> bytes:
    sizes = b"".join(b"\x12" + varint(len(varint(n)) + 1) + b"\x08" + varint(n) for n in shape)
    checksum = b"\x35" + b"\0\0\0\0"
    return (
        b"\x08" + varint(kind) + b"\x12" + varint(len(sizes)) + sizes + b"\x20" + varint(offset) + b"\x28"
        + varint(n_bytes) + checksum
    )  # fmt: skip


def test_a_hand_made_checkpoint_is_read() -> None:
    kernel, bias = np.arange(600, dtype="<f4").reshape(2, 300), np.array([0.5], dtype="<f4")
    entries = [
        (b"", b"\x08\x01"), (b"layer/bias", entry(1, (1,), 2400, 4)), (b"layer/kernel", entry(1, (2, 300), 0, 2400)),
        (b"step", entry(9, (), 2404, 8)),
    ]  # fmt: skip
    first = block(entries) + b"\0" + b"crc4"
    index = block([(b"z", varint(0) + varint(len(first) - 5))])
    handle = varint(0) + varint(0) + varint(len(first)) + varint(len(index))
    table = first + index + b"\0" + b"crc4" + handle.ljust(48, b"\0")
    tensors = read_checkpoint(table, kernel.tobytes() + bias.tobytes() + b"\0" * 8)
    assert list(tensors) == ["layer/bias", "layer/kernel"]  # int64 is left out
    assert np.array_equal(tensors["layer/kernel"], kernel)
    assert np.array_equal(tensors["layer/bias"], bias)


def test_without_network_one_line_says_how_to_get_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "URL", "http://127.0.0.1:9/nothing-listens-here.whl")
    with pytest.raises(ValueError, match=r"pip download --no-deps musicnn==0.1.0 -d .*") as error:
        fetch_weights(tmp_path)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def embed() -> MusicEmbedding:
    try:
        return MusicEmbedding()
    except ValueError as error:
        pytest.skip(str(error))


def test_real_music_has_the_values_of_another_implementation(embed: MusicEmbedding) -> None:
    """Its values agree with the TensorFlow original's: its tags to 2.4e-7."""
    waveform, rate = read_audio(TRACK, 16000, 1)
    vectors = embed(waveform[:, : 4 * 187 * 256], rate)
    assert vectors.shape == (4, 200)
    expected = [0.5917, -0.0329, -0.0923, -0.1861, 0.6454, -0.1700, -0.1058, 0.0711]
    assert vectors[3, :8] == pytest.approx(expected, abs=2e-3)
    assert embed(waveform[:, : 4 * 187 * 256], rate, batch_size=3) == pytest.approx(vectors, abs=1e-5)
    stereo = torch.cat([waveform, waveform])[:, : 2 * 187 * 256]
    assert embed(stereo, rate)[:1] == pytest.approx(vectors[:1], abs=1e-5)


def test_two_seconds_are_too_short(embed: MusicEmbedding) -> None:
    with pytest.raises(ValueError, match=r"at least 3.0 s of audio, found 2.0 s"):
        embed(torch.zeros(1, 2 * 44100), 44100)
