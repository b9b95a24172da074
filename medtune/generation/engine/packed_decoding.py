"""Decoding of rows that share a prefix; the keys and values of the prefix are stored once for all of them.

Several rows form a pack, which uses one row of the caches: first the prefix, then the rows' tokens, step after step. A
token attends to the prefix and to the tokens of its own row. So a decoding step reads the prefix's keys and values once
per pack, and not once per row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from medtune.generation.engine.batches import PromptBatch
from medtune.generation.engine.continuous_cache import Cursor
from medtune.generation.engine.decoding import CachedDecoder, Part, beginnings, endings
from medtune.generation.engine.prefixes import SharedPrefixes
from medtune.generation.requests import Request

# Least share of places that rows fill. An empty place in a pack costs as much as a row.
FULLNESS = 0.8


@dataclass(frozen=True)
class Packing:
    """The place of each row in the packs.

    Attributes:
        width: Rows per pack.
        copies: The first packs read their prefixes. For each pack after them, the pack from which it copies its prefix.
        rows: The row in each place, pack after pack; an empty place repeats a row of its pack.
        places: The place of each row.
    """

    width: int
    copies: list[int]
    rows: list[int]
    places: list[int]


def pack(shared: SharedPrefixes, most: int) -> Packing:
    """Put rows with the same prefix into packs, as wide as ``FULLNESS`` allows.

    Args:
        shared: The shared prefixes.
        most: Maximum number of rows per pack.
    """
    groups: dict[int, list[int]] = {row: [] for row in range(shared.readers)}
    for row, reader in enumerate(shared.reader):
        groups.setdefault(reader if shared.length[row] else -1 - row, []).append(row)
    width = max(1, min(most, max(map(len, groups.values()))))
    while FULLNESS * width * sum(-(-len(group) // width) for group in groups.values()) > len(shared.reader):
        width -= 1
    packs = [(key, rows[i : i + width]) for key, rows in groups.items() for i in range(0, len(rows), width)]
    first = [pack for pack in packs if pack[1][0] == pack[0]]
    later = [pack for pack in packs if pack[1][0] != pack[0] and pack[0] >= 0]
    alone = [pack for pack in packs if pack[0] < 0]
    filled = [row for _, rows in (*first, *later, *alone) for row in [*rows, *[rows[0]] * (width - len(rows))]]
    return Packing(width, [key for key, _ in later], filled, [filled.index(row) for row in range(len(shared.reader))])


class PackedDecoder:
    """Decodes a batch whose rows share prefixes.

    Args:
        decoder: Holds the model and its caches. This object uses them until the decoder's next ``prefill``.
        max_seq_len: Maximum number of tokens per row of a forward pass, and of a text.
    """

    _packing: Packing
    _requests: list[Request]  # one per pack
    _visible: Tensor  # columns that the next token of a place may attend to, [packs, width, columns]
    _column: int  # next free column
    _position: Tensor  # position of the last token of each place, [packs, width]
    _vision: Tensor | None  # image embeddings that the next token may attend to, [packs, width, features]
    _wide: int

    def __init__(self, decoder: CachedDecoder, max_seq_len: int) -> None:
        self.decoder, self.max_seq_len = decoder, max_seq_len

    def prefill(self, batch: PromptBatch, features: Tensor | None, new_tokens: int, shared: SharedPrefixes) -> Tensor:
        """Discard all rows and read prompts as new rows.

        Args:
            batch: The prompts, on the model's device, in the order of ``shared``.
            features: Their image embeddings, shape ``[b, s_e, d]``.
            new_tokens: Maximum number of decoding steps that follow.
            shared: Prefixes that several rows have in common.

        Returns:
            Logits after each prompt, shape ``[b, vocabulary]``.
        """
        longest = max(whole - begun for whole, begun in zip(batch.lengths, shared.length, strict=True))
        self._packing = pack(shared, self.max_seq_len // longest)
        self._requests = [batch.requests[row] for row in self._packing.rows[:: self._packing.width]]
        first = beginnings(batch, features, shared)
        width, packs, begun = self._packing.width, len(self._requests), max(shared.length)
        self._visible = torch.zeros(packs, width, begun + (longest + new_tokens) * width, dtype=torch.bool)
        self._visible = self._visible.to(batch.tokens.device)
        self.decoder.clear()
        self.decoder.caches.reserve(packs, self._visible.shape[2], first.wide)
        self.decoder.tokens_read += shared.tokens + sum(batch.lengths) - sum(shared.length)
        self.decoder.forward(first, batch.requests[: shared.readers])
        self.decoder.caches.copy_rows(self._packing.copies, shared.readers, begun)
        return self._read_endings(batch, features, shared)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token per row. The logits of a finished row are ignored by the caller.

        Returns:
            Logits after it, shape ``[b, vocabulary]``.
        """
        rows, width = self._packing.rows, self._packing.width
        given = torch.tensor([tokens[row] for row in rows], device=self._visible.device).unflatten(0, (-1, width))
        place = torch.arange(width, device=self._visible.device)
        self._visible[:, place, self._column + place] = True
        part = Part(given, (), (), vision_mask=self._vision, wide=self._wide)
        self._position = (self._position + 1).clamp(max=self.max_seq_len - 1)  # of rows that have finished there
        last = place.expand_as(given)
        return self._read(part, self._visible[:, :, : self._column + width], self._position, last)

    def _read_endings(self, batch: PromptBatch, features: Tensor | None, shared: SharedPrefixes) -> Tensor:
        """Read the rest of every row; each row sees its prefix and itself. Return the logits after each row."""
        rows, width = self._packing.rows, self._packing.width
        filled, length = batch.select(rows), [shared.length[row] for row in rows]
        images = [shared.images[row] for row in rows]
        attended = batch.vision_mask.dim() == 3
        given = features if attended or features is None or not shared.images_left else features[rows]
        model = self.decoder.model
        part = endings(filled, given, length, images, shared.images_left, model.saved_positions)
        self._column, self._wide = max(shared.length), part.wide
        device, longest = batch.tokens.device, part.tokens.shape[1]
        column = torch.arange(longest, device=device)
        start, count = (torch.tensor(each, device=device)[:, None] for each in (part.start, part.count))
        own = torch.eye(width, device=device).bool()[:, None, :, None]
        earlier = (column <= column[:, None])[None, :, None]
        ends = (own & earlier).flatten(2).flatten(0, 1)  # [width * s, width * s]
        begun = torch.arange(self._column, device=device) < start[::width, :, None]  # [packs, 1, columns]
        mask = torch.cat([begun.expand(-1, len(ends), -1), ends.expand(len(begun), -1, -1)], dim=2)
        self._visible[:, :, : self._column] = begun
        real = (column < count).unflatten(0, (-1, width))[:, :, None] & own[:, 0]
        self._visible[:, :, self._column : self._column + len(ends)] = real.flatten(2)
        whole = None if attended else model.saved_positions(filled.vision_mask)
        last_position = start + count - 1 - (0 if whole is None else whole[:, None])
        self._position = last_position.view(-1, width)
        self._vision = filled.vision_mask[:, -1].unflatten(0, (-1, width)) if attended and part.wide else None
        position = (start + column).clamp(max=self._column + longest - 1)
        # before rows are joined, because afterwards a token's images cannot be told from those of its neighbours
        position = self._places(part, position if part.saved is None else position - part.saved[:, None])
        last = (count - 1).view(-1, width) + longest * torch.arange(width, device=device)
        return self._read(_folded(part, width), mask, _fold(position, width), last)

    def _places(self, part: Part, position: Tensor) -> Tensor:
        found = self.decoder.model.positions(part.tokens, part.vision_mask, position)
        assert found is not None
        return found

    def _read(self, part: Part, mask: Tensor, position: Tensor, last: Tensor) -> Tensor:
        """Run one forward pass; return the logits after the last token of each row.

        Args:
            part: Inputs of the pass, one row per pack.
            mask: Shape ``[packs, tokens, columns]``.
            position: Position of each token, ``[packs, tokens]``.
            last: Index in the pack of the last token of each place, ``[packs, width]``.
        """
        tokens = part.tokens.shape[1]
        cursor = Cursor(slice(0, len(mask)), self._column, mask.shape[2], part.wide)
        hidden = self.decoder.read(part, self._requests, cursor, mask, position)
        self._column += tokens
        ends = hidden.gather(1, last[:, :, None].expand(-1, -1, hidden.shape[2])).flatten(0, 1)
        return self.decoder.model.logits(ends[torch.tensor(self._packing.places, device=ends.device)])


def _folded(part: Part, width: int) -> Part:
    """Join each ``width`` rows into one row."""
    return replace(
        part,
        tokens=_fold(part.tokens, width),
        features=None if part.features is None else _fold(part.features, width),
        vision_mask=None if part.vision_mask is None else _fold(part.vision_mask, width),
        replace=None if part.replace is None else (_fold(part.replace[0], width), part.replace[1]),
    )


def _fold(rows: Tensor, width: int) -> Tensor:
    """Reshape ``[packs * width, s, ...]`` to ``[packs, width * s, ...]``."""
    return rows.unflatten(0, (-1, width)).flatten(1, 2)
