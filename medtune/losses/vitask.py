"""The losses of one VITask step (Eq. 7), from logits that are computed once, chunk by chunk."""

from collections.abc import Callable

import torch
from torch import Tensor

from medtune.errors import ModelError
from medtune.losses.chunks import sum_over_chunks
from medtune.losses.contrastive_response import contrastive_response
from medtune.losses.cross_entropy import IGNORE_INDEX, shifted_targets, token_cross_entropy
from medtune.losses.response_alignment import response_alignment


def response_rows(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions of the states that predict the response tokens.

    Args:
        labels: ``[b, s]`` unshifted ids, ``IGNORE_INDEX`` where not supervised.

    Returns:
        Rows of the flattened ``[b * s]`` states and the id that each must predict, both ``[n]``. Without a supervised
        token the result is one row whose target is ignored, so that every process still runs the same backward pass.
    """
    targets = shifted_targets(labels).flatten()
    rows = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    if len(rows) == 0:
        rows = rows.new_zeros(1)
    return rows, targets[rows]


def same_response(targets: list[Tensor]) -> None:
    """Refuse passes with different response tokens, because the losses compare them position by position.

    Raises:
        ModelError: If the response tokens differ.
    """
    if not all(torch.equal(targets[0], other) for other in targets[1:]):
        raise ModelError(
            "the passes of a VITask step hold different response tokens; the transform must not change the response "
            "when the image changes"
        )


def vitask_losses(
    states: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    exemplar: bool,
    contrasted: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    detach: bool = True,
    chunk_tokens: int = 512,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """``L = L_Van + L_EP + alpha L_RDA + beta L_CRT`` (Eq. 7), summed over response tokens.

    The logits of each pass are used for all its terms. Logits without exemplar are used for Van, as the student of RDA
    and as the positive of CRT; logits with exemplar for EP and as the teacher of RDA. A term of weight 0 is not
    computed. The result equals the four losses of whole logits, forward and backward; see
    :func:`medtune.losses.chunks.sum_over_chunks` for the method.

    Args:
        states: ``[p, n, d]`` decoder states that predict the response tokens. The passes are, in order: without
            exemplar; with exemplar, if ``exemplar``; with the negative image, if ``contrasted`` is given.
        targets: ``[n]`` ids, ``IGNORE_INDEX`` where a token does not count.
        head: Maps ``[t, d]`` to logits ``[t, V]``; its parameters get gradients too.
        exemplar: Whether there is a pass with exemplar.
        contrasted: ``[n]`` bool, True where a token's sample has a negative. Other tokens do not count in L_CRT.
        alpha: Weight of L_RDA.
        beta: Weight of L_CRT.
        detach: See :func:`medtune.losses.response_alignment.response_alignment`.
        chunk_tokens: Number of response tokens whose logits of all passes are in memory at once; 0 takes all.
        token_weights: ``[n]`` weight of each response token in every term, fp64; None is 1 for all.

    Returns:
        The total, and each computed term's sum by name (``van``, ``ep``, ``rda``, ``crt``), detached. All in nats and
        fp64.
    """
    names = ["van"] + ["ep"] * exemplar + ["rda"] * (exemplar and alpha != 0)
    names += ["crt"] * (contrasted is not None and beta != 0)
    weights = torch.tensor([{"rda": alpha, "crt": beta}.get(name, 1.0) for name in names], dtype=torch.float64)
    weights = weights.to(states.device)

    def loss(state: Tensor, target: Tensor, has_negative: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        each = given[0] if given else None
        logits = head(state.flatten(0, 1)).unflatten(0, state.shape[:2])
        terms = {"van": token_cross_entropy(logits[0], target, each)[0]}
        if exemplar:
            terms["ep"] = token_cross_entropy(logits[1], target, each)[0]
        if "rda" in names:
            terms["rda"] = response_alignment(logits[0], logits[1], target, detach, each)[0]
        if "crt" in names:
            asked = target.masked_fill(~has_negative, IGNORE_INDEX)
            terms["crt"] = contrastive_response(logits[0], logits[-1], asked, each)[0]
        sums = torch.stack([terms[name] for name in names])
        return (weights * sums).sum(), sums

    everywhere = torch.ones_like(targets, dtype=torch.bool) if contrasted is None else contrasted
    per_token = (targets, everywhere) if token_weights is None else (targets, everywhere, token_weights)
    total, sums = sum_over_chunks(loss, states, per_token, chunk_tokens)
    return total, dict(zip(names, sums, strict=True))
