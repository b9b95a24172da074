"""Runs the forward passes of a VITask step: without exemplar, with exemplar, and with the negative image."""

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
        rows: The tokens, and the image features that each may attend to.
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
    width = max(run.rows.tokens.shape[1] for run in passes)
    texts = [widen(run.rows, width, pad_id) for run in passes]
    replace = None
    exemplars = [run.exemplars for run in passes if run.exemplars is not None]
    if exemplars:
        replace = torch.cat([_placeholders(text) for text in texts]), torch.cat(exemplars)
    hidden = model.hidden(
        torch.cat([text.tokens for text in texts]),
        torch.cat([run.features for run in passes]),
        vision_mask=torch.cat([text.vision_mask for text in texts]),
        replace=replace,
    ).flatten(0, 1)
    responses = [response_rows(text.labels) for text in texts if text.labels is not None]
    same_response([targets for _, targets in responses])
    places = torch.cat([places + number * texts[0].tokens.numel() for number, (places, _) in enumerate(responses)])
    return hidden.index_select(0, places).unflatten(0, (len(passes), -1)), responses[0][1]


def packed_states(model: Any, passes: list[Pass], pad_id: int) -> tuple[Tensor, Tensor]:
    """As :func:`joint_states`, with the first two passes in the same rows (:mod:`medtune.models.common.branches`).

    They share all tokens before the exemplar, including the image tokens. A further pass runs separately: at the width
    of the packed rows, a large part of it would be padding.
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
    responses = [packed.supervised(branch) for branch in (1, 2)]
    places, targets = torch.cat([places for places, _ in responses]), [targets for _, targets in responses]
    same_response(targets)
    states = hidden.index_select(0, places).unflatten(0, (2, -1))
    if others:
        more_states, more_targets = separate_states(model, others, pad_id)
        same_response([targets[0], more_targets])
        states = torch.cat([states, more_states])
    return states, targets[0]


def separate_states(model: Any, passes: list[Pass], pad_id: int) -> tuple[Tensor, Tensor]:
    """As :func:`joint_states`, with one pass after the other."""
    states, targets = [], []
    for run in passes:
        replace = None if run.exemplars is None else (_placeholders(run.rows), run.exemplars)
        hidden = model.hidden(run.rows.tokens, run.features, vision_mask=run.rows.vision_mask, replace=replace)
        assert run.rows.labels is not None
        places, target = response_rows(run.rows.labels)
        states.append(hidden.flatten(0, 1).index_select(0, places))
        targets.append(target)
    same_response(targets)
    return torch.stack(states), targets[0]


def _placeholders(rows: TokenRows) -> Tensor:
    return torch.zeros_like(rows.tokens, dtype=torch.bool) if rows.placeholders is None else rows.placeholders
