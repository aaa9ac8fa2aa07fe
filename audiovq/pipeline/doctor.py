"""`audiovq doctor`: can audiovq work on this machine? Libraries are loaded one at a time, so that a broken one is found."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

OK, WARNING, BROKEN = "ok", "warning", "broken"
MARKS = {OK: "ok  ", WARNING: "note", BROKEN: "BAD "}
PIP = "python -m pip install --upgrade --force-reinstall"
FEW_GIGABYTES, NO_GIGABYTES = 5.0, 0.2
TEST_SECONDS, NEW_SECONDS = 5.0, 2.0  # of audio in the self-test: coded, made


@dataclass(frozen=True)
class CheckResult:
    """One thing that was looked at."""

    name: str
    status: str  # OK, WARNING or BROKEN
    found: str
    advice: str = ""  # what to do about it

    @property
    def line(self) -> str:
        return f"{MARKS[self.status]} {self.name:12} {self.found}" + (f"\n     → {self.advice}" if self.advice else "")


def examine() -> Iterator[CheckResult]:
    """Look at one thing after the other; never raises."""
    for name, check in CHECKS.items():
        try:
            yield from check()
        except Exception as error:
            advice = f"{PIP} audiovq; if that does not help, report this line"
            yield CheckResult(name, BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())}", advice)


def is_broken(findings: list[CheckResult]) -> bool:
    return any(finding.status == BROKEN for finding in findings)


def _load(name: str) -> Any:
    return importlib.import_module(name)


def check_packages() -> Iterator[CheckResult]:
    """What audiovq requires, in the versions it requires."""
    own = importlib.metadata.version("audiovq")
    yield CheckResult("audiovq", OK, f"{own}, Python {platform.python_version()}, {platform.platform()}")
    parsed = [Requirement(text) for text in importlib.metadata.requires("audiovq") or ()]
    required = [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    found = {}
    for requirement in required:
        try:
            found[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield CheckResult(requirement.name, BROKEN, "not installed", f"python -m pip install '{requirement}'")
            continue
        if not requirement.specifier.contains(found[requirement.name], prereleases=True):
            told = f"{found[requirement.name]}, needs {requirement.specifier}"
            yield CheckResult(requirement.name, BROKEN, told, f"python -m pip install '{requirement}'")
    shown = ("torch", "torchaudio", "numpy", "librosa", "soundfile", "accelerate")
    yield CheckResult("packages", OK, ", ".join(f"{name} {found[name]}" for name in shown if name in found))
    torch, torchaudio = (found.get(name, "").split(".")[:2] for name in ("torch", "torchaudio"))
    if torch != torchaudio:
        yield CheckResult("torchaudio", BROKEN, f"{found.get('torchaudio')} beside torch {found.get('torch')}",
                      f"{PIP} torch=={'.'.join(torch)}.* torchaudio=={'.'.join(torch)}.*")  # fmt: skip


def check_devices() -> Iterator[CheckResult]:
    """CPU, and a multiplication on each accelerator."""
    torch = _load("torch")
    yield CheckResult("CPU", OK, f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        name, memory = torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory / 2**30
        x = torch.ones(64, 64, device=f"cuda:{i}")
        works = float((x @ x).sum()) == 64**3
        advice = "" if works else "its results are wrong: update the driver, or hide it with CUDA_VISIBLE_DEVICES="
        yield CheckResult(f"GPU {i}", OK if works else BROKEN, f"{name}, {memory:.0f} GB", advice)
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield CheckResult("GPU", WARNING, "there is an NVIDIA driver, but torch cannot use it",
                      "install a torch for CUDA (pytorch.org/get-started), or a newer driver")  # fmt: skip
    elif torch.backends.mps.is_available():
        yield CheckResult("GPU", OK, "Apple Metal")
    elif not torch.cuda.is_available():
        yield CheckResult("GPU", OK, "none; everything works on the CPU, the recipe quickstart is made for it")


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def check_backends() -> Iterator[CheckResult]:
    """What the CPU's arithmetic can be done with, and what sampling takes."""
    torch, packed = _load("torch"), _load("audiovq.sampling.packed_weights")
    has = {
        "MKL": torch.backends.mkl.is_available(), "oneDNN": torch.backends.mkldnn.is_available(),
        "FBGEMM": "fbgemm" in torch.backends.quantized.supported_engines,
        "bf16 instructions": "bf16" in packed.available_precisions(),
    }  # fmt: skip
    facts = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in has.items())
    chosen = packed.choose_precision()
    slow = chosen == "fp32" and platform.machine().lower() in {"x86_64", "amd64"}
    advice = (
        "sampling is slower without FBGEMM's half precision; it needs a CPU with AVX2 and torch 2.11" if slow else ""
    )
    yield CheckResult("backends", WARNING if slow else OK, f"{facts}; --precision auto is {chosen} on the CPU", advice)


