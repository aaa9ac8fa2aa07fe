"""Public functions take what people have, or say in one line what they expect; what else is set in torch changes nothing."""

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import tones

from audiovq import Codes, Generator, Tokenizer


@pytest.fixture(scope="module")
def generator(tiny_run: Path) -> Generator:
    return Generator.from_pretrained(tiny_run)


@pytest.fixture(scope="module")
def tokenizer(generator: Generator) -> Tokenizer:
    return generator.tokenizer


def lists(codes: Codes) -> list[list[int]]:
    return [level.tolist() for level in codes.levels]


WAVE = torch.from_numpy(tones(1.3, 44100, seed=2, channels=2).T.copy())
ENTRIES: dict[str, Callable[..., object]] = {
    "encode": lambda t, w, rate=44100: t.encode(w, rate),
    "encode_batch": lambda t, w, rate=44100: t.encode_batch([w], rate)[0],
    "push": lambda t, w, rate=44100: t.stream(rate).push(w),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("waveform", "words"), [
    (WAVE.T, r"expected \[channels, samples\], 1 to 6 channels, found \[57330, 2\]; turn it around, as in waveform.T"),
    (WAVE.T.numpy(), "turn it around"), (torch.zeros(50, 700), r"1 to 6 channels, found \[50, 700\]$"), (torch.zeros(0, 9), r"found \[0, 9\]"),
    (torch.zeros(1, 2, 300), r"expected \[samples\] or \[channels, samples\], found \[1, 2, 300\]"), (torch.tensor(0.5), r"found \[\]"),
    (torch.zeros(9, dtype=torch.int64), "found torch.int64"), ([1, 2, 3], "PCM of 8, 16 or 32 bits, found torch.int64"),
    (np.zeros(9, bool), "found torch.bool"), (np.zeros(9, complex), "found torch.complex128"), (np.zeros(9, np.int64), r"int64; name its size, as in waveform.astype\('int16'\)"),
    ("song.wav", "expected a tensor or an array, found str|song.wav: no such file"), (None, "found NoneType"), ([[0.0], [0.0, 1.0]], "found list"),
    (np.array([1e300]), "expected finite samples"), ([0.0, float("nan")], "expected finite samples"),
    (np.zeros(9, object), "an array, found ndarray object"),
    (WAVE * 32767, r"expected numbers in \[-1, 1\], found 9830.1; divide PCM by its largest number"),
])  # fmt: skip
def test_waveforms_that_cannot_be_meant_are_refused(
    tokenizer: Tokenizer, entry: str, waveform: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        ENTRIES[entry](tokenizer, waveform)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rate", [0, -44100, 44100.5, float("nan"), "fast", None, 10**10, 999])
def test_rates_that_cannot_be_meant_are_refused(tokenizer: Tokenizer, rate: object) -> None:
    for name, entry in ENTRIES.items():
        if rate is not None or name != "push":  # a stream has a default
            with pytest.raises(ValueError, match="sample rate: expected a whole number from 1000 to 768000 Hz, found"):
                entry(tokenizer, torch.zeros(100), rate)


def test_one_piece_is_no_batch(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="expected a list of Codes, found one"):
        tokenizer.decode_batch(tokenizer.encode(torch.zeros(400), 8000))  # type: ignore[arg-type]


def test_an_empty_item_of_a_batch_is_one_line_and_an_empty_batch_is_none(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"found \[1, 0\]"):
        tokenizer.encode_batch([WAVE, torch.zeros(0)], 44100)
    assert tokenizer.encode_batch([], 44100) == []
    assert tokenizer.decode_batch([]) == []


@pytest.mark.parametrize(("dtype", "size", "middle"), [
    (np.int16, 32768, 0), (np.int32, 2**31, 0), (np.uint8, 128, 128), (np.int8, 128, 0),
    (np.uint16, 32768, 32768), (np.uint32, 2**31, 2**31),
])  # fmt: skip
def test_whole_numbers_mean_pcm(tokenizer: Tokenizer, dtype: type, size: int, middle: int) -> None:
    pcm = np.clip((WAVE.numpy().astype(np.float64) * size).round(), -size, size - 1) + middle
    expected = tokenizer.encode(torch.from_numpy((pcm - middle) / size).float(), 44100)
    for waveform in (pcm.astype(dtype), torch.from_numpy(pcm.astype(dtype))):
        assert lists(tokenizer.encode(waveform, 44100)) == lists(expected)
    assert lists(tokenizer.encode_batch([pcm.astype(dtype)], 44100)[0]) == lists(expected)


def test_any_kind_of_floating_point_number_and_rate(tokenizer: Tokenizer) -> None:
    expected = lists(tokenizer.encode(WAVE, 44100))
    for waveform in (
        WAVE.double(),
        WAVE.numpy(),
        WAVE.numpy()[:, ::-1][:, ::-1],
        WAVE.tolist(),
        WAVE.numpy().astype(np.longdouble),
        WAVE.clone().requires_grad_(),
    ):
        assert lists(tokenizer.encode(waveform, 44100)) == expected
    half = WAVE.half()
    assert lists(tokenizer.encode(half, 44100)) == lists(tokenizer.encode(half.float(), 44100))
    for rate in (44100.0, np.int64(44100), np.float32(44100), torch.tensor(44100)):
        assert lists(tokenizer.encode(WAVE, rate)) == expected  # type: ignore[arg-type]
        assert lists(tokenizer.encode_batch([WAVE], rate)[0]) == expected  # type: ignore[arg-type]


def test_what_knows_its_rate_needs_none(tokenizer: Tokenizer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", WAVE.T.numpy(), 44100, "FLOAT")
    expected, path = lists(tokenizer.encode(WAVE, 44100)), tmp_path / "a.wav"
    item = {"path": "a.wav", "array": WAVE.numpy(), "sampling_rate": 44100}
    for same in (path, str(path), item):
        assert lists(tokenizer.encode(same)) == expected
        assert lists(tokenizer.encode(same, 44100)) == expected
        with pytest.raises(ValueError, match="sample rate: expected 44100, which the audio says, or none, found 8000"):
            tokenizer.encode(same, 8000)
    assert [lists(codes) for codes in tokenizer.encode_batch([item, path])] == [expected] * 2
    for wrong, words in (
        ({"bytes": b"", "path": "a.wav"}, "a dict with array and sampling_rate, found bytes, path"), ({}, "found no keys"),
        (item | {"sampling_rate": None}, "sample rate: expected a whole number"), (WAVE, "sample rate: expected a whole number"),
        (item | {"array": WAVE.T.numpy()}, "turn it around"), ("none.wav", "none.wav: no such file"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            tokenizer.encode(wrong)  # type: ignore[arg-type]


def test_audio_of_the_library_datasets(tokenizer: Tokenizer, tmp_path: Path) -> None:
    datasets, _ = pytest.importorskip("datasets"), pytest.importorskip("torchcodec")
    soundfile.write(tmp_path / "a.wav", WAVE.T.numpy(), 44100, "FLOAT")
    features = datasets.Features({"audio": datasets.Audio()})
    rows = datasets.Dataset.from_dict({"audio": [str(tmp_path / "a.wav")]}, features=features)
    assert lists(tokenizer.encode(rows[0]["audio"])) == lists(tokenizer.encode(WAVE, 44100))


def test_codes_of_any_whole_numbers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    codes = tokenizer.encode(WAVE, 44100)
    expected = tokenizer.decode(codes)
    for convert in (
        torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.short, torch.Tensor.byte, lambda level: level.numpy().astype(np.uint16),
    ):  # fmt: skip
        made = tokenizer.make_codes([convert(level) for level in codes.levels], np.int64(codes.n_samples))  # type: ignore[arg-type]
        assert torch.equal(tokenizer.decode(made), expected)
        assert torch.equal(tokenizer.decode_batch([made])[0], expected)
        made.save(tmp_path / "a.codes")
        assert lists(Codes.load(tmp_path / "a.codes")) == lists(codes)
    for wrong in ([0.5], [True], [[1]], ["a"], [None], 3):
        with pytest.raises(ValueError, match="codes of level 0: expected whole numbers"):
            tokenizer.make_codes([wrong], 256)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="n_samples: expected a whole number, found 'many'"):
        tokenizer.make_codes(codes.levels, "many")  # type: ignore[arg-type]


def test_levels_decode_as_the_codes_that_they_are(tokenizer: Tokenizer) -> None:
    codes = tokenizer.encode(WAVE[:, : 44100 // 8000 * 8 * 1024], 44100)
    whole = tokenizer.make_codes([level[: 8 * n] for level, n in zip(codes.levels, (1, 2, 4), strict=True)])
    assert whole.n_samples == 8 * 256
    expected = tokenizer.decode(whole)
    for convert in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.int, lambda level: level):
        levels = [convert(level) for level in whole.levels]
        assert torch.equal(tokenizer.decode(levels), expected)
        assert torch.equal(tokenizer.decode_batch([tuple(levels)])[0], expected)
        assert torch.equal(tokenizer.decode(levels[:2]), tokenizer.decode(whole, n_levels=2))
    first = whole.levels[0][None]
    for array in (first, first.numpy()):
        assert torch.equal(tokenizer.decode(array), tokenizer.decode(whole, n_levels=1))
    for wrong, words in (
        ([[1, 2], [3]], r"expected \[1, 1\] codes a level for 128 samples, found \[2, 1\]"), ([[99]], "expected codes from 0 to 15, found 99"),
        ([], "codes"), ([[1]] * 4, "expected"), ([torch.zeros(3)], "codes of level 0: expected whole numbers"), (torch.zeros(3, 9), "expected whole"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words) as error:
            tokenizer.decode(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [None, "a.codes", torch.zeros(1, 3, 9)])
def test_decoding_anything_but_codes_says_what_is_expected(generator: Generator, wrong: Any) -> None:
    for use in (
        generator.tokenizer.decode, lambda codes: generator.tokenizer.decode_batch([codes]), lambda codes: generator.keep(codes),
        lambda codes: generator.bits_per_second([codes]),
        lambda codes: generator.begin_with(codes, 8000),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected Codes, found \w+; make_codes\(levels, n_samples\)"):
            use(wrong)


def test_numbers_of_numpy_and_torch_mean_the_same(generator: Generator, tmp_path: Path) -> None:
    expected = generator.sample(1.5, seed=7, n=2, temperature=[0.9, 1.0, 0.5], top_k=8, top_p=0.5)
    for kind in (np.float64, lambda x: np.array(x, dtype=np.float64), torch.tensor):
        numbers: dict[str, Any] = {
            "seconds": np.float32(1.5),
            "seed": np.int64(7),
            "n": np.int32(2),
            "top_k": np.int64(8),
        }
        numbers |= {"temperature": np.array([0.9, 1.0, 0.5]), "top_p": kind(0.5)}
        found = generator.sample(**numbers)
        assert torch.equal(found, expected)
    items = generator.pieces(expected.shape[-1], np.uint8(7), np.arange(2), None)  # type: ignore[arg-type]
    assert len(list(items)) == 2
    for name, wrong in {"seed": 1.5, "n": "two"}.items():
        with pytest.raises(ValueError, match=f"{name}: expected a whole number"):
            generator.sample_codes(1, **{name: wrong})
    for wrong in ("long", [1], float("nan"), -1, np.inf):
        with pytest.raises(ValueError, match="seconds: expected a number above 0"):
            generator.sample_codes(wrong)  # type: ignore[arg-type]
    for wrong in ("hot", [[1.0]], [None], {}):
        with pytest.raises(ValueError, match="temperature"):
            generator.sample_codes(1, temperature=wrong)


def test_arrays_of_any_layout_mean_the_same(tokenizer: Tokenizer) -> None:
    """Bytes in the other order (of AIFF and RIFX files), read backwards, in columns, or not to be written."""
    wave = tones(1.3, 44100, seed=2, channels=2).T
    fixed = np.asfortranarray(wave)
    fixed.flags.writeable = False
    expected = lists(tokenizer.encode(WAVE, 44100))
    for same in (wave.astype(">f4"), wave.astype(">f8"), wave[:, ::-1].copy()[:, ::-1], fixed):
        assert lists(tokenizer.encode(same, 44100)) == expected
    pcm = (wave * 32767).astype(np.int16)
    assert lists(tokenizer.encode(pcm.astype(">i2"), 44100)) == lists(tokenizer.encode(pcm, 44100))


@pytest.mark.parametrize("seed", [-1, 1 << 63, 1 << 70])
def test_seeds_whose_noise_would_be_that_of_others_are_refused(generator: Generator, seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed: expected 0 to 9223372036854775807, found {seed}$"):
        generator.sample_codes(0.5, seed=seed)
    last = [lists(generator.sample_codes(0.5, seed=(1 << 63) - less)[0]) for less in (1, 2)]
    assert last[0] != last[1]


def test_labels_may_be_numbers_and_must_have_names(generator: Generator) -> None:
    for value in (None, 1, 2.5):
        with pytest.raises(ValueError, match=f"label genre={value}: expected one of: folk, rock"):
            generator.sample_codes(0.5, labels={"genre": value})  # type: ignore[dict-item]
    for wrong in (["genre"], "genre=folk"):
        with pytest.raises(ValueError, match="labels: expected names with values"):
            generator.sample_codes(0.5, labels=wrong)


# --- what else is set in torch ------------------------------------------------------------------------------------------


def everything(run: Path) -> list[object]:
    generator = Generator.from_pretrained(run)
    tokenizer = generator.tokenizer
    stream = tokenizer.stream(44100)
    codes = [
        tokenizer.encode(WAVE, 44100),
        *tokenizer.encode_batch([WAVE], 44100),
        *generator.sample_codes(1.5, seed=3),
    ]
    results = [stream.push(WAVE), stream.finish(), *(codes.levels for codes in codes)]
    audio = [tokenizer.decode(codes[0]), *tokenizer.decode_batch(codes[:1]), *tokenizer.decode_stream(codes[2])]
    bits = generator.bits_per_second(codes[2:])
    return [
        tokenizer.hash,
        [[level.tolist() for level in levels] for levels in results],
        [(a.dtype, a.tolist()) for a in audio],
        bits,
    ]


def test_what_is_set_in_torch_changes_neither_codes_nor_pieces(tiny_run: Path) -> None:
    expected = everything(tiny_run)
    for state in (
        torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.no_grad(), torch.enable_grad(),
    ):  # fmt: skip
        with state:
            assert everything(tiny_run) == expected
    torch.set_default_device("meta")  # as "cuda" does, it holds no audio
    try:
        assert everything(tiny_run) == expected
    finally:
        torch.set_default_device(None)
    torch.set_default_dtype(torch.float64)
    try:
        assert everything(tiny_run) == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_model_loaded_in_inference_mode_can_be_trained(tiny_run: Path) -> None:
    with torch.inference_mode():
        prior = Generator.from_pretrained(tiny_run).priors[0]
    prior.requires_grad_(True)
    (prior.head.weight**2).sum().backward()
    assert prior.head.weight.grad is not None


def test_a_forked_process_encodes_as_its_parent(tokenizer: Tokenizer) -> None:
    """As with `multiprocessing.Pool` and the `num_proc` of data sets: OpenMP's threads do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = lists(tokenizer.encode(WAVE, 44100))
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.apply_async(_encoded, (tokenizer,)).get(timeout=60) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def _encoded(tokenizer: Tokenizer) -> list[list[int]]:
    return lists(tokenizer.encode(WAVE, 44100))


def test_calls_that_sample_at_once_leave_the_number_of_threads(generator: Generator) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected, found = generator.sample(2, seed=1), []
        in_first, in_second = threading.Event(), threading.Event()

        def second() -> None:
            assert in_first.wait(60)
            found.append(generator.sample(4, seed=2, on_codes=lambda *_: in_second.set()))
            found.append(torch.get_num_threads())

        thread = threading.Thread(target=second)
        thread.start()
        found.append(generator.sample(2, seed=1, on_codes=lambda *_: in_first.set() or in_second.wait(60)))
        thread.join()
        new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        new.start()
        new.join()
        assert [item for item in found if isinstance(item, int)] == [3, 3]
        assert torch.get_num_threads() == 3
        assert any(torch.equal(item, expected) for item in found if isinstance(item, torch.Tensor))
    finally:
        torch.set_num_threads(before)
