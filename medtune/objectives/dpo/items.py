"""The data of DPO: a prompt, which both answers share, and the two answers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from medtune.data.features import EncodedPicture
from medtune.data.items import Row, SampleItems, measured_row
from medtune.data.sample import Message, Sample
from medtune.data.source import SampleSource, place
from medtune.datasets.preferences import rejected_answer
from medtune.errors import DataError
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.models.common.branches import Branch
from medtune.modules.exemplar import TokenRows
from medtune.objectives.base import keep_sample
from medtune.objectives.dpo.forms import Form

_NO_PIXELS = torch.empty(0)
_Text = tuple[list[int], list[int]]


@dataclass(frozen=True)
class PairItems:
    """Pairs: the tokens that both conversations begin with, the images, and the rest of each conversation.

    Attributes:
        form: how a batch of pairs is run.
    """

    form: Form

    def __call__(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> dict[str, Any]:
        """Make the item of one pair; the images are opened and cut into tiles once.

        Raises:
            DataError: if the pair cannot be read, an answer is too long, or both answers are the same.
        """
        sample = source[index]
        images = source.open_images(sample)
        item = SampleItems(keep_sample).item(source, sample, sample, images, transform)
        other = transform(_rejected(source, sample), [_without_pixels(image) for image in images])
        chosen, rejected = ((one["tokens"], last_answer(one["labels"])) for one in (item, other))
        if chosen[0] == rejected[0]:
            raise DataError(_same(source, sample))
        begin = shared_beginning(chosen, rejected)
        kept = {name: value for name, value in item.items() if name != "asked"}  # no turn of the prompt is learned
        prompt = {**kept, "tokens": chosen[0][:begin], "labels": [IGNORE_INDEX] * begin}
        answers = [(tokens[begin:], labels[begin:]) for tokens, labels in (chosen, rejected)]
        return {"id": sample.id, "prompt": prompt, "answers": answers, "weight": sample.weight}

    def measure(self, source: SampleSource, index: int, rng: random.Random, transform: Any) -> tuple[Row, ...]:
        """The rows of a pair as the language model runs them; opens no image.

        Raises:
            DataError: if a conversation is too long, an answer is empty, or both answers are the same in tokens.
        """
        sample, sizes = source[index], source.image_sizes(source[index])
        pair = (sample, _rejected(source, sample))
        rows = [measured_row(source, one, sizes, transform) for one in pair]
        ids = [transform.encode(one.messages[-1].content.strip()) for one in pair]
        if ids[0] == ids[1]:
            raise DataError(_same(source, sample))
        return self.form.measure(rows, [len(answer) + 1 for answer in ids])

    def contents(self, item: dict[str, Any]) -> Iterator[int]:
        """The tokens and labels of both conversations."""
        yield from item["prompt"]["tokens"]
        for tokens, labels in item["answers"]:
            yield from (len(tokens), *tokens, *labels)

    def blank(self, item: dict[str, Any]) -> dict[str, Any]:
        """The pair without weight."""
        return {**item, "weight": 0.0}

    def collate(self, items: list[dict[str, Any]], transform: Any) -> dict[str, Any]:
        """A batch: what the form makes of the text, the images, ``pairs`` [b] (weights) and ``lengths`` [b, 2]."""
        prompts = transform.collate([item["prompt"] for item in items])
        rows = TokenRows(prompts["tokens"], prompts["vision_mask"], prompts["labels"], prompts["padding"])
        branches = [_branch([item["answers"][side] for item in items], transform.pad_id) for side in (0, 1)]
        lengths = [(branch.labels != IGNORE_INDEX).sum(dim=1) for branch in branches]  # type: ignore[union-attr]
        return {
            **{key: prompts[key] for key in ("vision", "features") if key in prompts},
            **self.form.collate(rows, branches, transform.pad_id),
            "pairs": torch.tensor([item["weight"] for item in items], dtype=torch.float64),
            "lengths": torch.stack(lengths, dim=1),
        }


def last_answer(labels: list[int]) -> list[int]:
    """Labels of the last assistant turn only: the answers before it are part of the prompt."""
    end = len(labels)
    while end and labels[end - 1] == IGNORE_INDEX:
        end -= 1
    begin = end
    while begin and labels[begin - 1] != IGNORE_INDEX:
        begin -= 1
    return [IGNORE_INDEX] * begin + labels[begin:]


def shared_beginning(first: _Text, second: _Text) -> int:
    """Number of tokens that two rows have in common before a supervised one, at least one fewer than either has."""
    columns = zip(*first, *second, strict=False)
    most = min(len(first[0]), len(second[0])) - 1
    differ = (
        place
        for place, (a, label_a, b, label_b) in enumerate(columns)
        if a != b or label_a != IGNORE_INDEX or label_b != IGNORE_INDEX
    )
    return min(next(differ, most), most)


def _rejected(source: SampleSource, sample: Sample) -> Sample:
    answer = Message("assistant", rejected_answer(source, sample))
    return replace(sample, messages=(*sample.messages[:-1], answer))


def _same(source: SampleSource, sample: Sample) -> str:
    return f"{place(source, sample)}: both answers of the pair are the same to the model; leave the pair out."


def _without_pixels(image: Image.Image | EncodedPicture) -> EncodedPicture:
    return EncodedPicture(image.size, _NO_PIXELS)


def _branch(texts: list[_Text], pad_id: int) -> Branch:
    width = max(len(tokens) for tokens, _ in texts)

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])

    real = torch.tensor([[column < len(tokens) for column in range(width)] for tokens, _ in texts])
    tokens, labels = zip(*texts, strict=True)
    return Branch(padded(list(tokens), pad_id), padded(list(labels), IGNORE_INDEX), real)
