"""The API reference is built without network and without a complaint, and holds every public module."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
api = SimpleNamespace(**runpy.run_path(str(CHECKOUT / "docs" / "api.py"), run_name="api"))


def public_files() -> dict[str, Path]:
    """Every module of the source tree without an underscore in its path, found by its file."""
    found = {}
    for folder, prefix in ((CHECKOUT / "medtune", "medtune"), (CHECKOUT / "recipes", "medtune.recipes")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(part.startswith("_") for part in parts):
                found[".".join((prefix, *parts))] = path
    return found


def test_every_public_module_is_named_once() -> None:
    names = api.modules()
    assert len(names) == len(set(names)) and set(names) == set(public_files())
    assert {"medtune.objectives.instfree", "medtune.models.llama3_2_vision", "medtune.recipes.instfree"} <= set(names)


@pytest.mark.slow
def test_the_pages_are_written_without_a_warning(tmp_path: Path) -> None:
    files = public_files()
    assert api.write(tmp_path) == []
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in files:
        page = f"{name.replace('.', '/')}.html"
        assert f'href="{page}"' in index and (tmp_path / page).is_file(), name
    shown = (tmp_path / "medtune/objectives/instfree.html").read_text(encoding="utf-8")
    assert "the number of proxy vectors" in shown and "after_step" in shown
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src=|<link[^>]*href=|url\()["']?https?:""", text), f"{page} loads from the network"
        assert not re.search(r":(?:class|func|mod|meth):", text), f"{page} shows markup"


def test_the_command_fails_where_there_is_a_complaint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(api.main.__globals__, "write", lambda out: ["a docstring cannot be read"])
    assert api.main([str(tmp_path)]) == 1
    assert "a docstring cannot be read" in capsys.readouterr().err
