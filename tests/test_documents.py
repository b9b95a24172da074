"""Every command that the documents and the configs' headers give can be run: its recipe, config and keys exist."""

import importlib
import re
import shlex
import typing
from pathlib import Path

import pytest

from medtune.cli import catalog
from medtune.cli.main import parser
from medtune.config import load_config

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def commands(text: str, program: str) -> list[list[str]]:
    """The lines that call a program, split as a shell would: continued lines joined, variables left out."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        start = line.find(f"{program} ")
        if start >= 0 and not line[:start].strip(" `$'"):
            found.append([word for word in shlex.split(line[start:].strip(" `"), comments=True) if word[0] != "$"])
    return found


def sources() -> list[tuple[str, str]]:
    """Name and text of everything that gives commands; of Markdown only the shell blocks."""
    texts = [
        (path.name, "\n".join(re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)))
        for path in DOCUMENTS
    ]
    return texts + [(entry.name, entry.header) for entry in catalog.configs() + catalog.recipes()]


def recipe_config(path: str) -> type:
    """The config class of a recipe file."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return next(iter(typing.get_type_hints(module.main.__wrapped__).values()))


def training_commands() -> list[tuple[str, list[str]]]:
    calls = [(name, call) for name, text in sources() for call in commands(text, "tune run")]
    return [(name, call) for name, call in calls if any(word.startswith("medtune/recipes/") for word in call)]


@pytest.mark.slow
def test_every_tune_run_line_names_a_recipe_a_config_and_keys_that_exist() -> None:
    calls = training_commands()
    assert len([name for name, _ in calls if name == "README.md"]) >= 7
    for name, call in calls:
        recipe = next(word for word in call if word.startswith("medtune/recipes/"))
        assert (CHECKOUT / "medtune" / "recipes" / Path(recipe).name).is_file(), f"{name}: {recipe}"
        place = call.index("--config")
        if call[place + 1].endswith(".yaml"):  # the reader's own, which tests/test_commands.py writes and runs
            assert name == "tutorial.md"
            continue
        load_config(call[place + 1], recipe_config(recipe), call[place + 2 :])


def test_every_medtune_line_is_one_that_the_command_understands() -> None:
    calls = [call for _, text in sources() for call in commands(text, "medtune")]
    assert {call[1] for call in calls} == {
        "ls",
        "cp",
        "show",
        "plan",
        "doctor",
        "ask",
        "serve",
        "annotate",
        "export",
        "report",
    }
    for call in calls:
        parser().parse_args(call[1:])


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), flags=re.M))
    for path in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", path.read_text(encoding="utf-8"), flags=re.M))
        assert named <= targets, f"{path.name}: {named - targets}"
