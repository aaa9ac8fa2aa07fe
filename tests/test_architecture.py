"""The layers of the design, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "audiovq"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "config": 0, "stopping": 0, "terminal": 0, "windows": 0, "chance": 0, "piecewise": 0, "distributed": 0, "launch": 0,
    "data": 1, "tokenizer": 1, "prior": 1,
    "recipe": 2,
    "checkpoint": 3,
    "training": 4, "sampling": 4, "evaluation": 4,
    "api": 5,
    "run": 6, "test_set": 6, "sample_command": 6, "convert": 6, "generation_report": 6,
    "info": 7, "plan": 7,
    "cli": 8, "__main__": 9,
}  # fmt: skip


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Places within audiovq that a module imports."""
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("audiovq.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_module_imports_only_lower_layers(path: Path) -> None:
    mine = place(path)
    if mine == "__init__":
        return
    for other in imports(ast.parse(path.read_text())) - {mine}:
        assert other in LAYERS, f"{path}: {other} has no layer"
        assert LAYERS[other] < LAYERS[mine] or (LAYERS[mine] == 0 and LAYERS[other] == 0), f"{mine} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_inside_functions_but_in_cli(path: Path) -> None:
    if path.name in {"cli.py", "__init__.py"}:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            inner = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not inner, f"{path}:{node.lineno} {node.name} imports inside"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{path} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < 66, f"{path}: {node.name} is too long"


@pytest.mark.parametrize("folder", ["tokenizer", "prior"])
def test_networks_are_pure(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "open"}, f"{path}:{node.lineno} calls {node.func.id}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in {"cuda", "cpu", "mps"}, f"{path}:{node.lineno} names a device"


def test_no_pickle_anywhere() -> None:
    for path in MODULES:
        text = path.read_text()
        for word in ("import pickle", "torch.load(", "torch.save(", "allow_pickle=True", "weights_only=False"):
            assert word not in text, f"{path}: {word}"


def test_only_training_and_run_use_accelerate() -> None:
    users = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("accelerate"):
                users.add(place(path))
    assert users == {"training", "run"}
