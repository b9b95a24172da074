"""Finds prefixes that several prompts of a batch share, and decides whether a separate pass for them is worth it."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from medtune.generation.engine.batches import PromptBatch

# A second pass costs a launch and a copy of keys and values. It is worth it if it leaves at most this share of tokens.
WORTH = 0.8


@dataclass(frozen=True)
class SharedPrefixes:
    """How a batch is read in two passes: shared prefixes first, then the rest of every row.

    All lists are for the batch in the order ``order``.

    Attributes:
        order: Rows of the batch; those that read a prefix come first.
        readers: Number of rows that read a prefix.
        reader: For each row, the row that reads its prefix; less than ``readers``.
        length: Tokens of each row's prefix, fewer than the row has; 0 only for a row that needs no reader.
        images: Image tokens in each row's prefix.
        images_left: Whether any row has image tokens after its prefix.
    """

    order: list[int]
    readers: int
    reader: list[int]
    length: list[int]
    images: list[int]
    images_left: bool

    @property
    def tokens(self) -> int:
        """Tokens of the first pass, without padding."""
        return sum(self.length[: self.readers])


def find_shared(
    batch: PromptBatch, keys: Sequence[Hashable], image_id: int, *, whole_images: bool = False
) -> SharedPrefixes | None:
    """Find the prefixes that rows share.

    Rows form a group if their keys and their tokens up to the last image token are equal. Rows that share nothing are
    also split into two parts, so that the second pass is only as wide as the other rows need.

    Args:
        batch: Left-padded prompts as the model reads them.
        keys: One per row; if keys are equal, equal tokens have equal embeddings.
        image_id: The token of an image, or of one feature of it.
        whole_images: Whether the tokens of an image see one another, so that no pass may end within an image.

    Returns:
        None if two passes would read more than ``WORTH`` times the tokens of one pass, padding included.
    """
    prompts = [batch.prompt(row) for row in range(len(batch.requests))]
    groups = _groups(prompts, keys, image_id)
    if len(groups) == len(prompts):
        return None
    longest = [_common(batch, group, prompts) for group in groups]
    least = 1 if batch.vision_mask.dim() == 3 else 0  # cross-attention reads its images in the first pass
    best, cost = None, WORTH * len(prompts) * max(map(len, prompts))
    for ends in sorted({_end(prompts, group) - length for group, length in zip(groups, longest, strict=True)}):
        cut = _cut(prompts, groups, longest, ends, least)
        if cut is not None and whole_images:
            cut = [(rows, _before_image(prompts[rows[0]], length, image_id)) for rows, length in cut]
        if cut is not None and _cost(cut, prompts) <= cost:
            best, cost = cut, _cost(cut, prompts)
    return None if best is None else _shared(best, prompts, image_id)


def _groups(prompts: Sequence[list[int]], keys: Sequence[Hashable], image_id: int) -> list[list[int]]:
    """Group rows with the same images in the same place."""
    groups: dict[Hashable, list[int]] = {}
    for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        head = len(prompt) - prompt[::-1].index(image_id) if image_id in prompt else 0
        groups.setdefault((key, tuple(prompt[:head])), []).append(row)
    return list(groups.values())


def _common(batch: PromptBatch, group: list[int], prompts: Sequence[list[int]]) -> int:
    """Count the first tokens that all rows of a group share; one token of each row is left, for its logits."""
    most = min(len(prompts[row]) for row in group) - 1
    heads = torch.tensor([prompts[row][:most] for row in group])
    return int((heads == heads[0]).all(dim=0).cumprod(dim=0).sum())


def _end(prompts: Sequence[list[int]], group: list[int]) -> int:
    return max(len(prompts[row]) for row in group)


Cut = list[tuple[list[int], int]]


def _cut(
    prompts: Sequence[list[int]], groups: list[list[int]], longest: list[int], ends: int, least: int
) -> Cut | None:
    """Return (rows, length of their prefix) such that no row has more than ``ends`` tokens left; None if impossible."""
    cut: Cut = []
    for group, common in zip(groups, longest, strict=True):
        end = _end(prompts, group)
        if end - common <= ends:
            cut.append((group, min(common, max(end - ends, least))))
        else:
            cut += [([row], max(len(prompts[row]) - ends, least)) for row in group]
    fits = all(least <= length < len(prompts[row]) for rows, length in cut for row in rows)
    return cut if fits else None


def _before_image(prompt: list[int], length: int, image_id: int) -> int:
    """The length of a prefix that ends before the image in which ``length`` ends."""
    while 0 < length < len(prompt) and prompt[length - 1] == prompt[length] == image_id:
        length -= 1
    return length


def _cost(cut: Cut, prompts: Sequence[list[int]]) -> int:
    lengths = [length for _, length in cut if length]
    ends = max(len(prompts[row]) - length for rows, length in cut for row in rows)
    return len(lengths) * max(lengths, default=0) + len(prompts) * ends


def _shared(cut: Cut, prompts: Sequence[list[int]], image_id: int) -> SharedPrefixes:
    cut = sorted(cut, key=lambda item: -item[1])
    reading = [item for item in cut if item[1]]
    others = [[(row, place) for row in rows[1:]] for place, (rows, _) in enumerate(reading)]
    alone = [(row, 0) for rows, length in cut if not length for row in rows]
    placed = [*((rows[0], place) for place, (rows, _) in enumerate(reading)), *chain.from_iterable(others), *alone]
    order, reader = [row for row, _ in placed], [place for _, place in placed]
    held = {row: length for rows, length in cut for row in rows}
    length = [held[row] for row in order]
    images = [prompts[row][:end].count(image_id) for row, end in zip(order, length, strict=True)]
    left = any(image_id in prompts[row][end:] for row, end in zip(order, length, strict=True))
    return SharedPrefixes(order, len(reading), reader, length, images, left)
