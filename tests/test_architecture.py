"""The floors of the design, read from the imports themselves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "audiovq"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A module imports only from rooms on lower floors. Rooms on one floor never import each other.
FLOORS = [
    {"utils"},
    {"config", "distributed"},
    {"data", "tokenizer", "prior"},
    {"recipe"},
    {"pretrained"},
    {"training", "sampling"},
    {"api", "planning"},
    {"evaluation"},
    {"report", "live", "web"},
    {"pipeline", "studio"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
LOOSE = {"__init__.py", "__main__.py", "config.py", "recipe.py"}
LONGEST_CHAIN = 12
CORE = [
    "tokenizer/vqvae.py",
    "tokenizer/quantizer.py",
    "tokenizer/encoder.py",
    "tokenizer/decoders.py",
    "prior/prior.py",
    "prior/transformer.py",
    "sampling/generate.py",
    "training/loop.py",
]


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
def test_module_imports_only_lower_floors(path: Path) -> None:
    mine = place(path)
    if mine in {"__init__", "__main__"}:
        return
    for other in imports(ast.parse(path.read_text())) - {mine}:
        assert FLOOR[other] < FLOOR[mine], f"{path}: {mine} imports {other}"


def test_only_few_modules_stand_outside_the_rooms() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == LOOSE


def module_graph() -> dict[str, set[str]]:
    """Each module with the modules of the package that it imports at its top."""
    names = {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in MODULES
    }
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {w if w in names else node.module for w in wanted if w in names or node.module in names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names if alias.name in names}
        graph[name] = found - {name}
    return graph


def test_imports_have_no_circles_and_no_long_chains() -> None:
    graph, chains = module_graph(), dict[str, list[str]]()

    def chain(name: str, above: tuple[str, ...] = ()) -> list[str]:
        assert name not in above, f"circle: {' > '.join([*above, name])}"
        if name not in chains:
            below = [chain(other, (*above, name)) for other in graph[name]]
            chains[name] = [name, *max(below, key=len, default=[])]
        return chains[name]

    longest = max((chain(name) for name in graph), key=len)
    assert len(longest) <= LONGEST_CHAIN, " > ".join(longest)


def test_the_core_can_be_read_in_one_sitting() -> None:
    lines = {name: len((PACKAGE / name).read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) <= 1500, lines


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_inside_functions_but_in_cli(path: Path) -> None:
    if path.parent.name == "cli" or path.name == "__init__.py":
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
            assert node.end_lineno - node.lineno < 81, f"{path}: {node.name} is too long"


@pytest.mark.parametrize("folder", ["tokenizer", "prior"])
def test_networks_are_pure(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "open"}, f"{path}:{node.lineno} calls {node.func.id}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in {"cuda", "cpu", "mps"}, f"{path}:{node.lineno} names a device"


FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {
    "torch": {"load", "save"}, "torch.jit": {"load"}, "torch.hub": {"load"}, "torch.package": {"PackageImporter"},
    "torch.export": {"load"}, "os": {"system", "popen"},
    "yaml": {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"},
}  # fmt: skip


def dangers(tree: ast.AST) -> list[str]:
    """What in a module could run what a file says."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names = [*names, node.module or ""] if isinstance(node, ast.ImportFrom) else names
            found += [f"{node.lineno}: imports {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        place, _, last = name.rpartition(".")
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        numpy_load = name in {"np.load", "numpy.load"} and keywords.get("allow_pickle") != "False"
        if name in FORBIDDEN_CALLS or last in FORBIDDEN_METHODS.get(place, ()) or numpy_load:
            found.append(f"{node.lineno}: {name}()")
        found += [f"{node.lineno}: {k}" for k in ("trust_remote_code", "shell") if keywords.get(k, "False") != "False"]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_in_a_file_can_run(path: Path) -> None:
    assert dangers(ast.parse(path.read_text())) == []


@pytest.mark.parametrize("code", [
    "import pickle", "from pickle import loads", "import torch\ntorch.load(f)", "eval(x)", "yaml.load(t, Loader=L)",
    "np.load(f)", "np.load(f, allow_pickle=True)", "os.system(x)", "subprocess.run(x, shell=True)",
])  # fmt: skip
def test_what_could_run_is_found(code: str) -> None:
    assert len(dangers(ast.parse(code))) == 1


def users(package: str) -> set[Path]:
    """Modules that import a package."""
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == package for name in names):
                found.add(path)
    return found


def test_only_training_and_run_use_accelerate() -> None:
    assert {place(path) for path in users("accelerate")} == {"training", "pipeline"}


def test_only_the_studio_serves() -> None:
    for package in ("fastapi", "starlette", "uvicorn"):
        assert {place(path) for path in users(package)} <= {"studio"}
    assert not users("gradio")
