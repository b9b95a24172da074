"""Files that a VITask run writes next to its weights: the connector, and a record of its exemplars."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from medtune.data.opening import refuse_special
from medtune.data.writing import write_whole
from medtune.errors import ModelError
from medtune.models.weights import save_tensors
from medtune.modules.exemplar import EXEMPLARS, Exemplar, ExemplarConnector

CONNECTOR_NAME = "connector.safetensors"
RECORD_NAME = "exemplar.json"


@dataclass(frozen=True)
class ExemplarRecord:
    """How exemplars were used in training.

    Attributes:
        exemplar: Variant of the exemplars.
        tsm: Folder of the task-specific model.
    """

    exemplar: Exemplar
    tsm: str


def save_exemplars(folder: Path, connector: ExemplarConnector, record: ExemplarRecord) -> None:
    """Write a trained connector and its record; the folder is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({name: value.cpu() for name, value in connector.state_dict().items()}, folder / CONNECTOR_NAME)
    write_whole(folder / RECORD_NAME, json.dumps(asdict(record), indent=1) + "\n")


def load_record(folder: str | Path) -> ExemplarRecord:
    """Read the record.

    Raises:
        ModelError: If the folder holds no valid record.
    """
    refuse_special(Path(folder) / RECORD_NAME, ModelError)
    try:
        record = ExemplarRecord(**json.loads((Path(folder) / RECORD_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} holds no exemplars ({error}); name the exemplar folder of a VITask run") from error
    if record.exemplar not in EXEMPLARS:
        raise ModelError(f"{folder}: the exemplar {record.exemplar!r} is not one of {', '.join(EXEMPLARS)}")
    return record


def load_connector(folder: str | Path, feature_dim: int, where: str) -> ExemplarConnector:
    """Read the connector.

    Args:
        folder: As written by :func:`save_exemplars`.
        feature_dim: Width of the features that the connector must read.
        where: Source of the features, for messages.

    Raises:
        ModelError: If the file is damaged, or the connector was made for features of another width.
    """
    refuse_special(Path(folder) / CONNECTOR_NAME, ModelError)
    try:
        state = load_file(Path(folder) / CONNECTOR_NAME)
        wide, dim = len(state["norm.weight"]), len(state["linear_2.bias"])
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{folder} holds no whole connector ({error}); copy it again") from error
    if wide != feature_dim:
        raise ModelError(
            f"{where} gives features of width {feature_dim}, the connector of {folder} reads {wide}; take a "
            "task-specific model of that width"
        )
    connector = ExemplarConnector(wide, dim)
    connector.load_state_dict(state)
    return connector