def check_audio() -> Iterator[CheckResult]:
    """Every format that soundfile should read and write, written and read."""
    soundfile, np = _load("soundfile"), _load("numpy")
    wave = (0.3 * np.sin(np.arange(24000) / 10)).astype(np.float32)
    kinds = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III", "AIFF": "PCM_16"}
    works, fails = [], []
    for name, (kind, subtype) in {**{k: (k, v) for k, v in kinds.items()}, "Opus": ("OGG", "OPUS")}.items():
        try:
            file = io.BytesIO()
            soundfile.write(file, wave, 24000, format=kind, subtype=subtype)
            file.seek(0)
            good = len(soundfile.read(file)[0]) >= len(wave)
        except (RuntimeError, TypeError, ValueError):
            good = False
        (works if good else fails).append(name)
    version = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    yield CheckResult("audio files", OK, f"{version}: {', '.join(works)}")
    if fails:
        broken = {"WAV", "FLAC"} & set(fails)
        yield CheckResult("audio files", BROKEN if broken else WARNING, f"cannot write and read {', '.join(fails)}",
                      f"{PIP} soundfile; its wheels have libsndfile 1.2, a system's own may be older")  # fmt: skip


def check_tools() -> Iterator[CheckResult]:
    ffmpeg = shutil.which("ffmpeg")
    told = ffmpeg or "not there; only needed to convert formats that audiovq does not read, such as M4A"
    yield CheckResult("ffmpeg", OK, told)


def check_disk() -> Iterator[CheckResult]:
    """Room, and leave to write, where runs and temporary files go."""
    for name, folder in {"disk here": Path.cwd(), "disk, temp": Path(tempfile.gettempdir())}.items():
        gigabytes = shutil.disk_usage(folder).free / 1e9
        status = BROKEN if gigabytes < NO_GIGABYTES else WARNING if gigabytes < FEW_GIGABYTES else OK
        advice = (
            "" if status == OK else "free some, or choose another disk with --out (runs) or TMPDIR (temporary files)"
        )
        yield CheckResult(name, status, f"{folder}: {gigabytes:.1f} GB free", advice)
        try:
            with tempfile.NamedTemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield CheckResult(
                name, WARNING, f"{folder}: cannot write there ({error.strerror})", "give --out with every command"
            )


def check_model() -> Iterator[CheckResult]:
    """The bundled model encodes, decodes and samples."""
    api, torch = _load("audiovq.api"), _load("torch")
    began = time.monotonic()
    generator = api.Generator.from_pretrained(api.bundled_model())
    tokenizer = generator.tokenizer
    t = torch.arange(round(TEST_SECONDS * tokenizer.sample_rate)) / tokenizer.sample_rate
    tune = 0.3 * torch.sin(2 * torch.pi * 220 * 2 ** ((4 * t).floor() % 5 / 12) * t)
    loaded = time.monotonic()
    codes = tokenizer.encode(tune, tokenizer.sample_rate)
    decoded = tokenizer.decode(codes)
    coded = time.monotonic()
    made, again = (generator.sample_codes(NEW_SECONDS, seed=0, progress=True)[0] for _ in range(2))
    sampled = time.monotonic()
    same = all(torch.equal(a, b) for a, b in zip(made.levels, again.levels, strict=True))
    faults = {
        "decoded audio has another length": decoded.shape[-1] != len(t),
        "decoded audio is silent or not finite": not _is_sound(decoded),
        "new music is silent or not finite": not _is_sound(tokenizer.decode(made)),
        "the same seed gives other codes": not same,
    }
    wrong = [fault for fault, is_so in faults.items() if is_so]
    advice = f"{PIP} torch torchaudio audiovq; if that does not help, report this line" if wrong else ""
    times = f"loaded in {loaded - began:.1f} s, coded {TEST_SECONDS:g} s of audio in {coded - loaded:.1f} s"
    told = f"{times}, made {2 * NEW_SECONDS:g} s of music in {sampled - coded:.1f} s on {generator.device}"
    yield CheckResult("self-test", BROKEN if wrong else OK, "; ".join([*wrong, told]), advice)


def _is_sound(waveform: Any) -> bool:
    return bool(waveform.isfinite().all()) and float(waveform.abs().max()) > 1e-3


CHECKS: dict[str, Callable[[], Iterator[CheckResult]]] = {
    "packages": check_packages, "devices": check_devices, "backends": check_backends, "audio files": check_audio,
    "tools": check_tools, "disk": check_disk, "self-test": check_model,
}  # fmt: skip
