"""Where the result of a run's data check is kept, and what the result depends on apart from the image files."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from medtune.config import PACKAGE, import_path, to_plain
from medtune.data.preflight_record import Record
from medtune.data.source import SampleSource, image_roots
from medtune.data.writing import file_sha256
from medtune.errors import ConfigError
from medtune.objectives.base import Stage
from medtune.training.config import TrainConfig

AUTO = "auto"
_CODE = ("data", "datasets", "models", "objectives")
_PACKAGES = ("pillow", "tokenizers", "sentencepiece", "torchtune", "tiktoken", "pydicom", "numpy")
_LARGE = 1 << 28
_SETTINGS = (".json", ".jsonl", ".model", ".txt", ".jinja", ".tiktoken", ".yaml")


def check_record(config: TrainConfig, source: SampleSource, stages: Sequence[Stage]) -> Record | None:
    """The record of the check of one data set.

    It is None if the config asks for no record, if the source does not know its images, or if the default folder for
    records is inside the image folder (for example with an image root of ``/``).

    The result of the check depends on the samples, the image root, the transform, the method, the files that these
    name, the seed, the code, and the images. The images are compared file by file.

    Args:
        config: ``preflight_cache``, ``transform``, ``objective``, ``model`` and ``seed`` are read.
        source: The samples.
        stages: The stages of the run.

    Raises:
        ConfigError: If the folder that the config names is inside the image folder.
    """
    roots = image_roots(source)
    if config.preflight_cache is None or roots is None:
        return None
    folder = cache_folder(config.preflight_cache)
    around = [root for root in roots if folder.resolve().is_relative_to(root)]
    if around and config.preflight_cache == AUTO:
        return None
    if around:
        raise ConfigError(f"preflight_cache: {folder} lies inside the image root {around[0]}; name a folder outside")
    parts = [to_plain(part) for part in (config.transform, config.objective, config.model)]
    made_of = {
        "data": [source.name, source.fingerprint()],
        "roots": roots,
        "parts": parts,
        "files": {str(path): _contents(path) for path in sorted(set(_named_files(parts)))},
        "stages": [stage.name for stage in stages],
        "seed": config.seed,
        "code": code_digest([*parts, to_plain(config.dataset), to_plain(config.dataset_val)]),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    return Record(folder, source.name, made_of)


def cache_folder(name: str) -> Path:
    """The folder that ``preflight_cache`` names."""
    if name != AUTO:
        return Path(name).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medtune" / "preflight"


def code_digest(parts: Any) -> str:
    """SHA-256 of the code that the result of a check depends on: medtune's, and that of components from elsewhere."""
    files = {path for name in _CODE for path in (PACKAGE / name).rglob("*.py")}
    for name in _components(parts):
        module = getattr(import_path(name), "__module__", "").partition(".")[0]
        if module != PACKAGE.name:
            files |= _module_files(name)
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}|{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _module_files(name: str) -> set[Path]:
    module = sys.modules.get(getattr(import_path(name), "__module__", ""))
    path = getattr(module, "__file__", None)
    return {Path(path)} if path else set()


def _components(node: Any) -> Iterator[str]:
    """The path of every component, at any depth."""
    if isinstance(node, dict):
        if isinstance(node.get("_component_"), str):
            yield node["_component_"]
        for value in node.values():
            yield from _components(value)
    elif isinstance(node, list):
        for value in node:
            yield from _components(value)


def _named_files(node: Any) -> Iterator[Path]:
    """Every file that a component names; for a folder (such as a checkpoint), the small files with settings in it."""
    if isinstance(node, str) and node:
        if os.path.isfile(path := os.path.expanduser(node)):
            yield Path(path)
        elif os.path.isdir(path):
            yield from (inside for inside in Path(path).iterdir() if inside.suffix in _SETTINGS and inside.is_file())
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _named_files(value)


def _contents(path: Path) -> str:
    """Identity of a file's contents: its SHA-256, or, for a large file such as weights, its size and time."""
    status = path.stat()
    return f"{status.st_size}|{status.st_mtime_ns}" if status.st_size > _LARGE else file_sha256(path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
