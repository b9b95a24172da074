"""Adds the exemplars that a VITask run learned to prompts at inference (VITask, section 4; VITask-plug, 5.3)."""

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
    """Files that exemplars are made from. A config names them, :meth:`open` loads them.

    Attributes:
        path: The ``exemplar`` folder of a VITask run.
        tsm: Folder of another task-specific model that replaces the run's own (``VITask-plug``). Its features must have
            the same width. The language model is not trained again.
    """

    path: str
    tsm: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return the identity of the connector, the variant and the task-specific model."""
        record = load_record(self.path)
        tsm = weights_identity(self.tsm or record.tsm, beside=("*.json",))
        return {"connector": weights_identity(self.path), "exemplar": record.exemplar, "tsm": tsm}

    def open(self, transform: Any, device: torch.device) -> "Exemplars":
        """Load connector and task-specific model.

        Args:
            transform: The transform of the vision-language model.
            device: Device of both; they stay in fp32.

        Raises:
            ModelError: If files are missing in a folder, or the connector was made for features of another width.
        """
        from medtune.models.classifier.tsm import (
            load_tsm,
        )  # importing timm takes seconds; runs without exemplars do not need it

        record = load_record(self.path)
        folder = self.tsm or record.tsm
        tsm = load_tsm(folder)
        wide = tsm.feature_dim("cls" if record.exemplar == "cls" else "all")
        connector = load_connector(self.path, wide, folder)
        return Exemplars(tsm.to(device), connector.to(device).eval(), record.exemplar, transform)


class Exemplars(PromptExtension):
    """Adds exemplars to prompts. They depend only on the images, so prompts on the same images share them.

    Args:
        tsm: The frozen task-specific model, on the device of the prompts.
        connector: The connector, on the same device.
        exemplar: The variant of exemplar.
        transform: Gives the token ids for image, placeholder and padding.
    """

    def __init__(self, tsm: "TaskModel", connector: ExemplarConnector, exemplar: Exemplar, transform: Any) -> None:
        self.tsm, self.connector, self.exemplar = tsm, connector, exemplar
        self.image_id, self.placeholder_id, self.pad_id = transform.image_id, transform.placeholder_id, transform.pad_id

    def prepare(self, request: Request, images: list[Image.Image], prompt: dict[str, Any]) -> Tensor:
        """Return the pixels ``[3, h, w]`` of a prompt's last image, as the task-specific model reads them.

        Raises:
            DataError: If the prompt has no image.
        """
        if not images:
            raise DataError("a prompt without an image has no exemplar; leave it out, or predict without exemplars")
        return self.tsm.transform.pixels(images[-1])

    def extend(self, batch: PromptBatch) -> PromptBatch:
        """Return the batch with placeholder tokens for the exemplars, and the embeddings that replace them.

        Args:
            batch: Left-padded prompts on the device; ``prepared`` holds the pixels of their images.
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
