"""Published codecs as tokenizers: small ones with random weights, saved and loaded as a user would."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, assert_one_line_error, cli, tones
from torch import Tensor
from torch.nn import functional as F

from audiovq import Generator, Tokenizer
from audiovq.data.codes import Codes
from audiovq.pretrained.locate import resolve_model
from audiovq.pretrained.published import CODECS, PublishedCodec
from audiovq.studio.engine import Engine
from audiovq.studio.projects import Library, Project
from audiovq.studio.requests import JobRequest, Limits
from audiovq.tokenizer.streaming import StreamingDecoder, StreamingEncoder

transformers = pytest.importorskip("transformers")
snac = pytest.importorskip("snac")
RATE = 8000
ENCODEC = {
    "sampling_rate": RATE, "target_bandwidths": [0.5, 2.0], "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 4, 2, 2],
    "codebook_size": 16, "codebook_dim": 16, "num_lstm_layers": 1,
}  # fmt: skip
SNAC = {
    "sampling_rate": RATE, "encoder_dim": 8, "encoder_rates": [2, 4, 4], "decoder_dim": 64, "decoder_rates": [4, 4, 2],
    "attn_window_size": 4, "codebook_size": 16, "codebook_dim": 4, "vq_strides": [4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip
MIMI = {
    "sampling_rate": RATE, "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 4, 2, 2], "codebook_size": 16,
    "codebook_dim": 8, "vector_quantization_hidden_dimension": 8, "num_quantizers": 3, "num_hidden_layers": 2, "intermediate_size": 32,
    "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 5, "upsample_groups": 16,
}  # fmt: skip
DAC = {
    "encoder_hidden_size": 4, "downsampling_ratios": [2, 4, 5], "decoder_hidden_size": 32, "n_codebooks": 3, "codebook_size": 16,
    "codebook_dim": 4, "sampling_rate": RATE,
}  # fmt: skip
CARD = "---\nlicense: cc-by-nc-4.0\n---\n\n# A codec\n"
NAMES = ["encodec", "encodec-music", "dac", "mimi", "snac", "snac-plain"]
HOPS = {
    "encodec": [64] * 4, "encodec-music": [64] * 4, "dac": [40] * 3, "mimi": [128] * 3,
    "snac": [128, 64, 32], "snac-plain": [128, 64, 32],
}  # fmt: skip


def make_codec(name: str) -> Any:
    torch.manual_seed(1)
    if name == "encodec-music":  # as that of MusicGen, whose convolutions look ahead
        settings = {**ENCODEC, "use_causal_conv": False, "upsampling_ratios": [4, 4, 4, 1]}
        codec = transformers.EncodecModel(transformers.EncodecConfig(**settings))
    elif name == "encodec":
        codec = transformers.EncodecModel(transformers.EncodecConfig(**ENCODEC))
    elif name == "dac":
        codec = transformers.DacModel(transformers.DacConfig(**DAC))
    elif name == "mimi":
        codec = transformers.MimiModel(transformers.MimiConfig(**MIMI))
    else:
        plain = {"noise": False, "attn_window_size": None} if name == "snac-plain" else {}
        codec = snac.SNAC(**{**SNAC, **plain})
    for key, tensor in codec.state_dict().items():  # codebooks of transformers begin with zeros
        if key.endswith((".embed_sum", "codebook.weight")):
            tensor.normal_()
        if key.endswith(".embed"):
            tensor.copy_(torch.randn(16, 16) / 2 ** int(key.split(".")[2]))
    if name.startswith("encodec"):  # as after training, the latents are of the codebooks' size
        last = codec.encoder.layers[-1].conv
        with torch.no_grad():
            latents = codec.eval().encoder(waveform_of(4.0, seed=9)[None])[0]  # [dim, time]
            last.bias.copy_((last.bias - latents.mean(dim=1)) / latents.std(dim=1))
            last.parametrizations.weight.original0.div_(latents.std(dim=1)[:, None, None])
    return codec.eval()


def save_codec(name: str, folder: Path) -> Path:
    """As its authors publish it: SNAC's weights as a file of torch."""
    codec, folder = make_codec(name), folder / name
    folder.mkdir()
    if name.startswith("snac"):
        plain = {"noise": False, "attn_window_size": None} if name == "snac-plain" else {}
        (folder / "config.json").write_text(json.dumps({**SNAC, **plain}))
        torch.save(codec.state_dict(), folder / "pytorch_model.bin")
    else:
        codec.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("codecs")
    return {name: save_codec(name, place) for name in NAMES}


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {name: Tokenizer.from_pretrained(f"hf:{folder}", "cpu") for name, folder in folders.items()}


