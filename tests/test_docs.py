"""README.md and docs/: commands and snippets run, and each option, recipe, key and name that they mention exists.

The blocks of a page run in order, commands in this process, in a folder with the files that pages mention: music in
~/Music/mine and ~/Test, song.wav, clip.wav, piece.wav, piece.codes, and a small finished run in runs/mine and
runs/quickstart. To take only seconds, pieces are cut to SECONDS and commands in SLOW are only parsed; `pytest -m slow`
runs everything.

A block after `<!-- not run: reason -->` is only parsed: its options and recipes exist. If it trains, a copy of the small
run is put where the training would write its own, for the following blocks.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import soundfile
import yaml
from conftest import ROOT, cli, tones

from audiovq.cli import main
from audiovq.recipe import find_recipe, load_recipe

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
SECONDS = 1.0  # longest piece; a clip is half as long
SLOW = {"eval"}
ALLOWED = {"ls", "mkdir", "cp", "cat", "head"}  # commands besides audiovq in blocks that run
NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}


@dataclass
class Block:
    language: str  # "sh", "python", ...; indented ones are "sh"
    text: str
    not_run: str  # the reason, or ""


def blocks(page: str) -> Iterator[Block]:
    """Fenced and indented blocks of a page, in order."""
    reason, lines, i = "", page.splitlines(), 0
    while i < len(lines):
        line, first = lines[i], i
        if found := re.match(r"<!-- not run: (.+) -->$", line):
            reason = found[1]
        elif fence := re.match(r"```(\w*)", line):
            i += 1
            while not lines[i].startswith("```"):
                i += 1
            yield Block(fence[1], "\n".join(lines[first + 1 : i]), reason)
            reason = ""
        elif line.startswith("    ") and not lines[i - 1].strip() and re.match(r" {4}(audiovq|pip|\.ci)\b", line):
            while i + 1 < len(lines) and lines[i + 1].startswith("    "):
                i += 1
            yield Block("sh", "\n".join(text[4:] for text in lines[first : i + 1]), reason)
            reason = ""
        elif line.strip():
            assert not reason, f"a marker without a block: {reason}"
        i += 1


def commands(text: str) -> list[list[str]]:
    """The commands of a block as words, without those after a pipe."""
    lines = re.sub(r"\s#.*", "", text.replace("\\\n", " "), flags=re.MULTILINE).replace("\n", " ; ")
    lexer = shlex.shlex(lines, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, ""
    found: list[list[str]] = [[]]
    skipping = False
    for word in lexer:
        if set(word) <= set(";&|"):
            skipping = word == "|"
            found.append([])
        elif not skipping:
            found[-1].append(os.path.expanduser(word))
    return [words for words in found if words]


def arguments_of(words: list[str]) -> list[str] | None:
    """The arguments of an audiovq command, also if a launcher starts it; None for other commands."""
    if words[0] == "audiovq":
        return words[1:]
    if words[0] in {"torchrun", "accelerate"}:
        return words[words.index("audiovq") + 1 :]
    return None


def check_options(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Parse without running; click raises errors for unknown options. Returns the command and its values."""
    name, *rest = [word for word in arguments if word != "--debug"]
    if name in {"--help", "-h", "--version"}:
        return name, {}
    command = main.commands[name]
    if "--help" in rest:
        return name, {}
    values = command.make_context(name, list(rest)).params
    if name == "train":
        load_recipe(values["recipe"], values["data"], values["overrides"])
    return name, values


# --- the folder for the blocks ----------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, tiny_run: Path, music: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the files that pages mention; it becomes the working folder, with a home of its own."""
    home = tmp_path / "home"
    shutil.copytree(music, home / "Music" / "mine")
    (home / "Test").mkdir()
    soundfile.write(home / "Test" / "test.wav", tones(2, 8000, seed=8), 8000)
    here = tmp_path / "here"
    for name in ("mine", "quickstart"):
        shutil.copytree(tiny_run, here / "runs" / name)
    shutil.copytree(ROOT / "recipes", here / "recipes")
    (here / "samples").symlink_to(ROOT / "samples")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    song = tones(9.5, 16000, seed=7)
    soundfile.write("song.wav", song, 16000)
    soundfile.write("song.flac", song, 16000)
    soundfile.write("piece.wav", song[:16000], 16000)
    soundfile.write("clip.wav", song[: int(8000 * SECONDS)], 16000)
    assert cli("encode", "piece.wav", "-o", "piece.codes", "--model", "runs/mine").exit_code == 0
    return here


def cut(arguments: list[str]) -> list[str]:
    """The arguments with at most SECONDS of music."""
    result = list(arguments)
    if arguments[0] != "sample":
        return result
    if not {"--seconds", "--edit"} & set(arguments):
        result += ["--seconds", str(SECONDS)]
    for i, word in enumerate(arguments[:-1]):
        if word in {"--seconds", "--before", "--after"}:
            result[i + 1] = str(min(float(arguments[i + 1]), SECONDS))
    return result


def put_small_run(values: dict[str, Any], tiny_run: Path) -> None:
    """Put a run where a training that does not run would write its own."""
    out = Path(values["out"] or Path("runs") / find_recipe(values["recipe"]).stem)
    if not out.exists():
        shutil.copytree(tiny_run, out)


