"""What a user means by MODEL on the command line: a run's folder, an exported folder, or a config."""

from pathlib import Path
from typing import Literal

from medtune.config.composition import resolve_path
from medtune.errors import ConfigError
from medtune.models.published_config import CONFIG_NAME

Kind = Literal["run", "exported", "config"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def kind_of(name: str) -> Kind:
    """Tell a run's folder, an exported folder and a config apart.

    Args:
        name: A path, or the name of a packaged config.

    Raises:
        ConfigError: If it is none of them.
    """
    folder = Path(name).expanduser()
    if (folder / "config.yaml").is_file():
        return "run"
    if (folder / CONFIG_NAME).is_file():
        return "exported"
    if folder.is_dir():
        raise ConfigError(f"{folder} holds neither a run's config.yaml nor an exported model's {CONFIG_NAME}")
    try:
        resolve_path(name)
    except ConfigError as error:
        if "neither a file" not in str(error):
            raise
        raise ConfigError(
            f"{name} is no run's folder (the output_dir of a training), no folder of an exported checkpoint, and no "
            f"config: {error}"
        ) from None
    return "config"


def check_exported(folder: Path, processor: bool = False) -> None:
    """Check that an exported folder has what turns a question into tokens.

    Args:
        folder: A folder with a ``config.json``.
        processor: Whether transformers' image processor is needed too.

    Raises:
        ConfigError: If files are missing; it says what to name instead.
    """
    lacking = [] if any((folder / name).is_file() for name in TOKENIZER_FILES) else ["tokenizer (tokenizer.json)"]
    if processor and not any((folder / name).is_file() for name in PROCESSOR_FILES):
        lacking.append("image processor (preprocessor_config.json)")
    if lacking:
        raise ConfigError(
            f"{folder} has no {' and no '.join(lacking)}: an export of a mini model and weights alone have none. Name "
            "the run that it was exported from, or a config with model, transform and checkpoint (predict/mini, "
            "serve/mini); for a published model, copy these files from the folder of the base weights"
        )
