"""Next-token cross-entropy over the supervised tokens, without the logits of a whole batch in memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from medtune.losses.chunks import sum_over_chunks

IGNORE_INDEX = -100


def shifted_targets(labels: Tensor) -> Tensor:
    """Return the label that each position must predict.

    Args:
        labels: ``[b, s]`` token ids, ``IGNORE_INDEX`` where a token is not supervised.

    Returns:
        ``[b, s]``: ``labels`` shifted to the left by one, the last position ignored. Count supervised tokens on this
        tensor, not on ``labels``: the mean is then also correct if a sequence's first token is supervised.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


_WORTH_CHOOSING = 0.75  # of the columns; above it, the masks of chosen columns cost more than the others save


def predicting_columns(labels: Tensor) -> Tensor | None:
    """The columns whose states predict a supervised token: the argument ``keep`` of a model's ``hidden``.

    Args:
        labels: ``[b, s]`` unshifted ids.

    Returns:
        ``[b, n]``, different columns of each row; n is the largest number that a row needs, and at least 1. A row that
        needs fewer has others too. None where nearly all columns are needed.
    """
    supervised = shifted_targets(labels) != IGNORE_INDEX
    most = max(int(supervised.sum(dim=1).max()), 1)
    if most > _WORTH_CHOOSING * labels.shape[1]:
        return None
    return (~supervised).int().argsort(dim=1, stable=True)[:, :most]


def supervised_weight(labels: Tensor, row_weights: Tensor | None = None) -> Tensor:
    """Return what a summed loss is divided by: the supervised tokens, each with the weight of its row.

    Args:
        labels: ``[b, s]`` unshifted ids.
        row_weights: ``[b]``; None is 1 for every row.

    Returns:
        ``sum_r w_r n_r``, a scalar: a count without weights, in fp64 with weights.
    """
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
    return counts.sum() if row_weights is None else (counts.double() * row_weights).sum()


def token_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over supervised positions, ``-sum_i w_i log p(y_i)``.

    Args:
        logits: ``[..., V]`` of any float type; each position is computed in fp32 (fp64 stays fp64) and the sum is
            accumulated in fp64, so that chunks, micro-batches and processes give the same sum.
        targets: ``[...]`` ids, ``IGNORE_INDEX`` where there is no target.
        weights: ``[...]`` weight of each position, fp64; None is 1 everywhere.

    Returns:
        The sum in nats, and the number of supervised positions.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    flat = logits.reshape(-1, logits.shape[-1])
    loss = F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none")
    if weights is not None:
        loss = loss.double() * weights.reshape(-1)
    return loss.sum(dtype=torch.float64), (targets != IGNORE_INDEX).sum()


def chunked_cross_entropy(
    hidden: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    chunk_tokens: int = 512,
    row_weights: Tensor | None = None,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`token_cross_entropy` of ``head(hidden)``, for supervised tokens only and in chunks.

    Equal to the plain loss, forward and backward, with the logits of only one chunk in memory at a time; see
    :func:`medtune.losses.chunks.sum_over_chunks` for the method. This sum is
    ``L(g) = -sum_i log f(y_i | X_v, X_p, y_<i)`` (InstFree Eq. 1 and 2).

    Args:
        hidden: ``[b, s, d]`` decoder states after the last norm, or ``[b, n, d]`` of ``columns``.
        labels: ``[b, s]`` unshifted ids, ``IGNORE_INDEX`` where not supervised.
        head: Maps ``[t, d]`` to logits ``[t, V]``; its parameters get gradients too.
        chunk_tokens: Maximum number of tokens per chunk (the chunks have equal size); 0 takes all at once.
        row_weights: ``[b]`` factor of the loss of each row's tokens, fp64; None is 1 for every row.
        columns: ``[b, n]`` from :func:`predicting_columns`; None: the states are of all columns.

    Returns:
        The sum in nats and :func:`supervised_weight`. Without a supervised token the sum is zero and every gradient is
        zero, but every process still runs the same backward pass.
    """
    targets = shifted_targets(labels) if columns is None else shifted_targets(labels).gather(1, columns)
    width, targets = targets.shape[1], targets.flatten()
    rows = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    if len(rows) == 0:
        rows = rows.new_zeros(1)  # a token whose target is ignored: loss and gradients are zero

    def loss(states: Tensor, wanted: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return token_cross_entropy(head(states[0]), wanted, *weights)

    states = hidden.flatten(0, 1).index_select(0, rows).unsqueeze(0)
    weights = () if row_weights is None else (row_weights[rows // width],)
    total, _ = sum_over_chunks(loss, states, (targets[rows], *weights), chunk_tokens)
    return total, supervised_weight(labels, row_weights)
