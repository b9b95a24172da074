"""Log-probabilities of given continuations by teacher forcing, all continuations of a prompt in one row.

A row is the prompt followed by its continuations side by side. Each continuation takes the positions right after the
prompt and attends to the prompt and to itself alone, so that the prompt is read once and every number is what a
forward over prompt and continuation would give.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medtune.generation.batches import causal, left_pad
from medtune.generation.seams import AnswerModel

LOGITS_AT_ONCE = 256
Exemplars = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Branch:
    """One continuation within its row.

    Attributes:
        row: Row of the batch.
        index: Which of the row's continuations.
        tokens: Its tokens.
        places: Column whose hidden state predicts each token.
    """

    row: int
    index: int
    tokens: list[int]
    places: list[int]


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
) -> list[list[float]]:
    """Sum of the log-probabilities of each continuation's tokens after its prompt.

    Args:
        model: A VLM; its caches must be absent or disabled.
        prompts: Unpadded prompt tokens, one list per row.
        vision_mask: Left-padded masks of the prompts, shape ``[b, s, s_e]``, or ``[b, s_e]`` where images are tokens.
        features: Image embeddings of the prompts, shape ``[b, s_e, d]``.
        continuations: For each prompt its continuations' tokens; none may be empty.
        pad_id: Fills the left side.
        max_seq_len: Longest row; continuations that do not fit beside the others get a row of their own.
        exemplars: Where they go in the left-padded prompts, ``[b, s]``, and their embeddings, ``[b, k, d]``.

    Returns:
        For each prompt, one number per continuation, in nats.
    """
    scores = [[0.0] * len(options) for options in continuations]
    shares = list(_shares(prompts, continuations, max_seq_len))
    if not shares:
        return scores
    rows = torch.tensor([row for row, _ in shares], device=vision_mask.device)
    hidden, branches = _read(
        model,
        [prompts[row] for row, _ in shares],
        vision_mask[rows],
        None if features is None else features[rows],
        [[continuations[row][index] for index in indices] for row, indices in shares],
        pad_id,
        None if exemplars is None else (exemplars[0][rows], exemplars[1][rows]),
    )
    for branch, log_probs in zip(branches, _picked(model, hidden, branches), strict=True):
        row, indices = shares[branch.row]
        scores[row][indices[branch.index]] = float(log_probs.sum())
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


def _read(
    model: AnswerModel,
    prompts: Sequence[Sequence[int]],
    vision_mask: Tensor,
    features: Tensor | None,
    continuations: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    exemplars: Exemplars | None,
) -> tuple[Tensor, list[Branch]]:
    """Hidden states ``[rows, s, d]`` of prompts with their branches, and where the branches stand."""
    # A continuation's last token predicts nothing that is asked for.
    forced = [[token for option in options for token in option[:-1]] for options in continuations]
    tokens, padding = left_pad([[*p, *f] for p, f in zip(prompts, forced, strict=True)], pad_id)
    attended = vision_mask.dim() == 3  # else it says which features exist, and no token's row of it grows
    masks = vision_mask.new_zeros(*tokens.shape, vision_mask.shape[-1]) if attended else vision_mask
    position, segment = torch.zeros_like(tokens), torch.zeros_like(tokens)
    places = torch.zeros_like(padding)
    branches = []
    for row, (prompt, options) in enumerate(zip(prompts, continuations, strict=True)):
        start = tokens.shape[1] - len(prompt) - len(forced[row])
        end = start + len(prompt)
        position[row, start:end] = torch.arange(len(prompt))
        if attended:
            masks[row, start:end] = vision_mask[row, vision_mask.shape[1] - len(prompt) :]
            masks[row, end:] = vision_mask[row, -1]
        if exemplars is not None:
            places[row, start:end] = exemplars[0][row, exemplars[0].shape[1] - len(prompt) :]
        begin = end
        for index, option in enumerate(options):
            stop = begin + len(option) - 1
            position[row, begin:stop] = len(prompt) + torch.arange(stop - begin)
            segment[row, begin:stop] = index + 1
            branches.append(Branch(row, index, list(option), [end - 1, *range(begin, stop)]))
            begin = stop
    device = vision_mask.device
    hidden = model.hidden(
        tokens.to(device),
        features,
        vision_mask=masks,
        replace=None if exemplars is None else (places.to(device), exemplars[1].flatten(0, 1)),
        mask=_branch_mask(padding, segment).to(device),
        input_pos=position.to(device),
    )
    return hidden, branches


def _branch_mask(padding: Tensor, segment: Tensor) -> Tensor:
    """Earlier real tokens of the prompt (segment 0) and of the same branch, shape ``[rows, s, s]``."""
    visible = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
    return causal(visible & padding[:, None, :])


def _picked(model: AnswerModel, hidden: Tensor, branches: Sequence[Branch]) -> Iterator[Tensor]:
    """The log-probabilities of each branch's tokens, in float64."""
    rows = torch.tensor([branch.row for branch in branches for _ in branch.tokens], device=hidden.device)
    columns = torch.tensor([place for branch in branches for place in branch.places], device=hidden.device)
    tokens = torch.tensor([token for branch in branches for token in branch.tokens], device=hidden.device)
    parts = []
    for chunk in torch.arange(len(rows), device=hidden.device).split(LOGITS_AT_ONCE):
        logits = model.logits(hidden[rows[chunk], columns[chunk]])
        parts.append(logits.gather(1, tokens[chunk, None]).squeeze(1) - logits.logsumexp(dim=-1))
    return iter(torch.cat(parts).double().cpu().split([len(branch.tokens) for branch in branches]))
