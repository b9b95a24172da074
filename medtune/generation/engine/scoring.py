"""Log-probabilities of given continuations by teacher forcing, with all continuations of a prompt in one row.

The prompt is read once for all its continuations (:mod:`medtune.models.common.branches`). Every number equals that of a
separate forward pass over the prompt and one continuation.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from medtune.generation.engine.batches import left_pad
from medtune.generation.interfaces import AnswerModel
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.losses.log_probs import target_log_probs
from medtune.models.common.branches import Branch, pack
from medtune.modules.exemplar import TokenRows

LOGITS_AT_ONCE = 256
Exemplars = tuple[Tensor, Tensor]


def score_continuations(
    model: AnswerModel,
    prompts: Sequence[Sequence[int]],
    vision_mask: Tensor,
    features: Tensor | None,
    continuations: Sequence[Sequence[Sequence[int]]],
    *,
    pad_id: int,
    max_seq_len: int,
    exemplars: Exemplars | None = None,
    before_forward: Callable[[Sequence[int]], None] | None = None,
) -> list[list[float]]:
    """Return the sum of the log-probabilities of each continuation's tokens after its prompt.

    Args:
        model: A VLM; its caches must be absent or disabled.
        prompts: Unpadded prompt tokens, one list per row.
        vision_mask: Left-padded masks of the prompts, shape ``[b, s, s_e]``, or ``[b, s_e]`` where images are tokens.
        features: Image embeddings of the prompts, shape ``[b, s_e, d]``.
        continuations: For each prompt the tokens of its continuations; none may be empty.
        pad_id: Token id for padding on the left.
        max_seq_len: Maximum row length; continuations that do not fit into a row go to a further row.
        exemplars: Mask of their places in the left-padded prompts, ``[b, s]``, and their embeddings, ``[b, k, d]``.
        before_forward: Called before the forward pass with the prompt of each of its rows.

    Returns:
        For each prompt, one number per continuation, in nats.
    """
    scores = [[0.0] * len(options) for options in continuations]
    shares = list(_shares(prompts, continuations, max_seq_len))
    if not shares:
        return scores
    rows = torch.tensor([row for row, _ in shares], device=vision_mask.device)
    asked = [[continuations[row][index] for index in indices] for row, indices in shares]
    if before_forward is not None:
        before_forward([row for row, _ in shares])
    token_log_probs = _log_probs(
        model,
        _prefixes(
            [prompts[row] for row, _ in shares],
            vision_mask[rows],
            pad_id,
            None if exemplars is None else exemplars[0][rows],
        ),
        None if features is None else features[rows],
        asked,
        pad_id,
        None if exemplars is None else exemplars[1][rows].flatten(0, 1),
    )
    places = [(row, index) for row, indices in shares for index in indices]
    lengths = [len(option) for options in asked for option in options]
    for (row, index), log_probs in zip(places, token_log_probs.double().cpu().split(lengths), strict=True):
        scores[row][index] = float(log_probs.sum())
    return scores


def _shares(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]], max_seq_len: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (prompt, its continuations' indices) for each row."""
    for row, options in enumerate(continuations):
        indices: list[int] = []
        length = len(prompts[row])
        for index, option in enumerate(options):
            if indices and length + len(option) - 1 > max_seq_len:
                yield row, indices
                indices, length = [], len(prompts[row])
            indices.append(index)
            length += len(option) - 1
        if indices:
            yield row, indices


def _prefixes(
    prompts: Sequence[Sequence[int]], vision_mask: Tensor, pad_id: int, placeholders: Tensor | None
) -> TokenRows:
    """Return the prompts left-padded to the longest one; masks over their columns are cut to the same width."""
    tokens, padding = left_pad(prompts, pad_id)
    width, device = tokens.shape[1], vision_mask.device
    return TokenRows(
        tokens.to(device),
        vision_mask[:, -width:] if vision_mask.dim() == 3 else vision_mask,
        padding=padding.to(device),
        placeholders=None if placeholders is None else placeholders[:, -width:],
    )


def _log_probs(
    model: AnswerModel,
    prefixes: TokenRows,
    features: Tensor | None,
    options: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    exemplars: Tensor | None,
) -> Tensor:
    """Return the log-probabilities of the tokens of all options, row after row, in nats."""
    most, device = max(map(len, options)), prefixes.tokens.device
    ordered = [[row[number] if number < len(row) else [] for row in options] for number in range(most)]
    # The last token of a continuation is not an input: what it predicts is not needed.
    branches = [left_pad([option[:-1] for option in branch], pad_id) for branch in ordered]
    packed = pack(
        prefixes,
        [Branch(tokens.to(device), padding=padding.to(device)) for tokens, padding in branches],
        pad_id=pad_id,
        pad_side="left",
    )
    rows = packed.rows
    hidden = model.hidden(
        rows.tokens,
        features,
        vision_mask=rows.vision_mask,
        replace=None if exemplars is None or rows.placeholders is None else (rows.placeholders, exemplars),
        mask=packed.mask,
        input_pos=packed.input_pos,
    )
    targets = torch.full(packed.places.shape, IGNORE_INDEX)
    for row, row_options in enumerate(options):
        for number, option in enumerate(row_options):
            targets[row, number, : len(option)] = torch.tensor(option)
    targets = targets.to(device)
    asked = targets != IGNORE_INDEX
    return target_log_probs(packed.unpack(hidden)[asked], targets[asked], model.logits, LOGITS_AT_ONCE)
