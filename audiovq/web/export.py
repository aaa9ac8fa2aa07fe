"""Writes the folder: the page, the generator as ONNX files, and onnxruntime-web from its npm package. The page shares
its player with the listening report. WebAssembly is packed, which makes it a quarter as large."""

import gzip
import importlib.resources
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pooch

from audiovq.pretrained import checkpoint
from audiovq.pretrained.export import export_generator, export_model
from audiovq.pretrained.locate import tokenizer_folder
from audiovq.utils.environment import errors_as, require
from audiovq.utils.files import atomic_folder, check_new_folder
from audiovq.utils.progress import say

HERE = Path(__file__).parent / "template"
SHARED = Path(__file__).parents[1] / "report" / "template"
SHARED_FILES = ("player.js", "pictures.js", "player.css")
VERSION = "1.30.0"  # of onnxruntime-web; its API and its WebAssembly belong together
ARCHIVE = f"onnxruntime-web-{VERSION}.tgz"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
MODULES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs")
WASM = "ort-wasm-simd-threaded.wasm"
REGISTRY, FOLDER = "AUDIOVQ_NPM_REGISTRY", "AUDIOVQ_ONNXRUNTIME_WEB"  # environment variables


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (*MODULES, WASM))


def export_page(source: str, folder: Path, int8: bool = False, **options: Any) -> list[str]:
    """Write the web page of a model into a new folder, with `options` of `export_model`; returns lines for
    the user. ValueError for no model or prior, a folder that is not empty, or no onnxruntime-web."""
    require("web", "onnx", "onnxruntime", "onnxscript", install="pip install 'audiovq[onnx]'")
    folder = folder.absolute()
    check_new_folder(folder)
    runtime_folder()  # first, because it can fail
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(folder) as temporary:
        model = Path(scratch) / Path(source).name
        export_model(source, model, **options)
        network = checkpoint.load_tokenizer(tokenizer_folder(model))
        compared = export_generator(temporary / "model", model, network, model.name, int8)
        if not compared:
            raise ValueError(f"{source}: no trained prior there; finish `audiovq train`, or choose another model")
        shutil.copyfile(model / "README.md", temporary / "model" / "about.txt")  # browsers show text
        write_page(temporary)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [
        f"{folder}: a web page, {size / 1e6:.1f} MB; read model/about.txt before you share it",
        f"onnx: logits of the priors within {compared['logit_error']:.1g}",
        f"to try it: python -m http.server --directory {folder}, then http://localhost:8000",
    ]


def write_page(folder: Path) -> None:
    """Everything but the model, whose files are in the folder `model`."""
    for path in (*HERE.iterdir(), *(SHARED / name for name in SHARED_FILES)):
        shutil.copyfile(path, folder / path.name)
    copy_runtime(runtime_folder(), folder / "ort")


def runtime_folder() -> Path:
    """The folder with the files of onnxruntime-web: the one that AUDIOVQ_ONNXRUNTIME_WEB names, or the unpacked npm
    package, downloaded once (33 MB) into the user's cache folder and checked. ValueError if files are missing."""
    if named := os.environ.get(FOLDER):
        if found := next(filter(_is_complete, (Path(named), Path(named) / "dist")), None):
            return found
        raise ValueError(f"{FOLDER}: expected a folder with {WASM} and {', '.join(MODULES)}, found {named}")
    cache = Path(pooch.os_cache("audiovq")) / f"onnxruntime-web-{VERSION}"
    if _is_complete(cache):
        return cache
    url = f"{os.environ.get(REGISTRY, 'https://registry.npmjs.org').rstrip('/')}/onnxruntime-web/-/{ARCHIVE}"
    say(f"web: downloading {url}, 33 MB")
    advice = f"; unpack the npm package onnxruntime-web {VERSION} somewhere, and name its folder in {FOLDER}"
    advice += f", or name another registry in {REGISTRY}"
    with errors_as(f"web: {ARCHIVE} cannot be downloaded", advice=advice):
        archive = pooch.retrieve(url, f"sha256:{SHA256}", fname=ARCHIVE, path=cache.parent, progressbar=False)
    with tarfile.open(archive) as package, atomic_folder(cache) as temporary:
        for name in (*MODULES, WASM):
            content = package.extractfile(f"package/dist/{name}")
            assert content is not None, f"{name} is no file in {ARCHIVE}"
            (temporary / name).write_bytes(content.read())
    Path(archive).unlink()
    return cache


def copy_runtime(source: Path, target: Path) -> None:
    """The files of onnxruntime-web that a page needs, with their licence and those of what they contain."""
    target.mkdir()
    for name in MODULES:
        shutil.copyfile(source / name, target / name)
    (target / f"{WASM}.gz").write_bytes(gzip.compress((source / WASM).read_bytes(), mtime=0))
    package = importlib.resources.files("onnxruntime")  # the same source code, so the same licences
    texts = [package / name for name in ("LICENSE", "ThirdPartyNotices.txt")]
    lines = [f"onnxruntime-web {VERSION} is part of ONNX Runtime, under the MIT License."]
    lines += [path.read_bytes().decode(errors="replace") for path in texts if path.is_file()]
    (target / "LICENSE.txt").write_text("\n\n".join(lines), encoding="utf-8")
