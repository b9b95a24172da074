"""The decoder with a key-value cache: prefill of prompts, prefill of shared prefixes, and single decoding steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medtune.generation.engine.batches import PromptBatch
from medtune.generation.engine.continuous_cache import Cursor, SlotCaches
from medtune.generation.engine.live_prefixes import Beginning
from medtune.generation.engine.prefixes import SharedPrefixes
from medtune.generation.interfaces import AnswerModel
from medtune.generation.requests import Request

# Padding of short rows. It may be any token that is not an image token, because no real token attends to it.
FILL = 0
Hook = Callable[[Sequence[Request]], None]


@dataclass(frozen=True)
class Part:
    """Inputs of one forward pass: some columns of some prompts, left-aligned.

    Attributes:
        tokens: Shape ``[b, s]``.
        start: Position of each row's first token.
        count: Real tokens of each row.
        features: Argument of the model's ``hidden``, as are ``vision_mask`` and ``replace``.
        vision_mask: None without images.
        replace: None without learned vectors.
        wide: Image embeddings per row that cross-attention can see, from this pass or an earlier one.
        saved: By how many positions the images before each row's first token are shorter than their tokens, ``[b]``;
            None if images have as many positions as tokens.
    """

    tokens: Tensor
    start: Sequence[int]
    count: Sequence[int]
    features: Tensor | None = None
    vision_mask: Tensor | None = None
    replace: tuple[Tensor, Tensor] | None = None
    wide: int = 0
    saved: Tensor | None = None


class CachedDecoder:
    """Reads prompts and single tokens. Row i of a call is row i of the caches; each row has its own position.

    Args:
        model: A VLM.
        device: Device of the model.
        dtype: Type of the model and the caches.
        before_forward: Called before each forward pass with the requests of its rows, in order.

    Attributes:
        caches: Keys and values.
        tokens_read: Prompt tokens that the model has read so far, without padding.
    """

    def __init__(
        self, model: AnswerModel, device: torch.device, dtype: torch.dtype, before_forward: Hook | None = None
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.before_forward = before_forward
        self.tokens_read = 0
        self.caches = SlotCaches(model, device, dtype)
        self._requests: list[Request] = []
        self._lengths: list[int] = []
        self._vision: Tensor | None = None  # what a row's next token may attend to, [rows, features]
        self._saved: Tensor | None = None  # as in a part, of each row's images, [rows]

    @property
    def rows(self) -> int:
        """Number of rows in use."""
        return len(self._requests)

    def prefill(
        self, batch: PromptBatch, features: Tensor | None, new_tokens: int, shared: SharedPrefixes | None = None
    ) -> Tensor:
        """Discard all rows and read prompts as new rows.

        Args:
            batch: The prompts, on the model's device; in the order of ``shared``, if given.
            features: Their image embeddings, shape ``[b, s_e, d]``.
            new_tokens: Maximum number of decoding steps that follow.
            shared: Prefixes that several rows have in common.

        Returns:
            Logits after each prompt, shape ``[b, vocabulary]``.
        """
        self.clear()
        return self.admit(batch, features, max(batch.lengths) + new_tokens, shared)

    def admit(
        self, batch: PromptBatch, features: Tensor | None, columns: int, shared: SharedPrefixes | None = None
    ) -> Tensor:
        """Read prompts as new rows after the rows in use.

        Args:
            batch: As in :meth:`prefill`.
            features: As in :meth:`prefill`.
            columns: Maximum number of tokens of a new row, including its answer.
            shared: As in :meth:`prefill`.

        Returns:
            Logits after each new prompt, shape ``[b, vocabulary]``.
        """
        wide = self._make_room(batch, features, columns)
        self.tokens_read += sum(batch.lengths)
        if shared is None:
            hidden = self.forward(part_of(batch, features, [0] * len(batch.lengths), batch.lengths), batch.requests)
        else:
            hidden = self._read_shared(batch, features, shared)
        return self._admitted(batch, wide, hidden)

    def admit_after(
        self, batch: PromptBatch, features: Tensor | None, columns: int, beginnings: Sequence[Beginning]
    ) -> Tensor:
        """Read prompts whose beginnings rows in use hold: copy keys and values of these, and read the rest.

        Args:
            batch: As in :meth:`prefill`.
            features: As in :meth:`prefill`.
            columns: As in :meth:`admit`.
            beginnings: One per prompt.

        Returns:
            Logits after each new prompt, shape ``[b, vocabulary]``.
        """
        wide = self._make_room(batch, features, columns)
        start = [beginning.length for beginning in beginnings]
        self.tokens_read += sum(batch.lengths) - sum(start)
        for place, beginning in enumerate(beginnings):
            self.caches.copy_rows([beginning.source], self.rows + place, beginning.length)
        images = [beginning.images for beginning in beginnings]
        rest = endings(batch, features, start, images, False, self.model.saved_positions)
        hidden = self.forward(rest, batch.requests)
        return self._admitted(batch, wide, hidden)

    def _make_room(self, batch: PromptBatch, features: Tensor | None, columns: int) -> int:
        """Reserve cache rows for new prompts; return the number of image embeddings in separate caches."""
        attended = batch.vision_mask.dim() == 3  # otherwise images are tokens and have no separate cache
        wide = features.shape[1] if attended and features is not None else 0
        self.caches.reserve(self.rows + len(batch.lengths), columns, wide, keep=self.rows)
        return wide

    def _admitted(self, batch: PromptBatch, wide: int, hidden: Tensor) -> Tensor:
        """Record new rows; return their logits."""
        if batch.vision_mask.dim() == 3:
            self._see(batch.vision_mask[:, -1], wide)
        elif (saved := self.model.saved_positions(batch.vision_mask)) is not None:
            self._saved = saved if self._saved is None else torch.cat([self._saved, saved])
        self._requests = [*self._requests, *batch.requests]
        self._lengths = [*self._lengths, *batch.lengths]
        return self.model.logits(hidden)

    def step(self, tokens: Sequence[int], limit: int | None = None) -> Tensor:
        """Read one more token per row in use. The logits of a finished row are ignored by the caller.

        Args:
            tokens: One per row.
            limit: Rows that have finished at this number of tokens stay at the last position: the model has no
                further one.

        Returns:
            Logits after it, shape ``[b, vocabulary]``.
        """
        part = Part(
            torch.tensor(tokens, device=self.device)[:, None],
            self._lengths,
            [1] * len(tokens),
            vision_mask=None if self._vision is None else self._vision[:, None],
            wide=0 if self._vision is None else self._vision.shape[1],
            saved=self._saved,
        )
        hidden = self.forward(part, self._requests, first=0, limit=limit)
        self._lengths = [length + 1 for length in self._lengths]
        return self.model.logits(hidden)

    def drop(self, row: int) -> None:
        """Remove a row; the last row moves to its place."""
        last = self.rows - 1
        if row != last:
            self.caches.copy_rows([last], row, self._lengths[last])
            self._requests[row], self._lengths[row] = self._requests[last], self._lengths[last]
        self._requests, self._lengths = self._requests[:last], self._lengths[:last]
        if self._vision is not None:
            self._vision[row] = self._vision[last]
            self._vision = self._vision[:last] if last else None
        if self._saved is not None:
            self._saved[row] = self._saved[last]
            self._saved = self._saved[:last] if last else None

    def clear(self) -> None:
        """Remove all rows."""
        self._requests, self._lengths, self._vision, self._saved = [], [], None, None

    def close(self) -> None:
        """Remove the caches. While they exist, the model's layers do not apply the causal mask by themselves."""
        self.caches.close()
        self.clear()

    def _read_shared(self, batch: PromptBatch, features: Tensor | None, shared: SharedPrefixes) -> Tensor:
        """Read each shared prefix once, copy its keys and values, and read the rest of every row."""
        self.tokens_read += shared.tokens - sum(shared.length)
        heads = shared.readers
        self.forward(beginnings(batch, features, shared), batch.requests[:heads])
        copies = [self.rows + row for row in shared.reader[heads:]]
        self.caches.copy_rows(copies, self.rows + heads, max(shared.length))
        rest = endings(batch, features, shared.length, shared.images, shared.images_left, self.model.saved_positions)
        return self.forward(rest, batch.requests)

    def forward(
        self, part: Part, requests: Sequence[Request], first: int | None = None, limit: int | None = None
    ) -> Tensor:
        """Return the final hidden states at each row's last token, ``[b, d]``.

        Args:
            part: Inputs of the pass.
            requests: One per row.
            first: Cache row of the first row; None for the first cache row that is not in use.
            limit: As in :meth:`step`.
        """
        rows, width = part.tokens.shape
        first, end = self.rows if first is None else first, max(map(sum, zip(part.start, part.count, strict=True)))
        start, count = self._tensor(part.start)[:, None], self._tensor(part.count)[:, None]
        column = torch.arange(width, device=self.device)
        position = start + column
        # If rows start at different columns, padding is written to the extra last column, which no query sees.
        aligned = len(set(part.start)) == 1
        columns = part.start[0] if aligned else torch.where(column < count, position, self.caches.columns)
        position = position.clamp(max=end - 1)
        mask = torch.arange(end, device=self.device) <= position[:, :, None]
        if part.saved is not None:
            position = position - part.saved[:, None]
        if limit is not None:
            position = position.clamp(max=limit - 1)
        cursor = Cursor(slice(first, first + rows), columns, end, part.wide)
        hidden = self.read(part, requests, cursor, mask, position)
        return hidden.gather(1, (count - 1)[:, :, None].expand(-1, -1, hidden.shape[2])).squeeze(1)

    def read(self, part: Part, requests: Sequence[Request], cursor: Cursor, mask: Tensor, position: Tensor) -> Tensor:
        """One forward pass.

        Args:
            part: Inputs of the pass.
            requests: One per row.
            cursor: Place in the caches.
            mask: Which columns each token may attend to, ``[b, s, columns]``.
            position: Number of each token in its text, less what earlier images save, ``[b, s]``; or positions from
                the model.

        Returns:
            Final hidden states ``[b, s, d]``.
        """
        self.caches.cursor.point(cursor)
        if self.before_forward is not None:
            self.before_forward(requests)
        return self.model.hidden(
            part.tokens,
            part.features,
            vision_mask=part.vision_mask,
            replace=part.replace,
            mask=mask,
            input_pos=position,
        )

    def _see(self, vision_row: Tensor, wide: int) -> None:
        """Record which image embeddings later tokens may attend to: the same as the prompt's last token."""
        if not wide:
            self.caches.forget_features(slice(self.rows, self.rows + len(vision_row)))
        earlier = vision_row.new_zeros(self.rows, 0) if self._vision is None else self._vision
        wide = max(wide, earlier.shape[1])
        rows = [nn.functional.pad(row, (0, wide - row.shape[1])) for row in (earlier, vision_row[:, :wide])]
        self._vision = torch.cat(rows) if wide else None

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.device)


