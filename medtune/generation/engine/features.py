"""Image embeddings, computed once per picture and kept while a later request of the window needs them."""

from collections.abc import Container, Iterable

import torch
from torch import Tensor

from medtune.generation.engine.batches import ImageKey, PromptBatch
from medtune.generation.seams import AnswerModel


class FeatureStore:
    """The embeddings of the pictures in use.

    In an 11B model the vision encoder costs several times the prompt it belongs to, so that a picture with four
    questions is worth encoding once.

    Args:
        model: A VLM; only its ``encode`` is called.
        at_once: Most pictures per call of the encoder.

    Attributes:
        encoded: Number of pictures encoded so far.
    """

    def __init__(self, model: AnswerModel, at_once: int) -> None:
        self.model = model
        self.at_once = at_once
        self.encoded = 0
        self._held: dict[ImageKey, Tensor] = {}

    def __call__(self, batch: PromptBatch) -> Tensor | None:
        """Embeddings for a batch, aligned with its vision mask.

        Returns:
            Shape ``[b, s_e, d]``, zero where the mask is closed; None when no row has an image.
        """
        places = {
            key: (row, slot) for row, r in enumerate(batch.requests) for slot, key in enumerate(r.image_keys)
        }  # any row that shows the picture will do
        if not places:
            return None
        self._encode(batch, {key: place for key, place in places.items() if key not in self._held})
        sample = next(iter(self._held.values()))
        width = batch.vision_mask.shape[-1] // next(iter(batch.vision.values())).shape[1]
        features = sample.new_zeros(len(batch.requests), batch.vision_mask.shape[-1], sample.shape[-1])
        for row, request in enumerate(batch.requests):
            for slot, key in enumerate(request.image_keys):
                # A picture encoded in another batch may carry more or fewer padding tiles; those are masked.
                held = self._held[key][:width]
                features[row, slot * width : slot * width + len(held)] = held
        return features

    def _encode(self, batch: PromptBatch, places: dict[ImageKey, tuple[int, int]]) -> None:
        keys = list(places)
        for start in range(0, len(keys), self.at_once):
            chunk = keys[start : start + self.at_once]
            rows, slots = torch.tensor([places[key] for key in chunk]).unbind(dim=1)
            vision = {name: value[rows, slots].unsqueeze(1) for name, value in batch.vision.items()}
            for key, feature in zip(chunk, self.model.encode(vision), strict=True):
                self._held[key] = feature.clone()  # a view would keep the whole chunk alive
            self.encoded += len(chunk)

    def __len__(self) -> int:
        return len(self._held)

    def drop(self, keys: Iterable[ImageKey]) -> None:
        """Forget pictures that no coming request shows."""
        for key in keys:
            self._held.pop(key, None)

    def keep(self, keys: Container[ImageKey]) -> None:
        """Forget all pictures but these."""
        self.drop([key for key in self._held if key not in keys])

    def clear(self) -> None:
        """Forget all pictures."""
        self._held.clear()
