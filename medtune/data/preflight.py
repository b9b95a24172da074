"""One pass over the data before training, so that what can be known then is not found out at three in the morning."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from medtune.data.items import ModelTransform, SampleTransform, Sizes
from medtune.data.labels import is_classification
from medtune.data.randomness import sample_rng
from medtune.data.sample import Sample
from medtune.data.source import SampleSource, place
from medtune.data.training_set import OnError
from medtune.errors import DataError

_LISTED = 10


@dataclass(frozen=True)
class Problem:
    """A row that cannot be used.

    Attributes:
        id: the sample's id, or its row where it has none.
        reason: the whole message, with file and row.
    """

    id: str
    reason: str


@dataclass(frozen=True)
class Preflight:
    """What the pass found; the arrays hold one number per usable sample.

    Attributes:
        indices: position of each usable sample in the source.
        lengths: tokens of each, as the first epoch shows it.
        tiles: image tiles of each.
        labelled: whether each is a classification question.
        problems: the rows left out; empty unless ``on_error`` was ``skip``.
    """

    indices: np.ndarray
    lengths: np.ndarray
    tiles: np.ndarray
    labelled: np.ndarray
    problems: list[Problem]


def preflight(
    source: SampleSource,
    transform: ModelTransform,
    sample_transform: SampleTransform,
    on_error: OnError = "raise",
    progress: bool = True,
    seed: int = 0,
    decode: bool = False,
) -> Preflight:
    """Check every row of a source, and measure it for the batch plan.

    Each row must be a sample with its own id and an assistant text, its images must lie in their root and begin like
    images, and its tokens must fit the model.

    Args:
        source: the samples.
        transform: the model's transform; it measures tokens and tiles.
        sample_transform: the objective's change to a sample, as in the first epoch.
        on_error: ``raise`` stops with all problems counted, ``skip`` leaves those rows out and lists them.
        progress: show a bar with the time left.
        seed: the run's seed.
        decode: decode the images whole, which also finds truncated ones, at the cost of one epoch's decoding.

    Raises:
        DataError: if rows cannot be used and ``on_error`` is ``raise``, or if none can.
    """
    problems: list[Problem] = []
    rows = range(len(source))
    bar = tqdm(rows, desc=f"check {source.name}", unit="row", disable=not progress, leave=False)

    def measured() -> Iterator[tuple[int, int, int, int]]:
        for index in bar:
            id = f"row {index + 1}"
            try:
                sample = source[index]
                id = sample.id
                shown = sample_transform(sample, sample_rng(seed, 0, index))
                _has_answer(source, shown)
                sizes = _sizes(source, sample, decode)
                tiles = sum(transform.tile_count(width, height) for width, height in sizes)
                yield index, _length(source, shown, transform, sizes), tiles, is_classification(sample)
            except DataError as error:
                problems.append(Problem(id, str(error)))

    table = np.fromiter(measured(), dtype=np.dtype((np.int64, 4)))
    if problems and (on_error == "raise" or not len(table)):
        raise DataError(_summary(source.name, problems, len(source)))
    indices, lengths, tiles, labelled = table.T.copy()
    return Preflight(indices, lengths, tiles, labelled.astype(bool), problems)


def _has_answer(source: SampleSource, shown: Sample) -> None:
    if not any(message.role == "assistant" and message.content.strip() for message in shown.messages):
        raise DataError(f"{place(source, shown)}: no assistant message, so nothing to learn; add the answer.")


def _sizes(source: SampleSource, sample: Sample, decode: bool) -> Sizes:
    return [image.size for image in source.open_images(sample)] if decode else source.image_sizes(sample)


def _length(source: SampleSource, shown: Sample, transform: ModelTransform, sizes: Sizes) -> int:
    length = transform.token_count(shown, sizes)
    if length > transform.max_seq_len:
        raise DataError(
            f"{place(source, shown)}: {length} tokens, the limit is {transform.max_seq_len}; shorten the "
            "text or raise max_seq_len."
        )
    return length


def _summary(name: str, problems: list[Problem], rows: int) -> str:
    shown = "\n".join(f"  {problem.reason}" for problem in problems[:_LISTED])
    rest = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    return (
        f"{len(problems)} of {rows} rows of {name} cannot be used:\n{shown}{rest}\n"
        "Mend them, or set on_error: skip to leave them out and list them in the run's summary."
    )
