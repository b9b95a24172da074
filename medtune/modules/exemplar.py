"""Exemplars of VITask (section 4): features of a task-specific model inserted among the tokens of a language model."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from medtune.errors import ModelError
from medtune.losses.cross_entropy import IGNORE_INDEX

Exemplar = Literal["cls", "all", "replace", "none"]
EXEMPLARS = ("cls", "all", "replace", "none")


class ExemplarConnector(nn.Module):
    """The task-specific connector: ``LN(d_tsm) -> Linear(d_tsm, d) -> GELU -> Linear(d, d)``.

    The paper does not give the architecture. This is the architecture of InternVL's connector between vision encoder
    and language model. It stays in fp32 for every dtype of the model; its output is cast when it enters the model.

    Args:
        feature_dim: d_tsm, width of the task-specific model's features.
        dim: d, width of the word embeddings.
        seed: Seed of the initialisation (torch's default for linear layers). It has its own random generator, so that
            it does not depend on other random numbers.
    """

    def __init__(self, feature_dim: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(feature_dim, dtype=torch.float32)
        self.linear_1 = skip_init(nn.Linear, feature_dim, dim, dtype=torch.float32)
        self.linear_2 = skip_init(nn.Linear, dim, dim, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.linear_1, self.linear_2):
                bound = 1.0 / math.sqrt(layer.in_features)
                for parameter in (layer.weight, layer.bias):
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``[b, k, d_tsm]`` of any float type -> rows ``[b * k, d]`` in fp32, sample after sample."""
        wide = features.to(self.linear_1.weight.dtype)
        return self.linear_2(nn.functional.gelu(self.linear_1(self.norm(wide)))).flatten(0, 1)


@dataclass(frozen=True)
class TokenRows:
    """A batch's tokens and the image features that they see: from a collator for training, or left-padded prompts.

    Attributes:
        tokens: ids [b, s].
        vision_mask: [b, s, s_e] if the decoder reads features through cross-attention, [b, s_e] if features replace
            tokens.
        labels: [b, s] unshifted, -100 where not supervised.
        padding: [b, s], True at real tokens.
        placeholders: [b, s], True where exemplars are inserted.
    """

    tokens: Tensor
    vision_mask: Tensor
    labels: Tensor | None = None
    padding: Tensor | None = None
    placeholders: Tensor | None = None


def insert_placeholders(rows: TokenRows, *, image_id: int, placeholder_id: int, count: int) -> TokenRows:
    """Make room for exemplars: ``count`` placeholders right after the last image token of each row.

    The exemplar thus follows the image's features, like an additional feature. A placeholder sees the image that its
    image token sees, and is never supervised. Every row grows by ``count``, so that padding stays on its side.

    Args:
        rows: The batch; it is not changed.
        image_id: The token that represents an image, or one feature of it.
        placeholder_id: Any id of the vocabulary.
        count: k, the number of exemplars per row.

    Returns:
        Rows of ``s + count`` columns, with ``placeholders``.

    Raises:
        ModelError: If a row has no image token.
    """
    image = rows.tokens == image_id
    if not bool(image.any(dim=1).all()):
        row = int((~image.any(dim=1)).nonzero()[0])
        raise ModelError(f"row {row} of the batch holds no image token (id {image_id}), so an exemplar has no place")
    width = rows.tokens.shape[1]
    column = torch.arange(width + count, device=image.device)
    last = (image * column[:width]).amax(dim=1, keepdim=True)
    where = (column > last) & (column <= last + count)
    source = torch.where(column <= last, column, torch.where(where, last, column - count))
    taken = take_columns(rows, source)
    labels = None if taken.labels is None else taken.labels.masked_fill(where, IGNORE_INDEX)
    return replace(taken, tokens=taken.tokens.masked_fill(where, placeholder_id), labels=labels, placeholders=where)


def hide_images(
    rows: TokenRows, *, image_id: int, pad_id: int, pad_side: Literal["right", "left"] = "right"
) -> TokenRows:
    """Replace the image's features by the exemplars (EP_rep in the paper).

    No token sees a feature any more. If features replace tokens, those tokens are removed and the others close the gap.
    A model with cross-attention keeps its image token, which then sees nothing.

    Args:
        rows: From :func:`insert_placeholders`.
        image_id: As there.
        pad_id: Token that fills the free columns.
        pad_side: Side of the padding of ``rows``.

    Returns:
        Rows with as many columns as the longest row needs.
    """
    rows = replace(rows, vision_mask=torch.zeros_like(rows.vision_mask))
    if rows.vision_mask.dim() == 3:
        return rows
    image = rows.tokens == image_id
    dropped = image if pad_side == "right" else ~image
    source = dropped.int().argsort(dim=1, stable=True)
    spare = int(image.sum(dim=1).amin())
    source = source[:, : source.shape[1] - spare] if pad_side == "right" else source[:, spare:]
    free = image.gather(1, source)
    taken = take_columns(rows, source)
    return replace(
        taken,
        tokens=taken.tokens.masked_fill(free, pad_id),
        labels=None if taken.labels is None else taken.labels.masked_fill(free, IGNORE_INDEX),
        padding=None if taken.padding is None else taken.padding & ~free,
    )


def exemplar_rows(
    rows: TokenRows,
    exemplar: Exemplar,
    *,
    image_id: int,
    placeholder_id: int,
    pad_id: int,
    count: int,
    pad_side: Literal["right", "left"] = "right",
) -> TokenRows:
    """Return rows with placeholders for ``count`` exemplars each, for a variant; for samples and for prompts.

    Args:
        rows: The batch.
        exemplar: The variant: ``replace`` hides the image's own features, the others keep them.
        image_id: As for :func:`insert_placeholders`.
        placeholder_id: As there.
        pad_id: As for :func:`hide_images`.
        count: k, the number of exemplars per row.
        pad_side: Side of the padding of ``rows``.
    """
    rows = insert_placeholders(rows, image_id=image_id, placeholder_id=placeholder_id, count=count)
    return hide_images(rows, image_id=image_id, pad_id=pad_id, pad_side=pad_side) if exemplar == "replace" else rows


def widen(rows: TokenRows, width: int, pad_id: int) -> TokenRows:
    """Pad rows on the right to ``width`` columns; under causal attention no earlier token sees them."""
    more = width - rows.tokens.shape[1]
    vision_mask = rows.vision_mask
    if vision_mask.dim() == 3:
        vision_mask = nn.functional.pad(vision_mask, (0, 0, 0, more))
    return TokenRows(
        nn.functional.pad(rows.tokens, (0, more), value=pad_id),
        vision_mask,
        None if rows.labels is None else nn.functional.pad(rows.labels, (0, more), value=IGNORE_INDEX),
        None if rows.padding is None else nn.functional.pad(rows.padding, (0, more)),
        None if rows.placeholders is None else nn.functional.pad(rows.placeholders, (0, more)),
    )


def take_columns(rows: TokenRows, source: Tensor) -> TokenRows:
    """Return the columns ``source`` [b, s'] of each row, in that order."""

    def text(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.gather(1, source)

    vision_mask = rows.vision_mask
    if vision_mask.dim() == 3:
        vision_mask = vision_mask.gather(1, source.unsqueeze(-1).expand(-1, -1, vision_mask.shape[2]))
    return TokenRows(
        rows.tokens.gather(1, source), vision_mask, text(rows.labels), text(rows.padding), text(rows.placeholders)
    )