def own_codes(name: str, codec: Any, waveform: Tensor) -> list[Tensor]:
    """By the codec's own `encode`, called as its documentation says."""
    if name.startswith("encodec"):
        return list(codec.encode(waveform, bandwidth=2.0).audio_codes[0].unbind(1))
    if name == "dac":  # its feature extractor pads to a multiple of the hop
        return list(codec.encode(F.pad(waveform, (0, -waveform.shape[-1] % 40))).audio_codes.unbind(1))
    return codec.encode(waveform) if name.startswith("snac") else list(codec.encode(waveform).audio_codes.unbind(1))


def own_waveform(name: str, codec: Any, codes: list[Tensor]) -> Tensor:
    if name.startswith("snac"):
        return codec.decode(codes)
    stacked = torch.stack(codes, dim=1)
    if name.startswith("encodec"):
        return codec.decode(stacked[None], [None]).audio_values
    return codec.decode(audio_codes=stacked).audio_values.reshape(len(stacked), 1, -1)


def waveform_of(seconds: float, seed: int = 0) -> Tensor:
    return torch.from_numpy(tones(seconds, RATE, seed).T.copy())


def network_of(tokenizer: Tokenizer) -> Any:
    assert isinstance(tokenizer.network, PublishedCodec)
    return tokenizer.network


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_samples", [1, 77, 4096, 12800 + 37])
@torch.no_grad()
def test_codes_and_sound_are_the_codecs_own(
    name: str, n_samples: int, tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, network = make_codec(name), network_of(tokenizers[name])
    waveform = torch.stack([waveform_of(2.0, seed)[:, :n_samples] for seed in (1, 2)])
    waveform = F.pad(waveform, (0, n_samples - waveform.shape[-1]))
    codes, expected = network.encode(waveform), own_codes(name, codec, waveform)
    hops = list(network.config.hop_lengths)
    assert hops == HOPS[name]
    for level, own, hop in zip(codes, expected, hops, strict=True):
        assert level.dtype == torch.int64
        assert torch.equal(level, own[:, : -(-n_samples // hop)])
    if n_samples > 4000:
        assert all(len(level.unique()) > 1 for level in codes)
    whole = (
        own_waveform(name, codec, expected)
        if name != "snac"
        else snac_with_its_noise(network, codec, expected, monkeypatch)
    )
    n = min(n_samples, whole.shape[-1])
    is_padded = name.startswith("snac") and n_samples % network.block  # by zeros, whose codes are not kept
    exact = n_samples // network.block * network.block - (network.decoder_ahead if is_padded else 0) if is_padded else n
    found = network.decode(codes, n_samples)
    assert found.shape == (2, 1, n_samples)
    torch.testing.assert_close(found[..., : max(exact, 0)], whole[..., : max(exact, 0)], rtol=0, atol=1e-6)


def snac_with_its_noise(network: Any, codec: Any, codes: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """SNAC's own decoder, with the noise that the tokenizer keeps in place of new one."""
    noises = [m.forward.__defaults__[1] for m in network.codec.decoder.modules() if type(m).__name__ == "NoiseBlock"]
    assert [len(noise) for noise in noises] == [network.period // 8, network.period // 2, network.period]
    assert network.period >= RATE
    remaining = iter(noises)

    def draw(shape: tuple[int, int, int], **_: object) -> Tensor:
        noise = next(remaining)
        return noise.repeat(-(-shape[-1] // len(noise)))[: shape[-1]].expand(shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", draw)
        return codec.decode(codes)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_give_what_the_whole_gives(name: str, folders: dict[str, Path]) -> None:
    network = network_of(Tokenizer.from_pretrained(folders[name], "cpu")).double()  # so that rounding decides no code
    waveform = waveform_of(3.0)[:, :-13].double()
    whole = network.encode(waveform[None])
    for chunk in (500, 3000):
        encoder = StreamingEncoder(network, chunk)
        parts = [encoder.push(block) for block in waveform.split(1234, dim=-1)] + [encoder.finish()]
        for level, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(pieces), level[0])
    sound = network.decode(whole, waveform.shape[-1])[0].clamp(-1, 1)
    for n_levels in (1, len(whole)):
        prefix = network.decode(whole[:n_levels], waveform.shape[-1])[0].clamp(-1, 1)
        decoder = StreamingDecoder(network, n_levels, 3000)
        blocks = [decoder.push([level[0] for level in whole[:n_levels]]), decoder.finish(waveform.shape[-1])]
        torch.testing.assert_close(torch.cat(blocks, dim=-1), prefix, rtol=0, atol=1e-6)
    assert (sound - prefix).abs().max() == 0
    one = network.decode(whole[:1], waveform.shape[-1])[0].clamp(-1, 1)
    assert (one - sound).abs().max() > 1e-4


@torch.no_grad()
def test_an_lstm_hardly_remembers_more_than_it_gets(tokenizers: dict[str, Tokenizer]) -> None:
    """EnCodec's windows begin 8 s before what is wanted."""
    network = network_of(tokenizers["encodec"])
    waveform = waveform_of(12.0)
    whole, stream = network.encode(waveform[None]), StreamingEncoder(network, 4000)
    parts = [stream.push(waveform), stream.finish()]
    assert network.encoder_radius >= 8 * RATE
    for level, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert float((torch.cat(pieces) == level[0]).float().mean()) > 0.99


@pytest.mark.parametrize("name", ["encodec", "snac"])
def test_batches_of_unequal_lengths_give_what_each_gives_alone(name: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[name]
    pieces = [waveform_of(seconds, i) for i, seconds in enumerate((0.3, 1.0, 0.7))]
    together = tokenizer.encode_batch(pieces, RATE)
    for codes, piece, sound in zip(together, pieces, tokenizer.decode_batch(together), strict=True):
        alone = tokenizer.encode(piece, RATE)
        assert all(torch.equal(a, b) for a, b in zip(codes.levels, alone.levels, strict=True))
        torch.testing.assert_close(sound, tokenizer.decode(alone), rtol=0, atol=1e-5)


def test_first_codebooks_alone(folders: dict[str, Path], tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("encodec", "mimi", "snac"):
        two, whole = Tokenizer.from_pretrained(f"hf:{folders[name]}:2", "cpu"), tokenizers[name]
        piece = waveform_of(0.8)
        codes, expected = two.encode(piece, RATE), whole.encode(piece, RATE)
        assert codes.hop_lengths == HOPS[name][:2]
        assert all(torch.equal(a, b) for a, b in zip(codes.levels, expected.levels, strict=False))
        torch.testing.assert_close(two.decode(codes), whole.decode(expected, 2))
        assert two.hash != whole.hash
    with pytest.raises(ValueError, match="expected at most 3 levels, found 4"):
        Tokenizer.from_pretrained(f"hf:{folders['dac']}:4", "cpu")


def test_of_a_codec_with_too_many_codebooks_some_are_named(tmp_path: Path) -> None:
    codec = transformers.DacModel(transformers.DacConfig(**{**DAC, "n_codebooks": 20}))
    codec.save_pretrained(tmp_path / "many")
    with pytest.raises(ValueError, match="expected 1 to 16 hop_lengths, found 20"):
        Tokenizer.from_pretrained(tmp_path / "many", "cpu")
    assert Tokenizer.from_pretrained(f"hf:{tmp_path / 'many'}:16", "cpu").config.n_levels == 16


@pytest.mark.parametrize("name", ["encodec", "mimi", "snac"])
def test_a_copy_is_the_same_tokenizer(name: str, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    tokenizer, piece = tokenizers[name], waveform_of(1.0)
    tokenizer.save_pretrained(tmp_path / "copy")
    again = Tokenizer.from_pretrained(tmp_path / "copy", "cpu")
    assert again.hash == tokenizer.hash
    assert again.config == tokenizer.config
    codes = tokenizer.encode(piece, RATE)
    assert torch.equal(again.decode(codes), tokenizer.decode(codes))
    card = (tmp_path / "copy" / "README.md").read_text()
    assert f"published codec {name} (licence: cc-by-nc-4.0)" in card
    tokenizer.save_pretrained(tmp_path / "half", half=True)
    assert Tokenizer.from_pretrained(tmp_path / "half", "cpu").hash != tokenizer.hash
    # A damaged or hostile copy.
    config = tmp_path / "copy" / "tokenizer" / "config.json"
    content = json.loads(config.read_text())
    large = json.dumps(
        {**json.loads(content["model"]["codec"]["settings"]), "decoder_dim": 1 << 20, "num_filters": 1 << 20}
    )
    for settings, reason in (("{", "codec to load"), (large, "codec to load")):
        content["model"]["codec"]["settings"] = settings
        config.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=reason):
            Tokenizer.from_pretrained(tmp_path / "copy", "cpu")


RECIPE = """
data: {{folder: {music}, valid_fraction: 0.25, min_seconds: 0.5}}
precision: fp32
tokenizer: {{from_pretrained: "hf:{codec}"}}
""" + TINY[TINY.index("priors:") :]


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], music: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("codec-runs")

    def run(name: str) -> Path:
        """Trained once for each codec, from a folder that is then gone: the run has a copy."""
        if not (place / name).exists():
            codec = shutil.copytree(folders[name], place / "published" / name)
            recipe = place / f"{name}.yaml"
            recipe.write_text(RECIPE.format(music=music, codec=codec))
            result = cli("train", recipe, "--out", place / name)
            assert result.exit_code == 0, result.output
            shutil.rmtree(codec)
        return place / name

    return run


@pytest.mark.parametrize("name", ["encodec", "dac", "mimi", "snac"])
def test_priors_report_and_studio(
    name: str, runs: Callable[[str], Path], tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    run = runs(name)
    generator = Generator.from_pretrained(run, "cpu")
    assert generator.tokenizer.hash == tokenizers[name].hash
    assert [prior.spec.hop_lengths for prior in generator.priors] == [HOPS[name]] * len(HOPS[name])
    piece = generator.sample_codes(0.7, seed=3, labels={"genre": "folk"})[0]
    assert [len(level) for level in piece.levels] == [-(-5600 // hop) for hop in HOPS[name]]
    sound = generator.tokenizer.decode(piece)
    assert sound.shape == (1, 5600)
    assert sound.abs().max() > 0
    # Editing: what stays, stays.
    kept = generator.keep(piece, stretch=(0.2, 0.4))
    edited = generator.sample_codes(given=kept, seed=4)[0]
    assert torch.equal(edited.levels[0][:10], piece.levels[0][:10])
    assert (run / "samples" / "tokenizer" / f"track-3-levels-{len(HOPS[name])}.wav").is_file()
    report = json.loads((run / "report.json").read_text())
    assert all(level["bits_per_second"] > 0 for level in report["levels"])
    result = cli("report", run, "--out", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert "Reconstruction" in (tmp_path / "report.html").read_text()
    # An exported run needs neither the hub nor the folder, either.
    result = cli("export", run, tmp_path / "exported")
    assert result.exit_code == 0, result.output
    again = Generator.from_pretrained(tmp_path / "exported", "cpu").sample(0.7, seed=3, labels={"genre": "folk"})[0]
    torch.testing.assert_close(again, sound)
    # The studio makes a piece.
    limits, sounds = Limits(max_seconds=8), tmp_path / "sounds"
    sounds.mkdir()
    engine = Engine(run, name, Library(tmp_path / "projects", limits), limits, sounds)
    project = engine.library.create(Project(tokenizer_hash=engine.hash))
    job = engine.job(project, JobRequest.model_validate({"kind": "make", "version": None, "seed": 1, "seconds": 0.5}))
    made = Codes.load(engine.library.codes_path(project, job.work(job)[0]))
    assert [len(level) for level in made.levels] == [-(-4000 // hop) for hop in HOPS[name]]
    # Without end, as it sounds.
    assert generator.live(seed=2).read(0.25).shape == (1, 2000)


def test_commands_take_a_codec(folders: dict[str, Path], music: Path, tmp_path: Path) -> None:
    model = f"hf:{folders['snac']}"
    result = cli("encode", music / "track-1.wav", "-o", tmp_path / "a.codes", "--model", model)
    assert result.exit_code == 0, result.output
    assert Codes.load(tmp_path / "a.codes").hop_lengths == HOPS["snac"]
    result = cli("decode", tmp_path / "a.codes", "-o", tmp_path / "a.wav", "--model", model)
    assert result.exit_code == 0, result.output
    (tmp_path / "test").mkdir()
    shutil.copy(music / "track-1.wav", tmp_path / "test")
    result = cli("eval", model, tmp_path / "test", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["summary"][-1]["levels"] == 3
    for place in (model, folders["snac"]):
        facts = json.loads(cli("info", place).stdout)
        assert (facts["codec"]["source"], facts["codec"]["licence"], facts["hop_lengths"]) == (
            "snac",
            "cc-by-nc-4.0",
            HOPS["snac"],
        )
    assert_one_line_error(cli("sample", "--model", model, "--seconds", 1), "no trained prior there")


def test_what_cannot_be_says_so(folders: dict[str, Path], music: Path, tmp_path: Path) -> None:
    piece = tmp_path / "x.wav"
    shutil.copy(music / "track-0.wav", piece)

    def encode(model: object) -> Any:
        return cli("encode", piece, "-o", tmp_path / "x.codes", "--model", model)

    assert_one_line_error(encode("hf:"), "no such codec; expected hf:owner/name")
    assert_one_line_error(encode(f"hf:{folders['dac']}:0"), "expected 1 to 16 hop_lengths, found 0")
    assert_one_line_error(encode(f"hf:{tmp_path}/nothing"), "no such codec")
    assert_one_line_error(encode("hf:nobody/nothing:4"), "nobody/nothing", "cannot be downloaded")  # offline here
    stereo = transformers.EncodecModel(
        transformers.EncodecConfig(**{**ENCODEC, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01})
    )
    stereo.save_pretrained(tmp_path / "stereo")
    assert_one_line_error(encode(f"hf:{tmp_path}/stereo"), "a loudness for each chunk")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    assert_one_line_error(encode(tmp_path / "other"), "expected a codec of kind encodec, dac, mimi, snac, found bert")
    shutil.copytree(folders["dac"], tmp_path / "dac")
    config = json.loads((tmp_path / "dac" / "config.json").read_text())
    (tmp_path / "dac" / "config.json").write_text(json.dumps({**config, "n_codebooks": 5}))
    assert_one_line_error(encode(tmp_path / "dac"), "no dac codec to load", "quantizer")
    (tmp_path / "dac" / "model.safetensors").unlink()
    assert_one_line_error(encode(tmp_path / "dac"), "no dac codec to load")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(music=music, codec=folders["dac"]))
    tuned = cli("train", recipe, "--out", tmp_path / "run", "--set", "decoder_tuning.training.steps=5")
    assert_one_line_error(tuned, "decoder_tuning: expected null", "published codec")
    result = cli("export", f"hf:{folders['dac']}", tmp_path / "exported", "--onnx")
    assert_one_line_error(result, "a tokenizer that audiovq trained, found the published codec dac")


def test_a_hub_id_may_have_a_revision_and_levels(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the hub's cache has it after a download."""
    hub = tmp_path / "hub" / "models--someone--a-codec"
    shutil.copytree(folders["dac"], hub / "snapshots" / ("0" * 40))
    (hub / "refs").mkdir()
    (hub / "refs" / "v1").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = resolve_model("hf:someone/a-codec@v1:2")
    assert str(place) == f"hf:{hub / 'snapshots' / ('0' * 40)}:2"
    tokenizer = Tokenizer.from_pretrained("hf:someone/a-codec:2", "cpu", revision="v1")
    assert tokenizer.config.codec is not None
    assert (tokenizer.config.codec["source"], tokenizer.config.n_levels) == ("someone/a-codec", 2)


def test_every_kind_is_tested_here() -> None:
    assert {name.partition("-")[0] for name in NAMES} == set(CODECS)
