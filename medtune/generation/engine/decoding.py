"""Rows of tokens through the decoder with a cache: prompts, beginnings that several prompts share, and single steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medtune.generation.engine.batches import PromptBatch
from medtune.generation.engine.continuous_cache import Cursor, SlotCaches
from medtune.generation.engine.prefixes import SharedPrefixes
from medtune.generation.requests import Request
from medtune.generation.seams import AnswerModel

# Fills short rows: any token that stands for no image. What it becomes is seen by no real token.
FILL = 0
Hook = Callable[[Sequence[Request]], None]


@dataclass(frozen=True)
class Part:
    """What one forward pass reads: some columns of some prompts, aligned at the left.

    Attributes:
        tokens: Shape ``[b, s]``.
        start: Position of each row's first token.
        count: Real tokens of each row.
        features: As ``hidden`` of the model takes them, as are the next two.
        vision_mask: None without images.
        replace: None without learned vectors.
        wide: Image embeddings per row that cross-attention can see, given here or read before.
    """

    tokens: Tensor
    start: Sequence[int]
    count: Sequence[int]
    features: Tensor | None = None
    vision_mask: Tensor | None = None
    replace: tuple[Tensor, Tensor] | None = None
    wide: int = 0


class CachedDecoder:
    """Reads prompts and single tokens; row i of a call is row i of the caches, each at a position of its own.

    Args:
        model: A VLM.
        device: Where the model is.
        dtype: Of the caches, the model's.
        before_forward: Called before each forward pass with the requests of its rows, in order.

    Attributes:
        caches: Keys and values.
        tokens_read: Tokens of prompts that went through the model so far, padding left out.
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

    @property
    def rows(self) -> int:
        """Rows in use."""
        return len(self._requests)

    def prefill(
        self, batch: PromptBatch, features: Tensor | None, new_tokens: int, shared: SharedPrefixes | None = None
    ) -> Tensor:
        """Read prompts in place of all that was read before.

        Args:
            batch: The prompts, on the model's device; in the order of ``shared``, if given.
            features: Their image embeddings, shape ``[b, s_e, d]``.
            new_tokens: Steps that may follow.
            shared: Beginnings that several rows have in common.

        Returns:
            Logits after each prompt, shape ``[b, vocabulary]``.
        """
        self.clear()
        return self.admit(batch, features, max(batch.lengths) + new_tokens, shared)

    def admit(
        self, batch: PromptBatch, features: Tensor | None, columns: int, shared: SharedPrefixes | None = None
    ) -> Tensor:
        """Read prompts as new rows behind those in use.

        Args:
            batch: As for :meth:`prefill`, and so are the others.
            features: As there.
            columns: Tokens that the longest new row may come to have, its answer included.
            shared: As there.
        """
        attended = batch.vision_mask.dim() == 3  # else images stand among the tokens and have no cache of their own
        wide = features.shape[1] if attended and features is not None else 0
        self.tokens_read += sum(batch.lengths)
        self.caches.reserve(self.rows + len(batch.lengths), columns, wide, keep=self.rows)
        if shared is None:
            hidden = self.forward(part_of(batch, features, [0] * len(batch.lengths), batch.lengths), batch.requests)
        else:
            hidden = self._read_shared(batch, features, shared)
        if attended:
            self._see(batch.vision_mask[:, -1], wide)
        self._requests = [*self._requests, *batch.requests]
        self._lengths = [*self._lengths, *batch.lengths]
        return self.model.logits(hidden)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token per row in use; what a finished row is given does not matter.

        Returns:
            Logits after it, shape ``[b, vocabulary]``.
        """
        part = Part(
            torch.tensor(tokens, device=self.device)[:, None],
            self._lengths,
            [1] * len(tokens),
            vision_mask=None if self._vision is None else self._vision[:, None],
            wide=0 if self._vision is None else self._vision.shape[1],
        )
        hidden = self.forward(part, self._requests, first=0)
        self._lengths = [length + 1 for length in self._lengths]
        return self.model.logits(hidden)

    def drop(self, row: int) -> None:
        """Take a row out of use; the last one takes its place."""
        last = self.rows - 1
        if row != last:
            self.caches.copy_rows([last], row, self._lengths[last])
            self._requests[row], self._lengths[row] = self._requests[last], self._lengths[last]
        self._requests, self._lengths = self._requests[:last], self._lengths[:last]
        if self._vision is not None:
            self._vision[row] = self._vision[last]
            self._vision = self._vision[:last] if last else None

    def clear(self) -> None:
        """Take all rows out of use."""
        self._requests, self._lengths, self._vision = [], [], None

    def close(self) -> None:
        """Remove the caches; with them in place the model's layers would no longer mask the future by themselves."""
        self.caches.close()
        self.clear()

    def _read_shared(self, batch: PromptBatch, features: Tensor | None, shared: SharedPrefixes) -> Tensor:
        """Read each shared beginning once, copy what it left in the caches, and read the rest of every row."""
        self.tokens_read += shared.tokens - sum(shared.length)
        heads = shared.readers
        self.forward(beginnings(batch, features, shared), batch.requests[:heads])
        copies = [self.rows + row for row in shared.reader[heads:]]
        self.caches.copy_rows(copies, self.rows + heads, max(shared.length))
        rest = endings(batch, features, shared.length, shared.images, shared.images_left)
        return self.forward(rest, batch.requests)

    def forward(self, part: Part, requests: Sequence[Request], first: int | None = None) -> Tensor:
        """Final hidden states after each row's last token, ``[b, d]``.

        Args:
            part: What to read.
            requests: One per row.
            first: Row of the caches that the first row is; None for the first one not in use.
        """
        rows, width = part.tokens.shape
        first, end = self.rows if first is None else first, max(map(sum, zip(part.start, part.count, strict=True)))
        start, count = self._tensor(part.start)[:, None], self._tensor(part.count)[:, None]
        column = torch.arange(width, device=self.device)
        position = start + column
        # Padding of rows that begin at different places goes into the column that no query sees.
        aligned = len(set(part.start)) == 1
        columns = part.start[0] if aligned else torch.where(column < count, position, self.caches.columns)
        position = position.clamp(max=end - 1)
        mask = torch.arange(end, device=self.device) <= position[:, :, None]
        cursor = Cursor(slice(first, first + rows), columns, end, part.wide)
        hidden = self.read(part, requests, cursor, mask, position)
        return hidden.gather(1, (count - 1)[:, :, None].expand(-1, -1, hidden.shape[2])).squeeze(1)

    def read(self, part: Part, requests: Sequence[Request], cursor: Cursor, mask: Tensor, position: Tensor) -> Tensor:
        """One forward pass.

        Args:
            part: What to read.
            requests: One per row.
            cursor: Where in the caches.
            mask: Which columns each token may attend to, ``[b, s, columns]``.
            position: Of each token, ``[b, s]``.

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
        """Note what the tokens after new prompts may attend to: what a prompt's last token attends to."""
        if not wide:
            self.caches.forget_features(slice(self.rows, self.rows + len(vision_row)))
        held = vision_row.new_zeros(self.rows, 0) if self._vision is None else self._vision
        wide = max(wide, held.shape[1])
        rows = [nn.functional.pad(row, (0, wide - row.shape[1])) for row in (held, vision_row[:, :wide])]
        self._vision = torch.cat(rows) if wide else None

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.device)


