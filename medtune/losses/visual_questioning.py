"""The loss of a model that learns to ask and to answer: L_vq + L_qa of STLLaVA-Med."""

from collections.abc import Callable

from torch import Tensor

from medtune.losses.chunks import sum_over_chunks
from medtune.losses.cross_entropy import IGNORE_INDEX, shifted_targets, supervised_weight, token_cross_entropy


def asking_and_answering(
    hidden: Tensor,
    labels: Tensor,
    asked: Tensor,
    head: Callable[[Tensor], Tensor],
    chunk_tokens: int = 512,
    row_weights: Tensor | None = None,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum of the questions' and the answers' cross-entropy, and each of them, in one pass through the head.

    With the turns (q_1, a_1), ..., (q_M, a_M) about an image v (STLLaVA-Med, section 2, stage 1)::

        L_vq = -sum_j log p(q_{j+1} | v, q_1, a_1, ..., q_j, a_j)
        L_qa = -sum_j log p(a_{j+1} | v, q_1, a_1, ..., q_j, a_j, q_{j+1})

    Both have the weight 1 and every token counts once, so L_vq + L_qa is the cross-entropy of all supervised tokens.

    Args:
        hidden: ``[b, s, d]`` decoder states after the last norm, or ``[b, n, d]`` of ``columns``.
        labels: ``[b, s]`` unshifted ids, ``IGNORE_INDEX`` where not supervised.
        asked: ``[b, s]``, True at the labels of questions; other labels are those of answers.
        head: Maps ``[t, d]`` to logits ``[t, V]``; its parameters get gradients too.
        chunk_tokens: Maximum number of tokens whose logits are in memory; 0 takes all at once.
        row_weights: ``[b]`` factor of the loss of each row's tokens, fp64; None is 1 for every row.
        columns: ``[b, n]`` from :func:`~medtune.losses.cross_entropy.predicting_columns`; None: the states are of all
            columns.

    Returns:
        L_vq + L_qa in nats (differentiable), :func:`~medtune.losses.cross_entropy.supervised_weight` of all labels,
        L_vq (not differentiable), and the weight of its labels. Without a supervised token the sum is zero and every
        gradient is zero.
    """
    # the flag of a label moves with it; the last position predicts nothing
    targets, flags = shifted_targets(labels), shifted_targets(asked.long()) == 1
    if columns is not None:
        targets, flags = targets.gather(1, columns), flags.gather(1, columns)
    width, targets = targets.shape[1], targets.flatten()
    supervised = targets != IGNORE_INDEX
    of_question = flags.flatten() & supervised
    rows = supervised.nonzero().squeeze(1)
    if len(rows) == 0:
        rows = rows.new_zeros(1)  # a token whose target is ignored: loss and gradients are zero

    def loss(states: Tensor, wanted: Tensor, flags: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states[0])
        questions, _ = token_cross_entropy(logits, wanted.masked_fill(~flags, IGNORE_INDEX), *weights)
        answers, _ = token_cross_entropy(logits, wanted.masked_fill(flags, IGNORE_INDEX), *weights)
        return questions + answers, questions

    states = hidden.flatten(0, 1).index_select(0, rows).unsqueeze(0)
    weights = () if row_weights is None else (row_weights[rows // width],)
    total, questions = sum_over_chunks(loss, states, (targets[rows], of_question[rows], *weights), chunk_tokens)
    of_questions = labels.masked_fill(~asked, IGNORE_INDEX)
    return total, supervised_weight(labels, row_weights), questions, supervised_weight(of_questions, row_weights)
