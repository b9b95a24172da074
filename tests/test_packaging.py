"""What is installed: the wheel's contents, the declared requirements, and `tune run` from any folder."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

IMPORT_NAMES = {
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "prometheus-client": "prometheus_client",
    "rouge-score": "rouge_score",
    "scikit-learn": "sklearn",
    "websocket-client": "websocket",
}
CHECKOUT = Path(__file__).resolve().parent.parent
TUNE = Path(sys.executable).parent / "tune"
MARKER = "wheel_marker"


def requirements(name: str | None = None) -> set[str]:
    """The distributions that pyproject.toml asks for, in lower case."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] if name is None else project["optional-dependencies"][name]
    return {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in lines}


def imported(folder: Path) -> dict[str, str]:
    """Top-level names that the sources import, each with one file that does."""
    found = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {name.split(".")[0]: str(path) for name in names}
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        (
            "medtune",
            ["annotate", "curation", "dicom", "judges", "leakage", "routing", "serve", "transformers", "volumes"],
        ),
        ("recipes", []),
        ("tests", ["dev"]),
    ],
)
def test_everything_imported_is_required(folder: str, extras: list[str]) -> None:
    declared = requirements().union(*map(requirements, extras))
    known = {IMPORT_NAMES.get(name, name) for name in declared} | sys.stdlib_module_names | {"medtune", "tests"}
    known.add("network_guard")  # beside the sitecustomize that imports it
    for name, path in imported(CHECKOUT / folder).items():
        assert name in known, f"{path} imports {name}, which pyproject.toml does not require"


def test_nobody_imports_the_name_that_torchtune_owns() -> None:
    for folder in ("medtune", "recipes", "tests"):
        assert "recipes" not in imported(CHECKOUT / folder)
    assert not (CHECKOUT / "recipes" / "__init__.py").exists()


def test_constraints_pin_every_requirement_by_name_and_version_only() -> None:
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in pins)
    names = {line.split("==")[0].lower().replace("_", "-") for line in pins}
    assert (
        requirements().union(
            *map(requirements, ["annotate", "curation", "dev", "dicom", "judges", "mutants", "routing", "serve"]),
            *map(requirements, ["transformers", "volumes"]),
        )
        <= names
    )
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]


def test_the_two_symlinks_lead_to_the_top_level_folders() -> None:
    for name in ("recipes", "configs"):
        assert os.readlink(CHECKOUT / "medtune" / name) == f"../{name}"


def build(out: Path, *options: str) -> Path:
    """The wheel that the build backend writes, with the hatchling of this environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"), "--wheel")


@pytest.fixture(scope="module")
def installed_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own, with one more config by which it is told from the checkout."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    (target / "medtune" / "configs" / "instfree" / f"{MARKER}.yaml").write_text("# a marker\n")
    return target


@pytest.mark.slow
def test_a_wheel_built_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    assert sorted(zipfile.ZipFile(build(tmp_path)).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_wheel_holds_all_of_medtune_and_nothing_beside_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"medtune", next(top for top in tops if top.endswith(".dist-info"))}
    for folder in ("medtune", "recipes", "configs"):
        root = CHECKOUT / folder
        prefix = "medtune/" if folder == "medtune" else f"medtune/{folder}/"
        files = [p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert {prefix + path.relative_to(root).as_posix() for path in files} <= names


def tune_run(install: str, place: str, tmp_path: Path, request: pytest.FixtureRequest, *options: str) -> str:
    """What our recipe says on stderr to a config whose name only nearly exists, launched from one of three folders."""
    environment, parent = dict(os.environ), tmp_path / "parent"
    parent.mkdir()
    (parent / "medtune").symlink_to(CHECKOUT)  # a checkout that bears the package's name, as a clone does
    if install == "wheel":
        path = [str(request.getfixturevalue("installed_wheel")), environment["PYTHONPATH"]]
        environment["PYTHONPATH"] = os.pathsep.join(path)
    folder = {"checkout": CHECKOUT, "parent": parent, "elsewhere": Path("/")}[place]
    command = [TUNE, "run", *options, "medtune/recipes/instfree.py", "--config", f"instfree/{MARKER}_"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == (1 if options else 2), result.stderr
    return result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("install", ["editable", "wheel"])
@pytest.mark.parametrize("place", ["checkout", "parent", "elsewhere"])
def test_tune_run_finds_our_recipe_from_any_folder(
    install: str, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    said = tune_run(install, place, tmp_path, request)
    # The recipe ran and refused the config's name; only the wheel knows the marker that it is near to.
    assert f"error: config 'instfree/{MARKER}_'" in said
    assert (f"'instfree/{MARKER}'?" in said) == (install == "wheel")


@pytest.mark.slow
@pytest.mark.parametrize(("install", "place"), [("wheel", "elsewhere"), ("editable", "parent")])
def test_so_do_two_processes(install: str, place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    said = tune_run(install, place, tmp_path, request, "--nproc_per_node", "2")
    assert f"error: config 'instfree/{MARKER}_'" in said
    assert (f"'instfree/{MARKER}'?" in said) == (install == "wheel")
