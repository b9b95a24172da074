"""Pack several continuations of one prefix into one row, so that the shared prefix is computed once.

A row is a prefix (the image's tokens, the question) followed by its branches: answers to score, the two responses of a
preference pair, the same question with and without an exemplar, or several questions on one image. Each branch attends
to the prefix and to itself, and its positions continue from the end of the prefix. Every hidden state and every
gradient therefore equals that of a row with the prefix and this branch alone. Models that read images as tokens read
the image once per row; in models with cross-attention each column has its own row of ``vision_mask``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from medtune.errors import ModelError
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.losses.log_probs import target_log_probs
from medtune.models.common.branch_attention import BranchMask
from medtune.modules.exemplar import TokenRows, take_columns

PADDING = -1
"""Segment number of a padding column."""


@dataclass(frozen=True)
class Branch:
    """One continuation for each row of a batch.

    Attributes:
        tokens: ids [b, t].
        labels: [b, t] unshifted, ``IGNORE_INDEX`` where not supervised; None supervises nothing.
        padding: [b, t], True at real tokens, on either side; None: all are real. A row that lacks this branch has no
            real token in it.
    """

    tokens: Tensor
    labels: Tensor | None = None
    padding: Tensor | None = None


@dataclass(frozen=True)
class PackedRows:
    """Rows for a VLM's ``hidden``, from :func:`pack` or :func:`pack_runs`.

    Attributes:
        rows: tokens, labels, ``vision_mask`` and placeholders of all columns [b, s].
        segment: [b, s], 0 in the prefix, i in the i-th branch (from 1), ``PADDING`` elsewhere.
        input_pos: [b, s], the argument ``input_pos`` of ``hidden``.
        mask: [b, s, s], True = may attend; of aligned rows a :class:`BranchMask`.
        branches: k, how many branches a row can have.
        width: t, columns of the longest branch.
    """

    rows: TokenRows
    segment: Tensor
    input_pos: Tensor
    mask: Tensor | BranchMask
    branches: int
    width: int

    @property
    def places(self) -> Tensor:
        """Column of each state of each branch, [b, k, 1 + t]: the prefix's last token, then the branch's.

        The state before a token predicts its label. Entries beyond a branch's end repeat some column of the row; see
        :attr:`filled`.
        """
        members = self._members()
        first = members.int().argmax(dim=2, keepdim=True)
        columns = first + torch.arange(self.width, device=first.device)
        last = _last_of_prefix(self.segment)[:, :, None].expand(-1, self.branches, 1)
        return torch.cat([last, columns.clamp(max=self.segment.shape[1] - 1)], dim=2)

    @property
    def filled(self) -> Tensor:
        """Which of :attr:`places` belong to a branch, [b, k, 1 + t]; none where a row lacks the branch."""
        length = self._members().sum(dim=2, keepdim=True)
        return torch.arange(1 + self.width, device=length.device) <= torch.where(length > 0, length, -1)

    def unpack(self, values: Tensor) -> Tensor:
        """Sort ``values`` of columns [b, s, ...] by branch: [b, k, 1 + t, ...], from the prefix's last token on."""
        rows = torch.arange(len(values), device=values.device)[:, None, None]
        return values[rows, self.places]

    def unpack_labels(self) -> Tensor:
        """The labels that belong to :meth:`unpack`, [b, k, 1 + t] unshifted; without those of the prefix."""
        if self.rows.labels is None:
            raise ModelError("branches without labels were packed, so there are none to unpack")
        labels = self.unpack(self.rows.labels).masked_fill(~self.filled, IGNORE_INDEX)
        return torch.cat([torch.full_like(labels[:, :, :1], IGNORE_INDEX), labels[:, :, 1:]], dim=2)

    def supervised(self, branch: int | None = None) -> tuple[Tensor, Tensor]:
        """Find the states that predict the supervised tokens of the prefix and one branch.

        Args:
            branch: Number of the branch, from 1. None takes all branches, and the prefix's tokens once.

        Returns:
            Rows of the flattened ``[b * s]`` states and the id that each must predict, both ``[n]``, as
            :func:`medtune.losses.vitask.response_rows` gives them for rows of one branch each. If there is no
            supervised token, the result is one row with an ignored target, so that every process still runs the same
            backward pass.
        """
        labels, columns = self._supervised(branch)
        if len(columns) == 0:
            return columns.new_zeros(1), columns.new_full((1,), IGNORE_INDEX)
        return self._predictors().flatten()[columns], labels.flatten()[columns]

    def log_probs(
        self, hidden: Tensor, head: Callable[[Tensor], Tensor], chunk_tokens: int = 512
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each branch's supervised tokens, including those of the prefix; differentiable.

        Equal to :func:`medtune.losses.log_probs.sequence_log_probs` of rows of one branch each.

        Args:
            hidden: [b, s, d] of these rows.
            head: As for :func:`medtune.losses.log_probs.target_log_probs`.
            chunk_tokens: As for the same function.

        Returns:
            The sums [b, k] in nats, computed in fp64, and the number of tokens in each sum, [b, k]. Both are 0 for a
            branch that a row lacks.
        """
        labels, columns = self._supervised(None)
        rows, targets = self.supervised()
        values = target_log_probs(hidden.flatten(0, 1).index_select(0, rows), targets, head, chunk_tokens)
        by_column = values.new_zeros(labels.numel())
        # Without a supervised token the only value is zero; it still connects the result to the model's graph.
        by_column = by_column.index_copy(0, columns if len(columns) else rows, values).view(labels.shape)
        members = self._members()
        counted = (members | (self.segment == 0)[:, None]) & members.any(dim=2, keepdim=True)
        sums = by_column.double()[:, None].masked_fill(~counted, 0.0).sum(dim=2)
        return sums, ((labels != IGNORE_INDEX)[:, None] & counted).sum(dim=2)

    def _members(self) -> Tensor:
        """[b, k, s], True at the columns of each branch."""
        numbers = torch.arange(1, self.branches + 1, device=self.segment.device)
        return self.segment[:, None, :] == numbers[:, None]

    def _supervised(self, branch: int | None) -> tuple[Tensor, Tensor]:
        """Labels [b, s] of the requested tokens, and their columns in the flattened rows, [n]."""
        assert self.rows.labels is not None
        requested = self._predictors() >= 0
        if branch is not None:
            requested &= (self.segment == 0) | (self.segment == branch)
        labels = self.rows.labels.masked_fill(~requested, IGNORE_INDEX)
        return labels, (labels != IGNORE_INDEX).flatten().nonzero().squeeze(1)

    def _predictors(self) -> Tensor:
        """Row of the flattened states that predicts each column, [b, s]; -1 for a prefix's first and padding."""
        b, s = self.segment.shape
        column = torch.arange(s, device=self.segment.device)
        follows = self.segment == pad(self.segment[:, :-1], (1, 0), value=PADDING)
        before = torch.where(follows, column - 1, _last_of_prefix(self.segment))
        known = (self.segment >= 0) & (follows | (self.segment > 0))
        return torch.where(known, before + s * torch.arange(b, device=column.device)[:, None], -1)


def pack(
    prefix: TokenRows,
    branches: Sequence[Branch],
    *,
    pad_id: int,
    pad_side: Literal["right", "left"] = "right",
    aligned: bool = False,
) -> PackedRows:
    """Pack each prefix and its branches into one row, without gaps.

    Args:
        prefix: [b, p], padded on either side; without ``padding`` every token is real. Each row holds at least one
            token, all image tokens and all placeholders.
        branches: In the order in which they are packed.
        pad_id: Fills short rows.
        pad_side: The side that is filled.
        aligned: Let every prefix and every branch begin in the same column in all rows, with its padding on its right.
            The rows are longer by that padding, and their mask is a :class:`BranchMask`, whose attention is cheaper.

    Returns:
        Rows as long as the longest one. A branch's tokens see the image features that the prefix's last token sees.

    Raises:
        ModelError: If a prefix is empty.
    """
    parts = [Branch(prefix.tokens, prefix.labels, prefix.padding), *branches]
    real = torch.cat([_real(part) for part in parts], dim=1)
    segment = torch.cat([torch.full_like(part.tokens, number) for number, part in enumerate(parts)], dim=1)
    segment = segment.masked_fill(~real, PADDING)
    if not bool((segment == 0).any(dim=1).all()):
        raise ModelError("a row has no token before its branches; branches need a prefix of one token at least")
    if aligned:
        order = _aligned(real, [part.tokens.shape[1] for part in parts])
    else:
        length = int(real.sum(dim=1).max())
        order = (real if pad_side == "left" else ~real).int().argsort(dim=1, stable=True)
        order = order[:, -length:] if pad_side == "left" else order[:, :length]
    more = segment.shape[1] - prefix.tokens.shape[1]
    rows = TokenRows(
        torch.cat([part.tokens for part in parts], dim=1).masked_fill(~real, pad_id),
        _extended(prefix.vision_mask, _last_of_prefix(segment), real),
        torch.cat([_labels(part) for part in parts], dim=1).masked_fill(~real, IGNORE_INDEX),
        real,
        None if prefix.placeholders is None else pad(prefix.placeholders, (0, more)) & real,
    )
    width = max((branch.tokens.shape[1] for branch in branches), default=0)
    start = prefix.tokens.shape[1] if aligned else None
    return _packed(take_columns(rows, order), segment.gather(1, order), len(branches), width, start)


def pack_runs(runs: Sequence[TokenRows], shared: Tensor, *, pad_id: int) -> PackedRows:
    """Pack complete rows (runs) with the same beginning into one row: the first run, then the rest of each other run.

    Args:
        runs: Batches with the same number of rows, padded on the right, that see the same images. Image tokens are in
            the shared beginning only.
        shared: [b], the number of columns that the runs of each row have in common: at least one, fewer than any run
            has.
        pad_id: Fills the remaining columns.

    Returns:
        Rows in which the i-th run is the i-th branch. Padding of a run counts as part of its branch: it comes last in
        the run, so that no real token attends to it.
    """
    first, *others = runs
    start, width = shared[:, None], first.tokens.shape[1]
    columns = torch.arange(width, device=shared.device)
    segments = [(columns >= start).long()]
    parts, longest = [first], width
    for number, run in enumerate(others, start=2):
        end = run.tokens.shape[1]
        source = start + torch.arange(end - int(shared.min()), device=shared.device)
        free = source >= end
        tail = take_columns(run, source.clamp(max=end - 1))
        parts.append(_blanked(tail, free, pad_id))
        segments.append(torch.full_like(source, number))
        longest = max(longest, end)
    widths = [width - int(shared.min()), *(part.tokens.shape[1] for part in parts[1:])]
    packed = _packed(_concatenated(parts), torch.cat(segments, dim=1), len(runs), max(widths))
    # Padding may extend beyond the longest run, but its positions must stay within that length.
    return replace(packed, input_pos=packed.input_pos.clamp(max=longest - 1))


def shared_length(runs: Sequence[TokenRows]) -> Tensor:
    """Number of columns that runs share before a supervised one, [b]: ``shared`` of :func:`pack_runs`.

    Args:
        runs: Batches with the same number of rows, padded on the right.

    Raises:
        ModelError: If the runs of a row differ from the first column on.
    """
    width = min(run.tokens.shape[1] for run in runs)
    same = torch.ones_like(runs[0].tokens[:, :width], dtype=torch.bool)
    for run in runs:
        same &= run.tokens[:, :width] == runs[0].tokens[:, :width]
        if run.labels is not None:
            same &= run.labels[:, :width] == IGNORE_INDEX
        if run.padding is not None:
            same &= run.padding[:, :width]
    shared = same.int().cumprod(dim=1).sum(dim=1).clamp(max=width - 1)
    if not bool((shared > 0).all()):
        row = int((shared == 0).nonzero()[0])
        raise ModelError(f"row {row}: the runs to be packed do not begin alike; run them one by one")
    return shared


def _aligned(real: Tensor, widths: Sequence[int]) -> Tensor:
    """The columns, with the real ones of each part first within the part."""
    order, begin = [], 0
    for width in widths:
        order.append(begin + (~real[:, begin : begin + width]).int().argsort(dim=1, stable=True))
        begin += width
    return torch.cat(order, dim=1)


def _packed(rows: TokenRows, segment: Tensor, branches: int, width: int, start: int | None = None) -> PackedRows:
    """Derive mask and positions from the segments; each segment is a contiguous range of columns.

    With ``start``, the column in which the branches begin in every row, the mask is a :class:`BranchMask`.
    """
    first = start or 0
    real, own = segment >= 0, segment[:, first:]
    visible = (segment[:, None, :] == 0) | (segment[:, None, :] == own[:, :, None])
    # Every token sees itself, so that the softmax of a padding row is defined.
    itself = torch.eye(segment.shape[1], dtype=torch.bool, device=segment.device)[first:]
    rest = ((visible & real[:, None, :]).tril(diagonal=first)) | itself
    position = torch.zeros_like(segment)
    for number in range(branches + 1):
        members = segment == number
        rank = members.long().cumsum(dim=1) - 1
        begin = (segment == 0).sum(dim=1, keepdim=True) if number else 0
        position = torch.where(members, rank + begin, position)
    mask = rest if start is None else BranchMask(start, rest, int(position.max()) + 1)
    return PackedRows(rows, segment, position, mask, branches, width)


def _last_of_prefix(segment: Tensor) -> Tensor:
    """Column of each prefix's last token, [b, 1]."""
    columns = torch.arange(segment.shape[1], device=segment.device)
    return ((segment == 0) * columns).amax(dim=1, keepdim=True)


def _real(part: Branch) -> Tensor:
    return torch.ones_like(part.tokens, dtype=torch.bool) if part.padding is None else part.padding


def _labels(part: Branch) -> Tensor:
    return torch.full_like(part.tokens, IGNORE_INDEX) if part.labels is None else part.labels


def _extended(vision_mask: Tensor, last: Tensor, real: Tensor) -> Tensor:
    """The prefix's ``vision_mask``, then that of its last token for all branches; padding sees nothing."""
    if vision_mask.dim() == 2:
        return vision_mask
    rows = torch.arange(len(last), device=last.device)[:, None]
    more = vision_mask[rows, last].expand(-1, real.shape[1] - vision_mask.shape[1], -1)
    return torch.cat([vision_mask, more], dim=1) & real[:, :, None]


def _blanked(tail: TokenRows, free: Tensor, pad_id: int) -> TokenRows:
    return TokenRows(
        tail.tokens.masked_fill(free, pad_id),
        tail.vision_mask if tail.vision_mask.dim() == 2 else tail.vision_mask & ~free[:, :, None],
        _labels(Branch(tail.tokens, tail.labels)).masked_fill(free, IGNORE_INDEX),
        placeholders=_placeholders(tail) & ~free,
    )


def _concatenated(parts: Sequence[TokenRows]) -> TokenRows:
    sees = [part.vision_mask for part in parts]
    return TokenRows(
        torch.cat([part.tokens for part in parts], dim=1),
        sees[0] if sees[0].dim() == 2 else torch.cat(sees, dim=1),
        torch.cat([_labels(Branch(part.tokens, part.labels)) for part in parts], dim=1),
        placeholders=torch.cat([_placeholders(part) for part in parts], dim=1),
    )


def _placeholders(rows: TokenRows) -> Tensor:
    return torch.zeros_like(rows.tokens, dtype=torch.bool) if rows.placeholders is None else rows.placeholders