def part_of(batch: PromptBatch, features: Tensor | None, start: Sequence[int], count: Sequence[int]) -> Part:
    """Tokens ``start`` to ``start + count`` of each prompt, with what belongs to them."""
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
    """What the rows that read a beginning read; the batch is in the order of ``shared``."""
    heads, images = shared.readers, shared.images[: shared.readers]
    begun = batch.select(range(heads))
    attended = batch.vision_mask.dim() == 3
    if not attended:
        within = begun.vision_mask.cumsum(dim=1) <= torch.tensor(images, device=batch.tokens.device)[:, None]
        begun = replace(begun, vision_mask=begun.vision_mask & within)
    given = features[:heads] if features is not None and (attended or any(images)) else None
    return part_of(begun, given, [0] * heads, shared.length[:heads])


def endings(
    batch: PromptBatch, features: Tensor | None, start: Sequence[int], images: Sequence[int], images_left: bool
) -> Part:
    """What rows read after their beginnings.

    Args:
        batch: The prompts.
        features: Their image embeddings; not looked at where none are left to read.
        start: Tokens of each row's beginning.
        images: Image tokens within it.
        images_left: Whether any row has image tokens after it.
    """
    count = [whole - at for whole, at in zip(batch.lengths, start, strict=True)]
    if batch.vision_mask.dim() == 3:  # cross-attention has its keys and values from the beginnings
        return replace(part_of(batch, features, start, count), features=None)
    later = batch.vision_mask.cumsum(dim=1) > torch.tensor(images, device=batch.tokens.device)[:, None]
    rest = replace(batch, vision_mask=batch.vision_mask & later)
    return part_of(rest, features if images_left else None, start, count)


def _replaced(batch: PromptBatch, source: Tensor, real: Tensor) -> tuple[Tensor, Tensor] | None:
    """Where the columns ``source`` of each row hold a learned vector in place of a token, and those vectors."""
    if batch.override is None:
        return None
    where, vectors = batch.override
    chosen = where.gather(1, source) & real
    turn = (where.cumsum(dim=1) - 1).gather(1, source)
    row, column = chosen.nonzero(as_tuple=True)
    return (chosen, vectors[row, turn[row, column]]) if len(row) else None
