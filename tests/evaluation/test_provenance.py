"""Where a number comes from: what a stamp holds, and what is left out."""

import os
import platform
from importlib import metadata
from pathlib import Path

import pytest

from medtune.evaluation import provenance


def test_a_stamp_has_the_command_commit_versions_and_hardware() -> None:
    found = provenance.stamp("benchmark/x.py", ["--rounds", "3"])
    assert found.keys() == {"command", "commit", "versions", "hardware"}
    assert found["command"] == "python benchmark/x.py --rounds 3"
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["hardware"].keys() == {"machine", "system", "processor", "cores"}
    assert found["hardware"]["machine"] == platform.machine() and found["hardware"]["cores"] == os.cpu_count()


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package-of-anybody", "numpy"))
    assert provenance.versions().keys() == {"python", "numpy"}


def test_a_commit_is_a_hash_that_tells_of_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = {"rev-parse": "abc123", "status": " M medtune/x.py"}
    (tmp_path / ".git").mkdir()
    (tmp_path / "medtune" / "evaluation").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "medtune" / "evaluation" / "provenance.py"))
    monkeypatch.setattr(provenance, "_git", lambda folder, *arguments: said[arguments[0]])
    assert provenance.commit() == "abc123-dirty"
    said["status"] = ""
    assert provenance.commit() == "abc123"
    (tmp_path / ".git").rmdir()
    assert provenance.commit() is None, "an installed package may lie inside somebody else's checkout"
