"""`audiovq doctor`: checks this machine. Each check loads its own libraries, to find a broken one."""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from packaging.requirements import Requirement

from audiovq.utils.environment import cpu_count

OK, WARNING, BROKEN = "ok", "warning", "broken"
MARKS = {OK: "ok  ", WARNING: "note", BROKEN: "BAD "}
REINSTALL = "python -m pip install --upgrade --force-reinstall"
FEW_GIGABYTES, NO_GIGABYTES = 5.0, 0.2  # of free disk
TEST_SECONDS, NEW_SECONDS = 5.0, 2.0  # of audio that the self-test encodes, and generates
SHOWN_PACKAGES = ("torch", "torchaudio", "numpy", "librosa", "soundfile", "accelerate")
AUDIO_FORMATS = ("WAV", "FLAC", "OGG", "OPUS", "MP3", "AIFF")


@dataclass(frozen=True)
class CheckResult:
    name: str
    status: str  # OK, WARNING or BROKEN
    found: str
    advice: str = ""  # what the user can do

    @property
    def line(self) -> str:
        return f"{MARKS[self.status]} {self.name:12} {self.found}" + (f"\n     → {self.advice}" if self.advice else "")


def examine() -> Iterator[CheckResult]:
    """Run one check after the other; a check that raises an error is a result, too."""
    for name, check in CHECKS.items():
        try:
            yield from check()
        except Exception as error:
            advice = f"{REINSTALL} audiovq; if that does not help, report this line"
            yield CheckResult(name, BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())}", advice)


def check_packages() -> Iterator[CheckResult]:
    own = importlib.metadata.version("audiovq")
    yield CheckResult("audiovq", OK, f"{own}, Python {platform.python_version()}, {platform.platform()}")
    shown = []
    for requirement in map(Requirement, importlib.metadata.requires("audiovq") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue  # of an extra
        name, advice = requirement.name, f"python -m pip install '{requirement}'"
        found = next((each.version for each in importlib.metadata.distributions(name=name)), None)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield CheckResult(name, BROKEN, f"{found or 'not installed'}, needs {requirement.specifier}", advice)
        elif name in SHOWN_PACKAGES:
            shown.append(f"{name} {found}")
    yield CheckResult("packages", OK, ", ".join(shown))
    try:
        import_module("torchaudio")
    except OSError as error:  # one is for CUDA, and the other is not
        reason = " ".join(str(error).split())
        advice = f"{REINSTALL} torch torchaudio, both from the same index: pytorch.org/get-started"
        yield CheckResult("torchaudio", BROKEN, f"does not load beside torch ({reason})", advice)


def check_devices() -> Iterator[CheckResult]:
    torch = import_module("torch")
    threads = f"{cpu_count()} cores, {torch.get_num_threads()} threads"
    yield CheckResult("CPU", OK, f"{platform.processor() or platform.machine()}, {threads}")
    for i in range(torch.cuda.device_count()):
        name, memory = torch.cuda.get_device_name(i), torch.cuda.get_device_properties(i).total_memory / 2**30
        yield CheckResult(f"GPU {i}", OK, f"{name}, {memory:.0f} GB")
    if torch.cuda.is_available():
        return
    if shutil.which("nvidia-smi"):
        advice = "install a torch for CUDA (pytorch.org/get-started), or a newer driver"
        yield CheckResult("GPU", WARNING, "there is an NVIDIA driver, but torch cannot use it", advice)
    elif torch.backends.mps.is_available():
        yield CheckResult("GPU", OK, "Apple Metal")
    else:
        yield CheckResult("GPU", OK, "none; all works on the CPU, for which the recipe finetune is made")


def check_audio() -> Iterator[CheckResult]:
    soundfile = import_module("soundfile")
    found = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}"
    known = {*soundfile.available_formats(), *soundfile.available_subtypes("OGG")}
    missing = [name for name in AUDIO_FORMATS if name not in known]
    advice = f"{REINSTALL} soundfile; its wheels have libsndfile 1.2, a system's own may be older" if missing else ""
    facts = f"cannot read {', '.join(missing)}" if missing else ", ".join(AUDIO_FORMATS)
    yield CheckResult("audio files", WARNING if missing else OK, f"{found}: {facts}", advice)
    yield CheckResult("ffmpeg", OK, shutil.which("ffmpeg") or "not installed; only needed to read formats such as M4A")


def check_disk() -> Iterator[CheckResult]:
    """Free space and write permission where runs and temporary files are written."""
    for name, folder in {"disk here": Path.cwd(), "disk, temp": Path(tempfile.gettempdir())}.items():
        gigabytes = shutil.disk_usage(folder).free / 1e9
        status = BROKEN if gigabytes < NO_GIGABYTES else WARNING if gigabytes < FEW_GIGABYTES else OK
        advice = "free some, or choose another disk with --out (runs) or TMPDIR (temporary files)"
        yield CheckResult(name, status, f"{folder}: {gigabytes:.1f} GB free", "" if status == OK else advice)
        if not os.access(folder, os.W_OK):
            yield CheckResult(name, WARNING, f"{folder}: cannot write there", "give --out with every command")


def check_model() -> Iterator[CheckResult]:
    api, torch = import_module("audiovq.api"), import_module("torch")
    began = time.monotonic()
    generator = api.Generator.from_pretrained(api.bundled_model())
    tokenizer = generator.tokenizer
    t = torch.arange(round(TEST_SECONDS * tokenizer.sample_rate)) / tokenizer.sample_rate
    melody = 0.3 * torch.sin(2 * torch.pi * 220 * 2 ** ((4 * t).floor() % 5 / 12) * t)
    decoded = tokenizer.decode(tokenizer.encode(melody, tokenizer.sample_rate))
    codes, again = (generator.sample_codes(NEW_SECONDS, seed=0, progress=True)[0] for _ in range(2))
    music = tokenizer.decode(codes)
    faults = {"decoded audio has another length": decoded.shape[-1] != len(t)}
    faults["the same seed gives other codes"] = not all(map(torch.equal, codes.levels, again.levels))
    for name, wave in {"decoded audio": decoded, "new music": music}.items():
        faults[f"{name} is silent or not finite"] = not (wave.isfinite().all() and wave.abs().max() > 1e-3)
    wrong = [fault for fault, is_so in faults.items() if is_so]
    work = f"encoded and decoded {TEST_SECONDS:g} s of audio and made {2 * NEW_SECONDS:g} s of music"
    found = f"{work} in {time.monotonic() - began:.1f} s on {generator.device}"
    advice = f"{REINSTALL} torch torchaudio audiovq; if that does not help, report this line" if wrong else ""
    yield CheckResult("self-test", BROKEN if wrong else OK, "; ".join([*wrong, found]), advice)


CHECKS = {"packages": check_packages, "devices": check_devices, "audio files": check_audio, "disk": check_disk}
CHECKS["self-test"] = check_model