def part_of(batch: PromptBatch, features: Tensor | None, start: Sequence[int], count: Sequence[int]) -> Part:
    """Return tokens ``start`` to ``start + count`` of each prompt, with their features, masks and learned vectors."""
    device = batch.tokens.device
    pads = [batch.tokens.shape[1] - length for length in batch.lengths]
    column = torch.arange(max(count), device=device)
    begin = torch.tensor([pad + at for pad, at in zip(pads, start, strict=True)], device=device)[:, None]
    source = (begin + column).clamp(max=batch.tokens.shape[1] - 1)
    real = column < torch.tensor(count, device=device)[:, None]
    tokens = batch.tokens.gather(1, source).masked_fill(~real, FILL)
    overridden = _replaced(batch, source, real)
    if batch.vision_mask.dim() == 2:
        return Part(tokens, start, count, features, batch.vision_mask, overridden)
    wide = 0 if features is None else features.shape[1]
    seen = batch.vision_mask.gather(1, source[:, :, None].expand(-1, -1, batch.vision_mask.shape[2]))
    return Part(tokens, start, count, features, seen, overridden, wide)


def beginnings(batch: PromptBatch, features: Tensor | None, shared: SharedPrefixes) -> Part:
    """Return the prefixes that the reader rows read; the batch is in the order of ``shared``."""
    heads, images = shared.readers, shared.images[: shared.readers]
    begun = batch.select(range(heads))
    attended = batch.vision_mask.dim() == 3
    if not attended:
        begun = replace(begun, vision_mask=begun.vision_mask * _first_features(begun.vision_mask, images))
    given = features[:heads] if features is not None and (attended or any(images)) else None
    return part_of(begun, given, [0] * heads, shared.length[:heads])


