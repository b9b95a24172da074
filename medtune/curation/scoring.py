"""Scores of instruction data by a trained selection model, one for each row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtune.curation.feature_store import keep_features
from medtune.curation.features import Features
from medtune.curation.records import Record
from medtune.curation.selection import Choice, Rows
from medtune.data.images import image_root_of
from medtune.errors import ConfigError, DataError
from medtune.generation.answering import Skipped
from medtune.models.selector.builders import load_selector
from medtune.models.selector.sides import FEATURES, stacked
from medtune.training.runtime import Runtime

READ_AT_ONCE = 4096
Table = NDArray[np.float64]
Features32 = NDArray[np.float32]


@dataclass(frozen=True)
class Scoring:
    """What rows are scored with.

    Attributes:
        folder: Where features are kept.
        weights: Weights folder of a selector run.
        features: Encoders of a model that reads stored features.
        image_root: Folder or ``.tar`` of the images.
        context: Whether a whole model reads caption and mentions; stored features say it themselves.
        choice: How the scores of several turns become one.
        batch_size: Questions that are encoded at once.
        skip: Whether a row whose image cannot be used gets no score; else its error is raised.
        grouped: Whether the rows' features are wanted.
        say: Prints a line.
    """

    folder: Path
    weights: str
    features: Features | None
    image_root: str | None
    context: bool
    choice: Choice
    batch_size: int
    skip: bool
    grouped: bool
    say: Callable[[str], None]


def scored(how: Scoring, rows: Rows, runtime: Runtime, skipped: Skipped) -> tuple[Table, Features32 | None]:
    """Return the score of each row, NaN for one that cannot be scored, and the rows' features if they are wanted.

    A row of several turns has the mean of their features.

    Raises:
        ConfigError: The features are not those of the model.
        DataError: An image cannot be used.
    """
    model = load_selector(how.weights).to(runtime.device)
    records: list[Record] = []
    owner: list[int] = []
    for row in range(len(rows)):
        turns = rows.records(row)
        records += turns
        owner += [row] * len(turns)
    if model.backbone is None:
        found, table = feature_scores(how, model, records, runtime)
    else:
        found, table = image_scores(how, model, records, runtime.device, skipped)
    scores = np.full(len(rows), np.nan)
    for start, end in _runs(np.asarray(owner)):
        if np.isfinite(found[start:end]).all():
            scores[owner[start]] = how.choice.of_turns(found[start:end])
    for row in np.flatnonzero(~np.isfinite(scores)).tolist():
        skipped.reasons.setdefault(rows.ids[row], "an image cannot be used, so that the row has no score")
    if not how.grouped:
        return scores, None
    return scores, np.stack([table[start:end].mean(axis=0) for start, end in _runs(np.asarray(owner))])


def _runs(owner: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Yield start and end of the records of each row."""
    borders = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
    yield from zip(borders[:-1], borders[1:], strict=True)


@torch.inference_mode()
def feature_scores(how: Scoring, model: Any, records: list[Record], runtime: Runtime) -> tuple[Table, Features32]:
    """Return the scores of records by stored features, NaN where there are none, and the features."""
    if how.features is None:
        raise ConfigError("this selection model reads stored features; set features as in selector_pairs")
    about = model.transform.settings()
    if how.features.identity() != about[FEATURES]:
        raise ConfigError(
            "features are not those that the selection model was trained on (another encoder or other weights); give "
            "the same component as in selector_pairs"
        )
    shards = keep_features(
        how.folder,
        records,
        how.features,
        about["parts"],
        image_root_of(how.image_root, None) if how.features.looks else None,
        runtime,
        context=about["context"],
        text_limit=about["text_limit"],
        batch_size=how.batch_size,
        skip=how.skip,
        say=how.say,
    )
    scores = np.full(len(records), np.nan)
    table = np.zeros((len(records), model.embed_dim), dtype=np.float32)
    for start in range(0, len(records), READ_AT_ONCE):
        numbers, read = [], []
        for number in range(start, min(start + READ_AT_ONCE, len(records))):
            try:
                read.append(shards.item(number)[FEATURES][0])
            except DataError:  # its image cannot be used, which was allowed when the features were made
                continue
            numbers.append(number)
        if numbers:
            batch = torch.stack(read)
            table[numbers] = batch.numpy()
            scores[numbers] = model.scores({FEATURES: batch.to(runtime.device)}).double().cpu().numpy()
    return scores, table


@torch.inference_mode()
def image_scores(
    how: Scoring, model: Any, records: list[Record], device: torch.device, skipped: Skipped
) -> tuple[Table, Features32]:
    """Return the scores of records by a CLIP model, NaN where an image cannot be used, and its features."""
    images = image_root_of(how.image_root, None)
    if images is None:
        raise ConfigError("this selection model looks at the images; set image_root")
    scores = np.full(len(records), np.nan)
    table = np.zeros((len(records), model.embed_dim), dtype=np.float32)
    waiting: list[tuple[int, Any]] = []

    def flush() -> None:
        if waiting:
            numbers = [number for number, _ in waiting]
            inputs = {name: value.to(device) for name, value in stacked([one for _, one in waiting]).items()}
            features = model.features(inputs)
            table[numbers] = features.float().cpu().numpy()
            scores[numbers] = model.scores_of(features).double().cpu().numpy()
            waiting.clear()

    for number, record in enumerate(records):
        try:
            opened = images.load(record.image, f"sample {record.id!r}")
        except ConfigError:
            raise
        except DataError as error:
            skipped.add(record.row, error)
            continue
        side = {"number": number, "text": record.text(how.context)}
        waiting.append((number, model.transform.inputs(side, lambda opened=opened: opened)))
        if len(waiting) == how.batch_size:
            flush()
    flush()
    return scores, table
