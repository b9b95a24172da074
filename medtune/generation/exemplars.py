"""Exemplars at inference: what a VITask run learned to put beside an image (VITask, section 4; its plug, 5.3)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from medtune.errors import DataError
from medtune.generation.engine.batches import PromptBatch
from medtune.generation.identity import weights_identity
from medtune.generation.prompt_extension import PromptExtension
from medtune.generation.requests import Request
from medtune.models.exemplars import load_connector, load_record
from medtune.modules.exemplar import Exemplar, ExemplarConnector, TokenRows, exemplar_rows

if TYPE_CHECKING:
    from medtune.models.classifier.tsm import TaskModel


@dataclass(frozen=True)
class ExemplarSource:
    """Where exemplars come from; named in a config, opened by :meth:`open`.

    Attributes:
        path: The ``exemplar`` folder of a VITask run.
        tsm: Folder of another task-specific model in place of the run's own (``VITask-plug``); its features must be as
            wide. The language model is not tuned again.
    """

    path: str
    tsm: str | None = None

    def identity(self) -> dict[str, Any]:
        """Connector, variant and task-specific model."""
        record = load_record(self.path)
        tsm = weights_identity(self.tsm or record.tsm, beside=("*.json",))
        return {"connector": weights_identity(self.path), "exemplar": record.exemplar, "tsm": tsm}

    def open(self, transform: Any, device: torch.device) -> "Exemplars":
        """Load connector and task-specific model.

        Args:
            transform: The language model's.
            device: Where both shall run; they stay in fp32.

        Raises:
            ModelError: If a folder does not hold what it should, or the connector was made for other features.
        """
        from medtune.models.classifier.tsm import load_tsm  # timm takes seconds to import, and other runs need none

        record = load_record(self.path)
        folder = self.tsm or record.tsm
        tsm = load_tsm(folder)
        wide = tsm.feature_dim("cls" if record.exemplar == "cls" else "all")
        connector = load_connector(self.path, wide, folder)
        return Exemplars(tsm.to(device), connector.to(device).eval(), record.exemplar, transform)


class Exemplars(PromptExtension):
    """Adds exemplars to prompts; they depend on a prompt's images alone, so prompts on one image share them.

    Args:
        tsm: Frozen, on the device of the prompts.
        connector: On the same device.
        exemplar: Variant.
        transform: Gives the ids of image, placeholder and padding.
    """

    def __init__(self, tsm: "TaskModel", connector: ExemplarConnector, exemplar: Exemplar, transform: Any) -> None:
        self.tsm, self.connector, self.exemplar = tsm, connector, exemplar
        self.image_id, self.placeholder_id, self.pad_id = transform.image_id, transform.placeholder_id, transform.pad_id

    def prepare(self, request: Request, images: list[Image.Image], prompt: dict[str, Any]) -> Tensor:
        """The task-specific model's pixels [3, h, w] of a prompt's last image.

        Raises:
            DataError: If there is none.
        """
        if not images:
            raise DataError("a prompt without an image has no exemplar; leave it out, or predict without exemplars")
        return self.tsm.transform.pixels(images[-1])

    def extend(self, batch: PromptBatch) -> PromptBatch:
        """The batch with places for exemplars and their embeddings.

        Args:
            batch: Left-padded prompts on the device, with the pixels of their images.
        """
        pixels = torch.stack(batch.prepared).to(batch.tokens.device)
        features = self.tsm.features(pixels, tokens="cls" if self.exemplar == "cls" else "all")
        rows = exemplar_rows(
            TokenRows(batch.tokens, batch.vision_mask, padding=batch.padding),
            self.exemplar,
            image_id=self.image_id,
            placeholder_id=self.placeholder_id,
            pad_id=self.pad_id,
            count=features.shape[1],
            pad_side="left",
        )
        assert rows.padding is not None and rows.placeholders is not None
        return replace(
            batch,
            tokens=rows.tokens,
            padding=rows.padding,
            vision_mask=rows.vision_mask,
            override=(rows.placeholders, self.connector(features).unflatten(0, features.shape[:2])),
        )
