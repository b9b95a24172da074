"""The folder of a training run: it is used by one run at a time, and files that are not the run's are not replaced."""

from pathlib import Path

from omegaconf import OmegaConf

from medtune.config import to_plain
from medtune.data.folders import claim, finish_swap, note, noted, refuse_taken
from medtune.data.identity import named_paths
from medtune.data.locks import FileLock
from medtune.errors import CheckpointError, ConfigError
from medtune.training.config import TrainConfig

WRITER = "train"
WEIGHTS = ("weights", "best")
"""Folders that a run replaces as a whole."""
NAMES = (
    *WEIGHTS,
    "checkpoints",
    "exemplar",
    "config.yaml",
    "metrics.jsonl",
    "panels.json",
    "nonfinite_step_*.json",
    "summary.json",
)
"""Everything that a run writes into its folder."""
READ = ("checkpoint", "adapter", "model", "transform", "objective", "dataset", "dataset_val")
"""Keys of the config that name files which a run reads."""
_EXPORTED = (".safetensors", ".json", ".jinja", ".model", ".py")
_RUN_KEYS = {"model", "objective", "output_dir"}


def claim_run_folder(config: TrainConfig) -> FileLock:
    """Lock the run's ``output_dir`` and repair what a killed run left incomplete in it.

    Returns:
        The lock, which ends with the process; data workers do not inherit it.

    Raises:
        CheckpointError: If the folder cannot be made, or another run is using it.
        ConfigError: If it contains files that no run wrote under the names that the run would write, or the run would
            replace its own input. In this case nothing was written.
    """
    folder = Path(config.output_dir)
    _refuse_own_input(config, folder)
    try:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        taken = CheckpointError(f"{folder} is in use by another run; set another output_dir")
        lock = FileLock(folder / ".lock", taken)
    except OSError as error:
        raise CheckpointError(f"output_dir: cannot write into {folder}: {error}") from error
    try:
        claim(folder, WRITER, NAMES, is_run)
        for name in WEIGHTS:
            finish_swap(folder / name)
    except OSError as error:
        lock.close()
        raise CheckpointError(f"output_dir: cannot write into {folder}: {error}") from error
    except ConfigError:
        lock.close()
        raise
    return lock


def _refuse_foreign(folder: Path) -> None:
    refuse_taken(folder, WRITER, NAMES, is_run)
    for name in WEIGHTS:
        refuse_foreign_files(folder / name)


def is_run(folder: Path) -> bool:
    """Whether a folder without a record belongs to a run, judged by its checkpoints or its config."""
    if any(folder.glob("checkpoints/step_*/state.json")):
        return True
    try:
        found = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
    except Exception:  # errors of YAML or OmegaConf: in each case the file is not a run's config
        return False
    return isinstance(found, dict) and found.keys() >= _RUN_KEYS


def refuse_foreign_files(weights: Path) -> None:
    """Refuse to replace a folder of weights that contains files which no run wrote.

    Raises:
        ConfigError: Naming the files.
    """
    if not weights.is_dir():
        return
    listed = {name for name in noted(weights.parent, WRITER) if name.startswith(f"{weights.name}/")}
    found = [path for path in sorted(weights.rglob("*")) if path.is_file()]
    foreign = [path for path in found if not _is_ours(path.relative_to(weights.parent).as_posix(), listed)]
    if foreign:
        raise ConfigError(
            f"{weights} holds {', '.join(str(path.relative_to(weights)) for path in foreign[:3])}, which no run wrote, "
            f"and is replaced as a whole; move {'it' if len(foreign) == 1 else 'them'} away, or set another output_dir"
        )


def _is_ours(name: str, listed: set[str]) -> bool:
    """Whether a run wrote the file, judged by the record; without a record, by the file types of an export."""
    return name in listed if listed else name.endswith((*_EXPORTED, "/merges.txt"))


def note_weights(aside: Path, weights: Path) -> None:
    """Record the files of a new folder of weights, just before it replaces the old one."""
    folder = weights.parent
    if noted(folder, WRITER):
        names = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
        note(folder, WRITER, [f"{weights.name}/{name}" for name in names])


def _refuse_own_input(config: TrainConfig, folder: Path) -> None:
    """Refuse a run that would replace its own input."""
    for key in READ:
        for where, path in named_paths(to_plain(getattr(config, key)), key):
            for name in NAMES:
                target = (folder / name).resolve()
                if target in (path.resolve(), *path.resolve().parents):
                    raise ConfigError(
                        f"{where}: {path} lies in output_dir {folder}, whose {name} this run replaces; set another "
                        "output_dir, so that what the run starts from stays"
                    )