def endings(
    batch: PromptBatch,
    features: Tensor | None,
    start: Sequence[int],
    images: Sequence[int],
    images_left: bool,
    saved: Callable[[Tensor], Tensor | None],
) -> Part:
    """Return what each row reads after its prefix.

    Args:
        batch: The prompts.
        features: Their image embeddings; not used if no image tokens are left.
        start: Number of tokens of each row's prefix.
        images: Number of image tokens in the prefix.
        images_left: Whether any row has image tokens after its prefix.
        saved: The model's ``saved_positions``.
    """
    count = [whole - at for whole, at in zip(batch.lengths, start, strict=True)]
    if batch.vision_mask.dim() == 3:  # cross-attention uses the keys and values cached with the prefixes
        return replace(part_of(batch, features, start, count), features=None)
    earlier = _first_features(batch.vision_mask, images)
    rest = replace(batch, vision_mask=batch.vision_mask * ~earlier)
    part = part_of(rest, features if images_left else None, start, count)
    return replace(part, saved=saved(batch.vision_mask * earlier))


def _first_features(vision_mask: Tensor, counts: Sequence[int]) -> Tensor:
    """[b, s_e], True up to the last of the first ``counts`` features of each row that exist."""
    return (vision_mask != 0).cumsum(dim=1) <= torch.tensor(counts, device=vision_mask.device)[:, None]


def _replaced(batch: PromptBatch, source: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return a mask of the columns ``source`` whose token is replaced by a learned vector, and these vectors."""
    if batch.override is None:
        return None
    where, vectors = batch.override
    chosen = where.gather(1, source) & real
    turn = (where.cumsum(dim=1) - 1).gather(1, source)
    row, column = chosen.nonzero(as_tuple=True)
    return (chosen, vectors[row, turn[row, column]]) if len(row) else None
