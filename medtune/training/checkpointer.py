"""The checkpoints of a run: what they contain, whether one belongs to this run, and how it is restored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medtune.config import to_plain
from medtune.data.identity import named_paths
from medtune.errors import CheckpointError
from medtune.masking import masked
from medtune.training import checkpoints, optimization
from medtune.training.adapter import adapter_identity
from medtune.training.building import base_fingerprint
from medtune.training.checkpoints import TrainingState
from medtune.training.config import TrainConfig
from medtune.training.contents import content_files, run_contents
from medtune.training.data import BatchLoader
from medtune.training.runtime import Runtime


def identity(config: TrainConfig, feed: BatchLoader, validation: BatchLoader | None = None) -> dict[str, Any]:
    """The settings and contents that must be equal so that a run can continue from a checkpoint."""
    shown = {key: value for key, value in to_plain(config.transform).items() if key != "path"}  # a folder may move
    held_out = {}
    if validation:
        held_out = {"validation": validation.source.fingerprint(), "usable_validation": validation.checked.usable}
    return _hidden(
        {
            "model": to_plain(config.model),
            "weights": base_fingerprint(config.checkpoint),
            "adapter": adapter_identity(config),
            "objective": to_plain(config.objective),
            "data": feed.source.fingerprint(),
            "usable": feed.checked.usable,
            "trainable": config.trainable,
            **({"frozen": config.frozen} if config.frozen else {}),
            "optimizer": config.optimizer.path,
            "seed": config.seed,
            "dtype": config.dtype,
            "global_batch": feed.plan.global_batch,
            "sampling": config.sampling,
            "bucket": config.bucket,
            "transform": shown,
            **run_contents(config),
            **held_out,
        }
    )


def _hidden(values: dict[str, Any]) -> dict[str, Any]:
    """An identity with credentials masked in what comes from the config; digests by file name stay."""
    return {
        key: masked(value) if key in ("model", "objective", "transform") else value for key, value in values.items()
    }


def _files(node: Any) -> list[str]:
    """Every file that a component names, at any depth."""
    return [str(path) for _, path in named_paths(to_plain(node)) if path.is_file()]


class Checkpointer:
    """The checkpoints of one run.

    Args:
        config: ``output_dir``, ``keep_checkpoints`` and ``resume`` are read.
        runtime: All processes call the methods; the first one looks for checkpoints and writes them.
        run_identity: See :func:`identity`.
    """

    def __init__(self, config: TrainConfig, runtime: Runtime, run_identity: dict[str, Any]) -> None:
        self.folder = Path(config.output_dir) / "checkpoints"
        self.config, self.runtime, self.identity = config, runtime, run_identity

    def newest(self, warn: Callable[[str], None]) -> tuple[Path, TrainingState] | None:
        """The checkpoint to continue, or None for a new run.

        Raises:
            CheckpointError: If it belongs to another run, or ``resume`` does not allow what was found.
        """
        path = self.runtime.on_rank0(lambda: self._chosen(warn))
        return (path, self.runtime.on_all_ranks(lambda: checkpoints.load_checkpoint(path))) if path else None

    def _chosen(self, warn: Callable[[str], None]) -> Path | None:
        path = checkpoints.newest_checkpoint(self.folder, warn)
        if path is None:
            if self.config.resume == "must":
                raise CheckpointError(f"resume=must, but {self.folder} holds no whole checkpoint")
            return None
        if self.config.resume == "never":
            raise CheckpointError(
                f"{self.folder.parent} already holds a run ({path.name}); set another output_dir or resume=auto"
            )
        config = self.config
        files = {
            "data": _files(config.dataset),
            "validation": _files(config.dataset_val),
            "weights": [config.checkpoint] if config.checkpoint else [],
            **{key: list(map(str, held.values())) for key, held in content_files(config).items()},
        }
        checkpoints.check_identity(path, _hidden(checkpoints.load_values(path)["identity"]), self.identity, files)
        return path

    def save(
        self, parameters: dict[str, nn.Parameter], optimizer: Optimizer, objective: nn.Module, values: dict[str, Any]
    ) -> None:
        """Write everything that may have changed so far. A collective.

        Args:
            parameters: The model's, by name; those of the objective are saved with its state dict.
            optimizer: Its state is saved by parameter name.
            objective: Replicated on every process.
            values: Plain values; ``step`` names the checkpoint.

        Raises:
            CheckpointError: On every process, if writing fails.
        """
        model = self.runtime.collect(parameters.items())
        names = {id(p): name for name, p in [*parameters.items(), *objective.named_parameters()]}
        state, numbers = optimization.optimizer_state(optimizer, names)
        tensors = self.runtime.collect(state)
        values = {**values, "optimizer_numbers": numbers, "identity": self.identity, "world": self.runtime.world}

        def write() -> None:
            own = self.runtime.collect(objective.state_dict().items())
            checkpoints.save_checkpoint(
                self.folder, TrainingState(model, tensors, own, values), self.config.keep_checkpoints
            )

        self.runtime.on_rank0(write)


def put_back(path: Path, saved: dict[str, Tensor], named: dict[str, nn.Parameter], device: torch.device) -> None:
    """Copy saved parameters into the model's.

    Raises:
        CheckpointError: If the model has no such parameter.
    """
    for name, value in saved.items():
        if name not in named or named[name].shape != value.shape:
            raise CheckpointError(f"checkpoint {path}: the model has no parameter {name} of shape {tuple(value.shape)}")
        with torch.no_grad():
            named[name].copy_(optimization.like(value.to(device), named[name]))
