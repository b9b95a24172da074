"""Runs pytest in forks of this process, which has the libraries in memory already: importing them takes seconds.

Nothing of medtune is kept in memory across a fork, since it is what changes. The tests run in a copy of the checkout,
so that a mutant never touches the sources themselves.
"""

import contextlib
import filecmp
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WARM = (
    "torch",
    "torchvision",
    "torchtune.training",
    "torchtune.modules.peft",
    "torchao",
    "transformers",
    "tokenizers",
    "timm",
)
WARM_TOO = (
    "numpy",
    "pandas",
    "sklearn.metrics",
    "scipy.stats",
    "PIL.Image",
    "omegaconf",
    "safetensors.torch",
    "pytest",
)
TIMED_OUT = "timed out"


def warm_up() -> None:
    """Imports what tests import, without medtune; a library that is not installed is left to the tests."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    for name in (*WARM, *WARM_TOO):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def copy_checkout(root: Path, tree: Path) -> None:
    """Makes ``tree`` equal to the checkout's files, committed or not; equal files stay as they are."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-coz", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    names = {name for name in listed.stdout.split("\0") if name and os.path.lexists(root / name)}
    for path in [path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts]:
        if str(path.relative_to(tree)) not in names:
            path.unlink()
    for name in names:
        source, target = root / name, tree / name
        if source.is_symlink():
            if not target.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(os.readlink(source))
        elif not target.is_file() or not filecmp.cmp(source, target, shallow=False):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


@contextmanager
def changed(tree: Path, module: str, text: str) -> Iterator[None]:
    """The file with another text, and with a time of its own, so that nothing compiled before stands for it."""
    path = tree / module
    kept, times = path.read_bytes(), path.stat()
    try:
        path.write_text(text, encoding="utf-8")
        os.utime(path, (times.st_atime, times.st_mtime + 1000))
        yield
    finally:
        path.write_bytes(kept)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def forked(work: Callable[[], int], log: Path, limit: float) -> int | str:
    """Do work in a fork, with its output in a file.

    Returns:
        Its exit status, or ``TIMED_OUT``; then the fork, and every process that it started, is dead.
    """
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.setsid()
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(handle, stream)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, encoding="utf-8", closefd=False)
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    try:
        return _waited(child, time.monotonic() + limit)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)


def _waited(child: int, end: float) -> int | str:
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


def run_pytest(tree: Path, tests: Sequence[str], *, compiled: bool, plugin: Any = None) -> int:
    """Run tests of the copy, in a fork: nothing of the checkout that this process was started from is seen."""
    import pytest

    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("medtune", "tests", "recipes", "benchmark")
    ]:
        if name != "__main__":
            del sys.modules[name]
    here = os.getcwd()
    sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in ("", here))]
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "" if compiled else "1"}
    sys.dont_write_bytecode = not compiled
    os.chdir(tree)
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu", "-o", "addopts="]
    options += ["--import-mode=importlib", "--no-header", "--tb=short"]
    return int(pytest.main([*options, *tests], plugins=[] if plugin is None else [plugin]))
