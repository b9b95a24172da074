"""Contents of the files that a run reads besides data and base weights: the tokenizer and frozen companions."""

from pathlib import Path

from medtune.config import to_plain
from medtune.data.identity import files_identity, named_paths
from medtune.training.config import TrainConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "original/tokenizer.model",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
_COMPANION_FILES = ("*.safetensors", "*.json")


def content_files(config: TrainConfig) -> dict[str, dict[str, Path]]:
    """The files that a run reads, by kind and by name.

    ``tokenizer``: the files that ``transform`` names, and the files in the same folder that a tokenizer may read.
    ``companions``: the files that ``model`` and ``objective`` name (classes, a frozen model), and the weights and JSON
    files of the folders that they name.
    """
    tokenizer: dict[str, Path] = {}
    for _, path in named_paths(to_plain(config.transform)):
        folder = path if path.is_dir() else path.parent
        if path.is_dir() or path.name in TOKENIZER_FILES:
            tokenizer |= {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
        if path.is_file():
            tokenizer[path.name] = path
    companions: dict[str, Path] = {}
    for key in ("model", "objective"):
        for where, path in named_paths(to_plain(getattr(config, key)), key):
            companions |= {f"{where}/{file.name}": file for file in _companion(path)}
    return {"tokenizer": tokenizer, "companions": companions}


def _companion(path: Path) -> list[Path]:
    """The file itself, or the files of a folder of weights; a folder without weights has no companion files."""
    if path.is_file():
        return [path]
    found = [file for kind in _COMPANION_FILES for file in sorted(path.glob(kind)) if file.is_file()]
    return found if any(file.suffix == ".safetensors" for file in found) else []


def run_contents(config: TrainConfig) -> dict[str, dict[str, str]]:
    """SHA-256 of every file of :func:`content_files`, as a part of a run's identity."""
    return {key: files_identity(files) for key, files in content_files(config).items()}
