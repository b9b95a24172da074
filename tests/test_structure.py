"""What CONTRIBUTING promises of the code's structure: floors, sizes, annotations, docstrings."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medtune"
FILE_LINES, FUNCTION_LINES, FILE_MEDIAN = 400, 60, 150

# From the ground up. A module imports from its own floor and those below it, never from above.
FLOORS = (
    ("errors", "aliases", "masking", "progress", "trust", "config", "data", "modules", "losses"),
    ("models", "datasets", "clients"),
    ("objectives", "generation", "evaluation", "judges"),
    (
        "training", "reporting", "sweep", "sweep_config", "sweep_report", "curation", "routing", "export", "conversion",
        "verification",
    ),
    ("cli", "catalog", "doctor", "demo", "serving", "annotate", "recipes"),
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# Imports inside a function that break a rule on purpose, each with its reason.
ALLOWED: dict[tuple[str, str], str] = {}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OWN = [path for path in sources("medtune") if "recipes" not in path.relative_to(PACKAGE).parts[:1]]
EVERY = [*OWN, *sources("recipes", "tests", "benchmark", "docs")]


def unit(path: Path) -> str:
    """The package or module of medtune that a file belongs to; a top-level recipe belongs to ``recipes``."""
    if path.is_relative_to(ROOT / "recipes"):
        return "recipes"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports of medtune, however deep the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "medtune":
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "medtune")


def upward(path: Path) -> list[str]:
    """Imports of a file that go up."""
    own = unit(path)
    found = []
    for name in imported(path):
        parts = name.split(".")
        if len(parts) > 1 and LEVEL.get(parts[1], -1) > LEVEL[own] and (own, parts[1]) not in ALLOWED:
            found.append(name)
    return found


def test_every_package_has_a_floor() -> None:
    units = {unit(path) for path in OWN} - {"__init__", "__main__", "_version"}
    assert sorted(units - LEVEL.keys()) == [], "give the new package a floor"


@pytest.mark.parametrize("path", [p for p in OWN if p.parent != PACKAGE or p.stem in LEVEL], ids=lambda p: p.name)
def test_nothing_imports_upwards(path: Path) -> None:
    assert upward(path) == []


def test_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "medtune" / "losses" / "wrong.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text("def f():\n    from medtune.training.trainer import Trainer\n")
    monkeypatch.setattr("tests.test_structure.ROOT", tmp_path)
    monkeypatch.setattr("tests.test_structure.PACKAGE", tmp_path / "medtune")
    assert upward(wrong) == ["medtune.training.trainer.Trainer"]


def test_no_method_imports_another() -> None:
    methods = {path.stem.split("_")[0] for path in (PACKAGE / "objectives").glob("*.py")} - {"", "base", "companions"}
    methods |= {path.name for path in (PACKAGE / "objectives").iterdir() if path.is_dir()} - {"__pycache__"}
    for path in (PACKAGE / "objectives").rglob("*.py"):
        own = path.relative_to(PACKAGE / "objectives").parts[0].removesuffix(".py").split("_")[0]
        if own not in methods:
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[1] == "objectives" and len(parts) > 3:
                other = parts[2].split("_")[0]
                assert other == own or other not in methods, f"{path.name} imports {name}"


def test_files_are_small() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in EVERY}
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > FILE_LINES} == {}
    own = sorted(lengths[path] for path in OWN)
    assert own[len(own) // 2] <= FILE_MEDIAN


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring and its signature, which a builder's arguments make long."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{function.name}": code_lines(function)
        for path in EVERY
        for function in functions(path)
        if code_lines(function) > FUNCTION_LINES
    }
    assert found == {}


def test_public_names_have_docstrings_and_annotations() -> None:
    bare, unannotated = [], []
    for path in [*OWN, *sources("recipes")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
        for node in public:
            where = f"{path.relative_to(ROOT)}:{node.name}"
            if ast.get_docstring(node) is None:
                bare.append(where)
            if isinstance(node, ast.FunctionDef) and node.returns is None:
                unannotated.append(where)
    assert bare == [] and unannotated == []


def test_no_attribute_is_probed_to_tell_what_a_model_is() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in OWN
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[0], ast.Name)
        and node.args[0].id in ("model", "classifier", "vlm")
        and path.name != "timm_models.py"  # timm's models are asked there
    ]
    assert found == []
