"""Provenance of a result: versions, commit, machine. It contains no host or user names."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("medtune", "torch", "torchtune", "torchao", "transformers", "numpy", "scikit-learn", "scipy", "pillow")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result may depend on, without missing packages."""
    by_package = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            by_package[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return by_package


def commit() -> str | None:
    """Return the commit of this package's checkout, with ``-dirty`` for local changes; None without a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():  # an installed package may be inside another project's checkout
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def hardware() -> dict[str, Any]:
    """Return processor and number of cores of this machine."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }


def stamp(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the provenance of a benchmark's result: command, commit, versions and hardware."""
    command = " ".join(["python", script, *arguments])
    return {"command": command, "commit": commit(), "versions": versions(), "hardware": hardware()}


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
