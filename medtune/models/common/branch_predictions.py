"""Which states predict the supervised tokens of branches, found on the host, so that the last layer computes no others.

:meth:`medtune.models.common.branches.PackedRows.log_probs` needs the states of all columns and searches the supervised
ones on the device. Here both are settled when a batch is made.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medtune.errors import ModelError
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.losses.log_probs import target_log_probs
from medtune.models.common.branches import PackedRows


@dataclass(frozen=True)
class Predictions:
    """Where the predictions of the branches' supervised tokens are.

    Attributes:
        columns: [b, n], the argument ``keep`` of ``hidden``; short rows are filled with any other columns.
        rows: [m], the state of each supervised token among the flattened ``[b * n]`` states.
        targets: [m], the id that it must predict; ``IGNORE_INDEX`` in the single entry of a batch without any.
        slots: [m], its place among ``b * k * width`` tokens of branches.
        branches: k.
        width: the most supervised tokens of one branch.
    """

    columns: Tensor
    rows: Tensor
    targets: Tensor
    slots: Tensor
    branches: int
    width: int

    @staticmethod
    def of(packed: PackedRows) -> "Predictions":
        """The predictions of packed rows.

        Raises:
            ModelError: If a token of a prefix is supervised; it would belong to every branch.
        """
        labels = packed.rows.labels
        if labels is None or bool(((packed.segment == 0) & (labels != IGNORE_INDEX)).any()):
            raise ModelError("branches need labels, and their prefix must have none")
        b, s = packed.segment.shape
        found = [packed.supervised(number) for number in range(1, packed.branches + 1)]
        found = [(rows[targets != IGNORE_INDEX], targets[targets != IGNORE_INDEX]) for rows, targets in found]
        predictors, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        places = torch.cat([_number_in_row(rows // s) for rows, _ in found])
        width = int(places.max()) + 1 if len(places) else 1
        owners = torch.cat([torch.full_like(rows, number) for number, (rows, _) in enumerate(found)])
        needed = torch.zeros(b * s, dtype=torch.bool)
        needed[predictors] = True
        needed = needed.view(b, s)
        most = max(1, int(needed.sum(dim=1).max()))
        rows = predictors // s
        states = rows * most + needed.cumsum(dim=1).flatten()[predictors] - 1
        slots = (rows * packed.branches + owners) * width + places
        if not len(targets):  # one state without a target, so that every process still runs the same backward pass
            states = slots = torch.zeros(1, dtype=torch.long)
            targets = torch.full((1,), IGNORE_INDEX)
        columns = (~needed).int().argsort(dim=1, stable=True)[:, :most]
        return Predictions(columns, states, targets, slots, packed.branches, width)

    def log_probs(self, hidden: Tensor, head: Callable[[Tensor], Tensor], chunk_tokens: int = 512) -> Tensor:
        """Summed log-probabilities of the branches, [b, k] in nats, summed in fp64; differentiable.

        Args:
            hidden: [b, n, d], the states of ``columns``.
            head: As for :func:`medtune.losses.log_probs.target_log_probs`.
            chunk_tokens: As for the same function.
        """
        states = hidden.flatten(0, 1).index_select(0, self.rows)
        values = target_log_probs(states, self.targets, head, chunk_tokens).double()
        shape = (len(hidden), self.branches, self.width)
        whole = values.new_zeros(len(hidden) * self.branches * self.width)
        return whole.index_copy(0, self.slots, values).view(shape).sum(dim=2)

    def lengths(self, batch: int) -> Tensor:
        """Number of supervised tokens of each branch, [b, k]."""
        counts = torch.zeros(batch * self.branches * self.width, dtype=torch.long, device=self.slots.device)
        counts[self.slots] = (self.targets != IGNORE_INDEX).long()
        return counts.view(batch, self.branches, self.width).sum(dim=2)


def _number_in_row(rows: Tensor) -> Tensor:
    """The number of each entry among those of the same row, from 0; ``rows`` is sorted."""
    return torch.arange(len(rows)) - torch.searchsorted(rows, rows)