def run_shell(block: Block, tiny_run: Path, whole: bool) -> None:
    for words in commands(block.text):
        arguments = arguments_of(words)
        if arguments is None:
            if block.not_run:
                continue
            if words[0] == "python":
                assert (ROOT / words[1]).is_file(), words
                continue
            assert words[0] in ALLOWED, f"{words}: mark the block `<!-- not run: reason -->`"
            line = " ".join(word if "*" in word else shlex.quote(word) for word in words)
            subprocess.run(line, shell=True, check=True, capture_output=True)
            continue
        name, values = check_options(arguments)
        if block.not_run:
            if name == "train":
                put_small_run(values, tiny_run)
            continue
        assert name != "train", f"{words}: it would train; mark the block `<!-- not run: reason -->`"
        if whole or name not in SLOW:
            result = cli(*(arguments if whole else cut(arguments)))
            assert result.exit_code == 0, (words, result.output, result.exception)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "whole"])
@pytest.mark.parametrize("page", [p for p in PAGES if any(True for _ in blocks(p.read_text()))], ids=NAMES.__getitem__)
def test_every_block_of_a_page_runs(page: Path, whole: bool, workspace: Path, tiny_run: Path) -> None:
    namespace: dict[str, Any] = {}
    for block in blocks(page.read_text()):
        if block.language in {"sh", "console"}:
            run_shell(block, tiny_run, whole)
        elif block.language == "python":
            assert not block.not_run, "snippets are run"
            if page.name == "README.md":  # which names these in a comment
                namespace |= readme_names()
            with contextlib.redirect_stdout(None):
                exec(compile(block.text, NAMES[page], "exec"), namespace)
        elif block.language == "yaml":
            Path("recipes/of-the-page.yaml").write_text(block.text)
            load_recipe("recipes/of-the-page.yaml")
        else:
            assert block.language in {"text", ""}, f"{block.language}: a block that nothing checks"


def readme_names() -> dict[str, Any]:
    import torch

    waveform = torch.from_numpy(tones(1, 44100)[:, 0])
    return {"waveform": waveform, "block": waveform[:22050]}


# --- code within sentences ----------------------------------------------------------------------------------------


def spans(page: Path) -> list[str]:
    """Inline code, outside of blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


OPTIONS = {
    option
    for command in (main, *main.commands.values())
    for p in command.params
    for option in [*p.opts, *p.secondary_opts]
}
FOREIGN = {"--nproc-per-node", "--max-restarts", "--logdir"}  # of other programs


@pytest.mark.parametrize("page", PAGES, ids=NAMES.__getitem__)
def test_options_and_commands_within_sentences_exist(page: Path) -> None:
    for span in spans(page):
        if span.startswith(("audiovq ", "torchrun ")) and "…" not in span and "ANYTHING" not in span:
            with contextlib.suppress(click.MissingParameter):  # a sentence may leave out arguments
                check_options(arguments_of(shlex.split(span.replace("RECIPE", "quickstart"))) or ["--help"])
        known = OPTIONS | FOREIGN | {"--help", "--version"}
        if match := re.match(r"python (benchmarks/\w+\.py)", span):
            known |= set(re.findall(r"--[a-z][\w-]*", (ROOT / match[1]).read_text()))
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in known, f"{span}: there is no {option}"
        for override in re.findall(r"--set (\S+=\S+)", span):
            name = "finetune" if page.stem == "finetune" else "quickstart"
            load_recipe(name, overrides=() if override == "key=value" else (override,))


def test_every_name_that_is_linked_exists() -> None:
    found = set()
    for page in PAGES:
        text = page.read_text()
        found |= set(re.findall(r"\]\[(audiovq[\w.]*)\]", text)) | set(
            re.findall(r"^::: (audiovq[\w.]*)", text, re.MULTILINE)
        )
    assert len(found) > 60
    for name in sorted(found):
        resolve(name)


def resolve(name: str) -> Any:
    """A module, class, function or method by its dotted path."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            place: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            place = getattr(place, part)
        return place
    raise AssertionError(f"{name} does not exist")


def test_every_test_that_a_promise_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (DOCS / "reference" / "promises.md").read_text()))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) >= 40
    assert {name for name in named if f"def {name}(" not in tests} == set()


def test_figures_in_the_idea_are_those_of_the_recipe() -> None:
    reached, text = (ROOT / "recipes" / "scratch.yaml").read_text(), (DOCS / "idea.md").read_text()
    for figure in ("4.85", "4.60", "0.56"):
        assert figure in reached, f"docs/idea.md quotes {figure} for the recipe scratch, whose header says otherwise"
        assert figure in text


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!python/name:\S+", "x", (ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"[\w/-]+\.md", json.dumps(yaml.safe_load(text)["nav"])))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    how_to = (DOCS / "how-to" / "index.md").read_text()
    assert all(f"({p.name})" in how_to for p in (DOCS / "how-to").glob("*.md") if p.name != "index.md")


# --- the notebook -----------------------------------------------------------------------------------------------------

NOTEBOOK = DOCS / "audiovq.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs"), "clear the notebook's outputs: jupyter nbconvert --clear-output --inplace"
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), NOTEBOOK.name, "exec")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(DOCS)}}).execute()
    printed = [o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", [])]
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    costs = {line.split()[0]: float(line.split()[1]) for line in "".join(printed).splitlines() if "(raw:" in line}
    assert costs["new"] < costs["shuffled"]
    assert costs["real"] < costs["shuffled"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"], cwd=ROOT, check=True)
    pages = (tmp_path / "site").rglob("*.html")
    for page in pages:
        loaded = re.findall(r'(?:src|href)="((?:https?:)?//[^"]+\.(?:js|css|woff2?))"', page.read_text())
        assert not loaded, f"{page.name} loads {loaded} from elsewhere"
