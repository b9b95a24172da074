"""Two forms of a forward pass over pairs, with the same result: with a shared prompt, and plainly row by row."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from medtune.data.items import Row
from medtune.losses.log_probs import sequence_log_probs
from medtune.models.common.branch_attention import BranchMask
from medtune.models.common.branch_predictions import Predictions
from medtune.models.common.branches import Branch, pack
from medtune.modules.exemplar import TokenRows


class Form(Protocol):
    """How the rows of pairs are laid out and run. Picklable; forms of one kind are equal.

    Attributes:
        rows: rows that the language model runs for one pair.
    """

    rows: int

    def measure(self, rows: Sequence[Row], answers: Sequence[int]) -> tuple[Row, ...]:
        """The rows that the model runs.

        Args:
            rows: sizes of both conversations.
            answers: tokens of both answers.
        """
        ...

    def collate(self, prompts: TokenRows, answers: Sequence[Branch], pad_id: int) -> dict[str, Any]:
        """The text of a batch, with ``padding`` for the trainer; runs in data workers."""
        ...

    def log_probs(self, model: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int) -> Tensor:
        """Summed log-probabilities of chosen and rejected answers, [b, 2] in nats, in fp64."""
        ...


class _Equal:
    """Objects without state: those of one class are equal."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class SharedForm(_Equal):
    """Prompt, chosen and rejected answer in one row; images and question are read once.

    The prompt is causal, the answers attend to its keys and values, and the last layer computes only the states that
    predict a token of an answer.
    """

    rows = 1

    def measure(self, rows: Sequence[Row], answers: Sequence[int]) -> tuple[Row, ...]:
        """One row: the first conversation and the other answer."""
        first, second = rows
        return (Row(first.tokens + answers[1], first.supervised + second.supervised, first.tiles),)

    def collate(self, prompts: TokenRows, answers: Sequence[Branch], pad_id: int) -> dict[str, Any]:
        """The packed rows, their mask, and where each token of an answer is predicted."""
        packed = pack(prompts, answers, pad_id=pad_id, aligned=True)
        assert isinstance(packed.mask, BranchMask)
        return {
            "tokens": packed.rows.tokens,
            "vision_mask": packed.rows.vision_mask,
            "padding": packed.rows.padding,
            "input_pos": packed.input_pos,
            "mask": _as_dict(packed.mask),
            "predictions": _as_dict(Predictions.of(packed)),
        }

    def log_probs(self, model: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int) -> Tensor:
        """See :class:`Form`."""
        predictions = Predictions(**batch["predictions"])
        hidden = model.hidden(
            batch["tokens"],
            features,
            vision_mask=batch["vision_mask"],
            mask=BranchMask(**batch["mask"]),
            input_pos=batch["input_pos"],
            keep=predictions.columns,
        )
        return predictions.log_probs(hidden, model.logits, chunk_tokens)


class PlainForm(_Equal):
    """Each conversation in a row of its own, one after the other; the image is encoded once."""

    rows = 2

    def measure(self, rows: Sequence[Row], answers: Sequence[int]) -> tuple[Row, ...]:
        """The two conversations."""
        return tuple(rows)

    def collate(self, prompts: TokenRows, answers: Sequence[Branch], pad_id: int) -> dict[str, Any]:
        """``runs``: the chosen and the rejected conversations."""
        runs = [pack(prompts, [answer], pad_id=pad_id).rows for answer in answers]
        text = [{"tokens": run.tokens, "vision_mask": run.vision_mask, "labels": run.labels} for run in runs]
        padding = [run.padding for run in runs if run.padding is not None]
        return {"runs": dict(zip(("chosen", "rejected"), text, strict=True)), "padding": torch.cat(padding, dim=1)}

    def log_probs(self, model: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int) -> Tensor:
        """See :class:`Form`."""
        sums = []
        for run in batch["runs"].values():
            hidden = model.hidden(run["tokens"], features, vision_mask=run["vision_mask"])
            sums.append(sequence_log_probs(hidden, run["labels"], model.logits, chunk_tokens)[0])
        return torch.stack(sums, dim=1)


FORMS: dict[str, Form] = {"shared": SharedForm(), "plain": PlainForm()}


def _as_dict(values: Any) -> dict[str, Any]:
    """The fields of a dataclass; a batch holds tensors in dicts, which the trainer moves to the device."""
    return {field.name: getattr(values, field.name) for field in fields(values)}
