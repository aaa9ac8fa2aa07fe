"""Loads codecs that others published: from the hub, from a folder, or from the copy that a model has."""

import importlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub.repocard import metadata_load
from torch import Tensor

from audiovq import config as conf
from audiovq.pretrained.locate import CODEC_PREFIX, codec_place
from audiovq.tokenizer.published import CODECS, PublishedCodec
from audiovq.tokenizer.vqvae import VQVAE, CodecConfig
from audiovq.utils.environment import require
from audiovq.utils.files import CONFIG, WEIGHTS
from audiovq.utils.progress import say


def is_codec(place: Path) -> bool:
    """True for `hf:…`, and for a folder with the config of transformers or snac."""
    content = conf.read_json(place / CONFIG) if (place / CONFIG).is_file() else None
    is_foreign = (
        isinstance(content, dict) and "kind" not in content and bool({"model_type", "vq_strides"} & set(content))
    )
    return is_foreign or str(place).startswith(CODEC_PREFIX)


def load_codec(place: Path) -> PublishedCodec:
    """The codec at `hf:…` or in a folder; ValueError for none, an unknown kind, or damaged files."""
    folder, n_levels = codec_place(str(place).removeprefix(CODEC_PREFIX))
    settings, card = conf.read_json(folder / CONFIG), folder / "README.md"
    kind = "snac" if "vq_strides" in settings else settings.get("model_type")  # SNAC's config does not name itself
    cached = [part for part in folder.resolve().parts if part.startswith("models--")]  # in the hub's cache
    source = cached[-1].removeprefix("models--").replace("--", "/") if cached else folder.resolve().name
    head = (metadata_load(card) if card.is_file() else None) or {}
    licence = " ".join(str(head.get("license_name") or head.get("license") or "").split())
    facts = CodecConfig(kind=str(kind), source=source, licence=licence, settings=json.dumps(settings))
    network = build_codec(facts, folder, n_levels)
    if n_levels is None and network.config.n_levels < network.n_codebooks:
        say(f"{source}: the first {network.config.n_levels} of {network.n_codebooks} codebooks; {place}:8 takes 8")
    return network


def build_codec(facts: CodecConfig, folder: Path, n_levels: int | None) -> PublishedCodec:
    """A codec with the weights of a folder; raises as `load_codec`."""
    if facts.kind not in CODECS:
        raise ValueError(f"{folder}: expected a codec of kind {', '.join(CODECS)}, found {facts.kind:.40}")
    kind = CODECS[facts.kind]
    require(f"codec {facts.kind}", kind.package, install="pip install 'audiovq[codecs]'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module(kind.package)
        load = _load_snac if kind.package == "snac" else _load_transformers
        return kind(load(package, kind.classes, json.loads(facts.settings), folder), facts, n_levels)
    except Exception as error:  # of files and a library that others wrote
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"{folder}: no {facts.kind} codec to load ({reason})") from None


def _load_transformers(package: Any, classes: tuple[str, str], settings: dict[str, Any], folder: Path) -> Any:
    model, config = (getattr(package, name) for name in classes)
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    options = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    codec, report = model.from_pretrained(folder, config=config.from_dict(settings), **options)
    if missing := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"expected weights for {missing[0]} that fit {CONFIG}, found none")
    return codec


def _load_snac(package: Any, _: object, settings: dict[str, Any], folder: Path) -> Any:
    if not (folder / WEIGHTS).is_file():
        return package.SNAC.from_pretrained(str(folder))  # a file of torch, of which it reads tensors alone
    codec = package.SNAC(**settings)
    codec.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return codec


def weights(network: VQVAE) -> dict[str, Tensor]:
    """The tensors to save; a codec's have the names of its own files, which stay when a library renames modules."""
    if not isinstance(network, PublishedCodec):
        return network.state_dict()
    if network.package == "snac":
        return network.codec.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        network.codec.save_pretrained(folder, max_shard_size="1TB")
        return safetensors.torch.load_file(Path(folder) / WEIGHTS)
