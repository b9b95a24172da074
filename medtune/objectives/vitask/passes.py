"""How the passes of a VITask step run: without exemplar, with it, with the negative image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from medtune.losses.vitask import response_rows, same_response
from medtune.models.common.branches import pack_runs
from medtune.modules.exemplar import TokenRows, widen

Run = Callable[[Any, list["Pass"], int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pass:
    """One run of the language model.

    Attributes:
        rows: Text, and what it sees.
        features: Image features, [b, s_e, d].
        exemplars: Embeddings for the rows' placeholders, [b * k, d].
    """

    rows: TokenRows
    features: Tensor
    exemplars: Tensor | None = None


def joint_states(model: Any, passes: list[Pass], pad_id: int) -> tuple[Tensor, Tensor]:
    """Run all passes as one batch, padded on the right to one length.

    Returns:
        The states that predict the response tokens, [p, n, d], and those tokens, [n].

    Raises:
        ModelError: If the passes' responses differ.
    """
    width = max(one.rows.tokens.shape[1] for one in passes)
    rows = [widen(one.rows, width, pad_id) for one in passes]
    replace = None
    exemplars = [one.exemplars for one in passes if one.exemplars is not None]
    if exemplars:
        replace = torch.cat([_placeholders(one) for one in rows]), torch.cat(exemplars)
    hidden = model.hidden(
        torch.cat([one.tokens for one in rows]),
        torch.cat([one.features for one in passes]),
        vision_mask=torch.cat([one.vision_mask for one in rows]),
        replace=replace,
    ).flatten(0, 1)
    found = [response_rows(one.labels) for one in rows if one.labels is not None]
    same_response([targets for _, targets in found])
    places = torch.cat([places + number * rows[0].tokens.numel() for number, (places, _) in enumerate(found)])
    return hidden.index_select(0, places).unflatten(0, (len(passes), -1)), found[0][1]


def packed_states(model: Any, passes: list[Pass], pad_id: int) -> tuple[Tensor, Tensor]:
    """What :func:`joint_states` gives, the first two passes in the same rows (:mod:`medtune.models.common.branches`).

    What they share, the image's tokens among it, ends where the exemplar begins. A further pass runs by itself: in
    those rows' width it would be padding for a good part.
    """
    plain, prompted, *others = passes
    assert prompted.exemplars is not None and prompted.rows.placeholders is not None
    shared = prompted.rows.placeholders.int().argmax(dim=1)
    packed = pack_runs([plain.rows, prompted.rows], shared, pad_id=pad_id)
    hidden = model.hidden(
        packed.rows.tokens,
        plain.features,
        vision_mask=packed.rows.vision_mask,
        replace=(_placeholders(packed.rows), prompted.exemplars),
        mask=packed.mask,
        input_pos=packed.input_pos,
    ).flatten(0, 1)
    found = [packed.supervised(branch) for branch in (1, 2)]
    places, targets = torch.cat([places for places, _ in found]), [targets for _, targets in found]
    same_response(targets)
    states = hidden.index_select(0, places).unflatten(0, (2, -1))
    if others:
        more, asked = separate_states(model, others, pad_id)
        same_response([targets[0], asked])
        states = torch.cat([states, more])
    return states, targets[0]


def separate_states(model: Any, passes: list[Pass], pad_id: int) -> tuple[Tensor, Tensor]:
    """What :func:`joint_states` gives, one pass after the other."""
    states, targets = [], []
    for one in passes:
        replace = None if one.exemplars is None else (_placeholders(one.rows), one.exemplars)
        hidden = model.hidden(one.rows.tokens, one.features, vision_mask=one.rows.vision_mask, replace=replace)
        assert one.rows.labels is not None
        places, target = response_rows(one.rows.labels)
        states.append(hidden.flatten(0, 1).index_select(0, places))
        targets.append(target)
    same_response(targets)
    return torch.stack(states), targets[0]


def _placeholders(rows: TokenRows) -> Tensor:
    return torch.zeros_like(rows.tokens, dtype=torch.bool) if rows.placeholders is None else rows.placeholders
