"""Adapters of one base model, from PEFT folders and from run folders, with what identifies them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.config import to_plain
from medtune.data.writing import file_sha256
from medtune.errors import ConfigError, ModelError
from medtune.export import Trained, trained_adapter
from medtune.models.common.family import ModelFamily
from medtune.models.lora.merge import Adapter
from medtune.models.lora.peft import WEIGHTS_NAME, read_peft
from medtune.models.lora.peft_config import CONFIG_NAME, read_config
from medtune.routing.extension import BASE
from medtune.training.fingerprint import base_fingerprint
from medtune.trust import trusting

RESERVED = (BASE, "auto")
"""Names with a meaning of their own: the model without an adapter, and the adapter that a router chooses."""


@dataclass(frozen=True)
class AdapterFolder:
    """One adapter on disk.

    Attributes:
        name: Name of the adapter.
        path: Folder of a PEFT adapter, of a training run, or of one of its checkpoints.
    """

    name: str
    path: Path

    @property
    def _is_peft(self) -> bool:
        return (self.path / CONFIG_NAME).is_file()

    def identity(self) -> dict[str, Any]:
        """Return the checksums of the files on which the adapter depends."""
        if self._is_peft:
            return {name: {"sha256": file_sha256(self.path / name)} for name in (WEIGHTS_NAME, CONFIG_NAME)}
        _, trained = self._trained()
        file = trained.checkpoint / "model.safetensors"
        return {file.name: {"sha256": file_sha256(file)}, "model": to_plain(trained.config.model)}

    def read(self, family: ModelFamily, checkpoint: str) -> Adapter:
        """Read the adapter.

        Args:
            family: Family of the base model.
            checkpoint: The base weights that it will be used on.

        Raises:
            ModelError: If it cannot be read, or belongs to another family or to other base weights.
        """
        if self._is_peft:
            adapter = self._of_family(family)
            base = read_config(self.path).get("base_model_name_or_path")
            known = base_fingerprint(base) if isinstance(base, str) and _is_other_model(base, checkpoint) else None
        else:
            adapter, trained = self._trained()
            base, known = trained.config.checkpoint, trained.values.get("identity", {}).get("weights")
            if trained.family.name != family.name:
                raise ModelError(
                    f"adapter {self.name!r} ({self.path}) is of a {trained.family.name}, the base is a {family.name}"
                )
        if known is not None and known != base_fingerprint(checkpoint):
            raise ModelError(
                f"adapter {self.name!r} ({self.path}) was trained on other base weights ({base}) than {checkpoint}; "
                "name those as checkpoint, or leave the adapter out"
            )
        return adapter

    def _trained(self) -> tuple[Adapter, Trained]:
        with trusting():
            return trained_adapter(self.path, _silent)

    def _of_family(self, family: ModelFamily) -> Adapter:
        try:
            return read_peft(self.path, family)
        except ModelError as error:
            raise ModelError(f"adapter {self.name!r}: {error}") from error


def adapter_folders(adapters: Mapping[str, str]) -> list[AdapterFolder]:
    """Return the adapters of a config, name -> folder.

    Raises:
        ConfigError: If there is none, a name is reserved or empty, or a folder holds neither an adapter nor a run.
    """
    if not adapters:
        raise ConfigError("adapters is empty; give {name: folder}, or use the model without a routing backend")
    found = [AdapterFolder(name, Path(path).expanduser()) for name, path in adapters.items()]
    for folder in found:
        if folder.name in RESERVED or not folder.name.strip():
            raise ConfigError(f"an adapter cannot be named {folder.name!r}; the name has a meaning of its own")
        run = folder.path.parent.parent if folder.path.name.startswith("step_") else folder.path
        if not (folder.path / CONFIG_NAME).is_file() and not (run / "config.yaml").is_file():
            raise ConfigError(
                f"adapters.{folder.name}: {folder.path} holds no {CONFIG_NAME} and is not the folder of a training run"
            )
    return found


def _is_other_model(base: str, checkpoint: str) -> bool:
    """Whether an adapter's base is a model on this machine in another place than the checkpoint."""
    folder = Path(base)
    return any(folder.glob("*.safetensors")) and folder.resolve() != Path(checkpoint).resolve()


def _silent(text: str) -> None:
    """Damaged checkpoints are passed over, as by an export; the checksum tells which one was read."""
