"""Image embeddings, computed once per image and kept while a later request of the window needs them."""

from collections.abc import Container, Hashable, Iterable

import torch
from torch import Tensor

from medtune.generation.engine.batches import ImageKey, PromptBatch
from medtune.generation.interfaces import AnswerModel
from medtune.generation.prompt_extension import NoExtension, PromptExtension

FeatureKey = tuple[ImageKey, Hashable]


class FeatureStore:
    """The embeddings of the images in use.

    In an 11B model the vision encoder costs several times as much as the prompt, so an image with four questions is
    encoded only once. An extension may tell requests apart whose embeddings of one image differ.

    Args:
        model: A VLM; only its ``encode`` is called.
        at_once: Maximum number of images per call of the encoder.
        extension: Its ``feature_key`` and ``encode`` are called.

    Attributes:
        encoded: Number of images encoded so far.
    """

    def __init__(self, model: AnswerModel, at_once: int, extension: PromptExtension | None = None) -> None:
        self.model, self.at_once, self.extension = model, at_once, extension or NoExtension()
        self.encoded = 0
        self._held: dict[FeatureKey, Tensor] = {}

    def __call__(self, batch: PromptBatch) -> Tensor | None:
        """Return the embeddings for a batch, aligned with its vision mask.

        Returns:
            Shape ``[b, s_e, d]``, zero where the mask is False; None if no row has an image.
        """
        rows = [[(key, self.extension.feature_key(r)) for key in r.image_keys] for r in batch.requests]
        # one of the rows that show the image
        places = {key: (row, slot) for row, keys in enumerate(rows) for slot, key in enumerate(keys)}
        if not places:
            return None
        self._encode(batch, {key: place for key, place in places.items() if key not in self._held})
        sample = next(iter(self._held.values()))
        width = batch.vision_mask.shape[-1] // next(iter(batch.vision.values())).shape[1]
        features = sample.new_zeros(len(batch.requests), batch.vision_mask.shape[-1], sample.shape[-1])
        for row, keys in enumerate(rows):
            for slot, key in enumerate(keys):
                # An image encoded in another batch may have more or fewer padding tiles; those are masked.
                embedding = self._held[key][:width]
                features[row, slot * width : slot * width + len(embedding)] = embedding
        return features

    def _encode(self, batch: PromptBatch, places: dict[FeatureKey, tuple[int, int]]) -> None:
        keys = list(places)
        for start in range(0, len(keys), self.at_once):
            chunk = keys[start : start + self.at_once]
            rows, slots = torch.tensor([places[key] for key in chunk]).unbind(dim=1)
            vision = {name: value[rows, slots].unsqueeze(1) for name, value in batch.vision.items()}
            requests = [batch.requests[row] for row in rows.tolist()]
            encoded = self.extension.encode(self.model, vision, requests)
            for key, feature in zip(chunk, encoded, strict=True):
                self._held[key] = feature.clone()  # a view would keep the whole chunk alive
            self.encoded += len(chunk)

    def __len__(self) -> int:
        return len(self._held)

    def drop(self, keys: Iterable[ImageKey]) -> None:
        """Drop the embeddings of images that no later request shows."""
        dropped = set(keys)
        self._held = {key: feature for key, feature in self._held.items() if key[0] not in dropped}

    def keep(self, keys: Container[ImageKey]) -> None:
        """Drop the embeddings of all images except these."""
        self._held = {key: feature for key, feature in self._held.items() if key[0] in keys}

    def clear(self) -> None:
        """Drop all embeddings."""
        self._held.clear()
