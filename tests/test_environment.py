"""Accounts, folders, terminals and encodings other than usual."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line_error, cli

from audiovq.recipe import header, load_recipe
from audiovq.utils import environment
from audiovq.utils.progress import say

PRINT = "import audiovq, getpass, os; print(getpass.getuser(), *map(os.environ.get, {names}), sep='\\n')"
NAMES = ["NUMBA_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME"]


def run_python(code: str, **environment: str) -> list[str]:
    """The lines that a program prints in an environment with these variables only."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_a_home_that_cannot_be_written_does_not_stop_libraries() -> None:
    code = PRINT.format(names=NAMES) + "; import librosa.core.notation, matplotlib; print(matplotlib.get_cachedir())"
    user, numba, matplotlib, cache, used = run_python(code, HOME="/proc/none", USER="ann")
    assert user == "ann"
    assert numba == matplotlib == used
    assert cache == "None"  # models that were downloaded before are found in the usual place
    assert not os.path.exists(numba)  # removed at the end
    found = run_python(
        PRINT.format(names=NAMES), HOME="/proc/none", USER="ann", NUMBA_CACHE_DIR="/a", MPLCONFIGDIR="/b"
    )
    assert found[1:3] == ["/a", "/b"]


def test_a_usual_home_is_left_alone(tmp_path: Path) -> None:
    for made in (False, True):
        if made:
            (tmp_path / ".cache").mkdir()
        found = run_python(PRINT.format(names=NAMES), HOME=str(tmp_path), USER="ann")
        assert found == ["ann", "None", "None", "None"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root may become a user without account")
def test_a_user_without_account_has_a_name_and_a_place_for_caches() -> None:
    """As in `docker run --user 54321`."""
    become = "import __future__, contextlib, getpass, importlib.util, logging, os, pathlib, tempfile, typing; tempfile.gettempdir(); os.setuid(54321); "
    name, *places = run_python(become + PRINT.format(names=NAMES))
    assert name == "54321"
    assert len(set(places)) == 1
    assert Path(places[0]).name.startswith("audiovq-")


def test_what_an_encoding_lacks_is_printed_in_another_way() -> None:
    code = "from audiovq.utils.environment import print_anything; print_anything(); print('1 ± 2 \\udce9')"
    assert run_python(code, PYTHONIOENCODING="ascii") == [r"1 \xb1 2 \udce9"]
    assert run_python(code, PYTHONIOENCODING="utf-8") == [r"1 ± 2 \udce9"]


def test_a_terminal_does_not_obey_names_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b]0;b\x07\x9b2J:cat:[red].wav"
    shown = r"a\x1b]0;b\x07\x9b2J:cat:[red].wav"
    say(f"left out: {name}")
    assert capsys.readouterr().err == f"left out: {shown}\n"
    assert_one_line_error(cli("encode", tmp_path / name, "-o", tmp_path / "a.codes", "--model", "default"), shown)


def test_a_current_folder_that_was_deleted_is_named(tmp_path: Path) -> None:
    code = "import os; os.rmdir(os.getcwd()); from audiovq.cli import main; main(['recipes'])"
    (tmp_path / "gone").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "gone", env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr == "audiovq: the current folder does not exist any more; change to another one\n"


def test_links_to_themselves_and_pipes_are_named(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert_one_line_error(
        cli("train", tiny_recipe, "--data", tmp_path / "loop", "--out", tmp_path / "run"), "no such folder"
    )
    os.mkfifo(tmp_path / "a.wav")
    result = cli("encode", tmp_path / "a.wav", "-o", tmp_path / "a.codes", "--model", "default")
    assert_one_line_error(result, "a.wav: expected an audio file, found a pipe or a device; write it to a file first")


def test_a_recipe_in_another_encoding_is_named_and_a_mark_is_ignored(tiny_recipe: Path, tmp_path: Path) -> None:
    text, path = tiny_recipe.read_text(), tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-16")  # as PowerShell writes
    assert_one_line_error(cli("plan", path), "a.yaml: expected a YAML text file in UTF-8, found")
    path.write_text("# Purpose: a test\n" + text, encoding="utf-8-sig", newline="\r\n")
    assert load_recipe(str(path)).tokenizer == load_recipe(str(tiny_recipe)).tokenizer
    assert header(path) == {"purpose": "a test"}


def test_what_windows_lacks_is_not_needed(tmp_path: Path) -> None:
    """Windows has fewer signals, no user ids and no /proc, and opens no folders; its users' names come from elsewhere."""
    code = """
import getpass, os, signal
import torch.distributed.run  # it knows what its system lacks
from pathlib import Path
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM"):
    delattr(signal, name)
del os.getuid, os.geteuid
def missing(): raise ImportError("No module named 'pwd'")
getpass.getuser = missing
from audiovq.utils import files, signals
from audiovq.distributed import launch
class Windows:
    name = "nt"
    def __getattr__(self, key): return getattr(os, key)
    def open(self, path, flags):
        if os.path.isdir(path): raise PermissionError(13, "Permission denied")
        return os.open(path, flags)
files.os = Windows()
os.path.exists = lambda path: not str(path).startswith("/proc")
with signals.deferred(), files.atomic_folder(Path("model")) as folder:
    (folder / "config.json").write_text("{}")
with files.atomic_file(Path("a.txt")) as path:
    path.write_text("1")
with files.utf8_path(Path("model")) as place:
    print(os.environ["USER"], sorted(os.listdir(".")), place)
"""
    code = f"import os; os.chdir({str(tmp_path)!r})\n{code}"
    assert run_python(code, HOME=str(tmp_path)) == ["user ['a.txt', 'model'] model"]


@pytest.mark.parametrize(
    ("quota", "expected"), [("150000 100000", 1), ("max 100000", 5), ("900000 100000", 5), ("", 5)]
)
def test_cores_are_those_that_a_container_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    monkeypatch.setattr(environment, "CGROUP_CPU", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert environment.cpu_count() == expected
