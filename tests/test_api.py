"""Tokenizer and Generator as a user has them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TRACK, tones

import audiovq
from audiovq import Codes, Generator, Tokenizer, api
from audiovq.data.audio import read_audio
from audiovq.pretrained import checkpoint
from audiovq.pretrained.identity import tokenizer_hash


@pytest.fixture(scope="module")
def tokenizer(tiny_run: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny_run)


@pytest.fixture(scope="module")
def generator(tiny_run: Path) -> Generator:
    return Generator.from_pretrained(tiny_run)


def test_encode_and_decode_a_real_track_to_its_exact_length(tokenizer: Tokenizer, tmp_path: Path) -> None:
    waveform, rate = read_audio(TRACK)
    codes = tokenizer.encode(waveform, rate)
    assert codes.n_samples == -(-waveform.shape[1] * 8000 // rate)
    assert tokenizer.decode(codes).shape == (1, codes.n_samples)
    codes.save(tmp_path / "track.codes")
    again = Codes.load(tmp_path / "track.codes")
    assert torch.equal(tokenizer.decode(again), tokenizer.decode(codes))
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.encode_file(TRACK).levels, codes.levels, strict=True))


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 8000])
def test_any_number_of_samples(tokenizer: Tokenizer, n: int) -> None:
    codes = tokenizer.encode(0.1 * torch.randn(n), 8000)
    assert [len(level) for level in codes.levels] == [-(-n // hop) for hop in (256, 128, 64)]
    assert tokenizer.decode(codes).shape == (1, n)
    assert tokenizer.decode(codes, 1).shape == (1, n)


def test_chunks_do_not_show(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    waveform = torch.from_numpy(tones(12, 8000).T.copy())
    whole = tokenizer.encode(waveform, 8000)
    decoded = tokenizer.decode(whole)
    monkeypatch.setattr("audiovq.api.tokenizer.CHUNK_SECONDS", 1.0)
    parts = tokenizer.encode(waveform, 8000)
    assert all(torch.equal(a, b) for a, b in zip(whole.levels, parts.levels, strict=True))
    assert torch.allclose(tokenizer.decode(whole), decoded, atol=1e-5)


def test_stereo_surround_and_other_rates_are_taken(tokenizer: Tokenizer) -> None:
    mono = torch.from_numpy(tones(1, 8000).T.copy())
    codes = tokenizer.encode(mono, 8000)
    stereo = tokenizer.encode(mono.expand(2, -1), 8000)
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, stereo.levels, strict=True))
    assert tokenizer.encode(torch.randn(6, 44100), 44100).n_samples == 8000


def test_bad_waveforms_are_explained(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="expected finite samples"):
        tokenizer.encode(torch.tensor([0.0, float("nan")]), 8000)
    with pytest.raises(ValueError, match=r"found \[1, 0\]"):
        tokenizer.encode(torch.zeros(1, 0), 8000)
    with pytest.raises(ValueError, match=r"found \[1, 2, 3\]"):
        tokenizer.encode(torch.zeros(1, 2, 3), 8000)


def test_silence_stays_decodable(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(torch.zeros(5000), 8000)).isfinite().all()


def test_codes_of_another_tokenizer_are_refused(tokenizer: Tokenizer) -> None:
    codes = tokenizer.encode(torch.randn(1000), 8000)
    codes.tokenizer_hash = "0" * 64
    with pytest.raises(ValueError, match="found those of another"):
        tokenizer.decode(codes)


def test_saving_a_tokenizer_keeps_its_identity_and_training_statistics_do_not_matter(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint.save_tokenizer(tmp_path / "t", tokenizer.network)
    again = Tokenizer.from_pretrained(tmp_path / "t")
    assert again.hash == tokenizer.hash
    again.network.codebooks[0].counts += 1  # type: ignore[operator]
    assert tokenizer_hash(again.network) == tokenizer.hash
    again.network.codebooks[0].embedding[0] += 1  # type: ignore[index]
    assert tokenizer_hash(again.network) != tokenizer.hash


@pytest.mark.parametrize("seconds", [0.001, 0.5, 1.23456, 2])
def test_music_has_the_requested_length_to_the_sample(generator: Generator, seconds: float) -> None:
    music = generator.sample(seconds=seconds, seed=0)
    assert music.shape == (1, 1, round(seconds * 8000))
    assert music.isfinite().all()


def test_same_seed_same_music_whatever_n(generator: Generator) -> None:
    three = generator.sample(seconds=1, seed=5, n=3)
    one = generator.sample(seconds=1, seed=5)
    assert torch.equal(three[:1], one)
    assert not torch.equal(three[0], three[1])
    assert not torch.equal(generator.sample(seconds=1, seed=6), one)


def test_a_prompt_is_continued(generator: Generator) -> None:
    clip = torch.from_numpy(tones(1, 8000).T.copy())
    prompt = generator.tokenizer.encode(clip, 8000)
    piece = generator.sample_codes(2, seed=0, prompt=prompt)[0]
    assert piece.n_samples == 16000
    for level, begin, hop in zip(piece.levels, prompt.levels, (256, 128, 64), strict=True):
        n = 8000 // 256 * (256 // hop)
        assert torch.equal(level[:n], begin[:n])
    with pytest.raises(ValueError, match=r"expected more than the prompt's 1\.000 s"):
        generator.sample(1, prompt=prompt)
    with pytest.raises(ValueError, match="prompt: expected at least"):
        generator.sample(1, prompt=generator.tokenizer.encode(clip[:, :100], 8000))


def test_labels_are_known_by_name(generator: Generator) -> None:
    assert generator.labels == {"genre": ["folk", "rock"]}
    folk, rock = (generator.sample(1, seed=0, labels={"genre": g}) for g in ("folk", "rock"))
    assert folk.shape == rock.shape
    with pytest.raises(ValueError, match="label genre=jazz: expected one of: folk, rock"):
        generator.sample(1, labels={"genre": "jazz"})
    with pytest.raises(ValueError, match="label mood: this model knows the labels: genre"):
        generator.sample(1, labels={"mood": "calm"})


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e9])
def test_lengths_that_cannot_be(generator: Generator, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds: expected a number above 0"):
        generator.sample(seconds)


def test_settings_that_cannot_be(generator: Generator) -> None:
    for settings, message in (
        ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"top_k": [1, 2]}, "expected one value or 3"), ({"n": 0}, "n: expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            generator.sample(1, **settings)  # type: ignore[arg-type]
    assert generator.sample(0.2, temperature=[0, 0.5, 1], top_k=[0, 5, 3], top_p=0.9).shape == (1, 1, 1600)


def test_options_that_do_not_exist(generator: Generator) -> None:
    with pytest.raises(ValueError, match="journal no longer exists; repeat the call"):
        generator.sample(1, journal="folder")
    with pytest.raises(TypeError, match="wildness"):
        generator.sample(1, wildness=2)


def test_a_prior_of_another_tokenizer_is_refused(generator: Generator, tiny_run: Path) -> None:
    other = checkpoint.load_tokenizer(tiny_run / "tokenizer")
    other.codebooks[0].embedding[0] += 1  # type: ignore[index]
    with pytest.raises(ValueError, match="prior 0: expected one trained on codes of tokenizer"):
        Generator(Tokenizer(other), generator.priors)


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such model"):
        Tokenizer.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="no tokenizer there"):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trained prior there"):
        Generator.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be downloaded from the hub"):
        Tokenizer.from_pretrained("nobody/no-such-model")


def test_damaged_weights_are_one_readable_error(tiny_run: Path, tmp_path: Path) -> None:
    network = checkpoint.load_tokenizer(tiny_run / "tokenizer")
    checkpoint.save_tokenizer(tmp_path / "t", network)
    weights = tmp_path / "t" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="missing or damaged weights") as error:
        Tokenizer.from_pretrained(tmp_path / "t")
    assert "\n" not in str(error.value)


def test_the_newest_run_is_the_default_model(tiny_run: Path, tmp_path: Path) -> None:
    folder, which = api.default_model(tiny_run.parent)
    assert (folder, which) == (tiny_run, f"the newest run, {tiny_run}")
    folder, which = api.default_model(tmp_path)
    assert which == "the bundled model"
    assert folder == ROOT / "audiovq" / "models" / "default" == api.resolve_model("default")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.yaml").write_text("")
    _, which = api.default_model(tmp_path)
    assert which == f"the bundled model (not finished: {tmp_path / 'new'}; the same train command goes on)"


def test_the_bundled_model_makes_music() -> None:
    generator = Generator.from_pretrained(api.bundled_model())
    music = generator.sample(seconds=1.5, seed=0)
    assert music.shape == (1, generator.tokenizer.config.channels, round(1.5 * generator.sample_rate))
    assert 0.003 < float(music.std()) < 0.5


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, audiovq, audiovq.cli; assert 'torch' not in sys.modules; audiovq.Tokenizer; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_model_without_its_last_priors_says_so(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Generator.from_pretrained(tiny_run)
    assert "priors are trained" not in capsys.readouterr().err
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "prior-1")
    assert len(Generator.from_pretrained(tmp_path / "run").priors) == 1
    assert "1 of 3 priors are trained, so its music has the coarsest levels only" in capsys.readouterr().err


def test_what_a_notebook_shows(generator: Generator) -> None:
    assert {"Codes", "Generator", "Tokenizer", "__version__"} <= set(dir(audiovq))
    (piece,) = generator.sample_codes(1, seed=0)
    assert "n_samples=8000" in repr(piece)
    assert "tensor" not in repr(piece)
