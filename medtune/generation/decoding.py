"""A batch through the decoder with a key-value cache: one prefill, then one token per row and step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchtune.modules.common_utils import delete_kv_caches

from medtune.generation.batches import PromptBatch, causal, positions, widen
from medtune.generation.seams import AnswerModel

CACHE_STEP = 64


class CachedDecoder:
    """Owns the caches of a model.

    The layers' caches always return their whole length, so that masks, and for models with cross-attention image
    embeddings, are widened to it. They take one number of rows only: batches of one size share their caches, another
    size gets new ones.

    Args:
        model: A VLM.
        device: Where the model is.
        dtype: Of the caches, the model's.
    """

    def __init__(self, model: AnswerModel, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self._rows = self._slots = self._image_slots = 0
        self._vision_row: Tensor | None = None

    def prefill(self, batch: PromptBatch, features: Tensor | None, new_tokens: int) -> Tensor:
        """Read the prompts.

        Args:
            batch: The prompts, on the model's device.
            features: Their image embeddings, shape ``[b, s_e, d]``.
            new_tokens: Steps that may follow.

        Returns:
            Logits after each prompt, shape ``[b, vocabulary]``.
        """
        padding, vision_mask = batch.padding, batch.vision_mask
        attended = vision_mask.dim() == 3  # else images stand among the tokens and have no cache of their own
        self._reserve(len(padding), padding.shape[1] + new_tokens, vision_mask.shape[-1] if attended else 0)
        self.model.reset_caches()
        self._vision_row = None
        if attended:
            vision_mask = widen(vision_mask, self._image_slots)
            self._vision_row = vision_mask[:, -1:]
            if features is not None:
                features = nn.functional.pad(features, (0, 0, 0, self._image_slots - features.shape[1]))
        self._open = widen(padding, self._slots)
        self._slot, self._position = padding.shape[1], padding.sum(dim=1, keepdim=True)
        hidden = self.model.hidden(
            batch.tokens,
            features,
            vision_mask=vision_mask,
            replace=batch.replacement,
            mask=widen(causal(padding[:, None]), self._slots),
            input_pos=positions(padding),
        )
        return self.model.logits(hidden[:, -1])

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token per prompt; what a finished row is given does not matter.

        Returns:
            Logits after it, shape ``[b, vocabulary]``.
        """
        self._open[:, self._slot] = True
        hidden = self.model.hidden(
            torch.tensor(tokens, device=self.device)[:, None],
            None,
            vision_mask=self._vision_row,
            mask=self._open[:, None],
            input_pos=self._position,
        )
        self._slot += 1
        self._position = self._position + 1
        return self.model.logits(hidden[:, -1])

    def close(self) -> None:
        """Remove the caches; with them in place the model's layers would no longer mask the future by themselves."""
        if self.model.caches_are_setup():
            delete_kv_caches(self.model)
        self._rows = self._slots = self._image_slots = 0

    def _reserve(self, rows: int, slots: int, image_slots: int) -> None:
        """Make caches, or longer ones; their length only grows, so that a run makes few."""
        if rows == self._rows and slots <= self._slots and image_slots <= self._image_slots:
            return
        slots = max(self._slots, -(-slots // CACHE_STEP) * CACHE_STEP)
        image_slots = max(self._image_slots, image_slots)
        self.close()
        with self.device:
            self.model.setup_caches(rows, self.dtype, encoder_max_seq_len=image_slots, decoder_max_seq_len=slots)
        self._rows, self._slots, self._image_slots = rows, slots, image_slots
