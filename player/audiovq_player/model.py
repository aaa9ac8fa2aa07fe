"""The files of an exported generator, checked and opened."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime

FORMAT = "audiovq-generator-1"
FACTS = "generator.json"
EXPORT = "export it again: audiovq export RUN DIR --onnx"


class Model:
    """An exported generator.

    Args:
        folder: with generator.json, or with it in its folder `onnx` or `model`.
        threads: of each pass through a network; the networks themselves work side by side.
    Attributes:
        facts: the content of generator.json.
        decoder, priors, prefixes: sessions of onnxruntime; a prior without a prefix has None.
    Raises:
        ValueError: files that are missing, damaged, or of another version.
    """

    def __init__(self, folder: str | Path, threads: int = 1):
        self.folder = find_folder(Path(folder))
        self.facts = read_facts(self.folder / FACTS)
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = self.options.inter_op_num_threads = threads
        self.options.log_severity_level = 3
        priors = self.facts["priors"]
        names = [self.facts["decoder"]["file"], *(p["file"] for p in priors), *(p.get("prefix") for p in priors)]
        with ThreadPoolExecutor() as pool:
            sessions = list(pool.map(lambda name: name and self._open(name), names))
        self.decoder, self.priors, self.prefixes = (
            sessions[0],
            sessions[1 : 1 + len(priors)],
            sessions[1 + len(priors) :],
        )

    def _open(self, name: str) -> onnxruntime.InferenceSession:
        path, expected = self.folder / name, self.facts["files"].get(name, {})
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: expected a file of the model, found none ({error.strerror}); {EXPORT}") from None
        if hashlib.sha256(content).hexdigest() != expected.get("sha256"):
            found = (
                f"{len(content)} of {expected.get('bytes')} bytes"
                if len(content) != expected.get("bytes")
                else "other bytes"
            )
            raise ValueError(
                f"{path}: expected the file that {FACTS} describes, found {found}; copy it again, or {EXPORT}"
            )
        try:
            return onnxruntime.InferenceSession(content, self.options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own
            reason = str(error).splitlines()[0][:120]
            raise ValueError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot use it ({reason}); update it"
            ) from None

    @property
    def sample_rate(self) -> int:
        return self.facts["sample_rate"]

    @property
    def hop_lengths(self) -> list[int]:
        """Samples per code of each level, coarse to fine."""
        return self.facts["hop_lengths"]

    @property
    def labels(self) -> dict[str, list[str]]:
        """The values of each label that this model knows."""
        return self.facts["labels"]


def find_folder(folder: Path) -> Path:
    """Where generator.json is: the folder itself, or its folder `onnx` (of --onnx) or `model` (of --web)."""
    for place in (folder, folder / "onnx", folder / "model"):
        if (place / FACTS).is_file():
            return place
    found = "a model of audiovq without ONNX files" if (folder / "tokenizer").is_dir() else "none"
    raise ValueError(f"{folder}: expected a folder with {FACTS}, found {found}; {EXPORT}")


def read_facts(path: Path) -> dict[str, Any]:
    """The content of generator.json. Raises ValueError if it is damaged or of another version."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found = facts["format"]
    except (OSError, ValueError, TypeError, KeyError):
        raise ValueError(f"{path}: expected JSON with a format, found something else; {EXPORT}") from None
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected the format {FORMAT}, found {str(found)[:40]}; update audiovq-player, or {EXPORT}"
        )
    expected = {"sample_rate", "channels", "hop_lengths", "codebook_size", "labels", "decoder", "priors", "files"}
    if missing := sorted(expected - facts.keys()):
        raise ValueError(f"{path}: expected {', '.join(missing)} in it, found nothing; {EXPORT}")
    return facts
