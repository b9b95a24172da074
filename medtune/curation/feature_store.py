"""Features of samples, kept on disk: a frozen backbone runs once for each sample, whatever is trained on top of it."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medtune.curation.features import Features
from medtune.curation.figures import Figure
from medtune.curation.records import Record
from medtune.data.images import ImageRoot
from medtune.data.shards import Shards
from medtune.data.writing import json_bytes, sha256, write_whole
from medtune.errors import ConfigError, DataError
from medtune.models.selector.sides import BORDERS, FEATURES
from medtune.training.precompute import Batches, Made, PrecomputeStore
from medtune.training.runtime import Runtime

SHARD_ITEMS = 1024


def keep_features(
    folder: Path,
    records: Sequence[Record],
    features: Features,
    parts: Sequence[int] | None,
    images: ImageRoot | None,
    runtime: Runtime,
    *,
    context: bool,
    text_limit: int,
    batch_size: int,
    skip: bool,
    say: Callable[[str], None],
) -> Shards:
    """Make the features of records that are not on disk yet. A collective.

    Args:
        folder: They are kept in ``features`` below it, described by ``selector.json``.
        records: The samples; the number of each is its place.
        features: Makes them, text first.
        parts: Widths of text and image; None takes two halves, as of a CLIP model.
        images: Where the images lie; None if they are not opened.
        runtime: Every process makes a share.
        context: Whether caption and mentions are read.
        text_limit: Most characters of a text.
        batch_size: Samples that are encoded at once.
        skip: Whether an image that cannot be used is noted and left out; else its error is raised.
        say: Prints a line.

    Raises:
        ConfigError: The folder holds features of something else, or the widths do not fit.
        DataError: An image cannot be used.
    """
    features.check(len(records))
    figures = [Figure(record.id, record.image, (), record.text(context, text_limit)) for record in records]
    making = _Making(figures, features, images, skip)
    width = runtime.on_rank0(making.width)
    widths = _widths(parts, width)
    digest = sha256("\n".join(f"{one.id}|{one.image}|{one.caption}" for one in figures).encode("utf-8", "replace"))
    root = None if images is None else str(images.path.resolve())
    store = PrecomputeStore(
        folder / FEATURES,
        lambda: {"features": features.identity(), "samples": digest, "images": root if features.looks else None},
        np.full(len(figures), 4 * width),
        runtime,
        key=FEATURES,
        what="features",
        shard_bytes=SHARD_ITEMS * 4 * width,
    )
    shards = Shards(folder / FEATURES, store.starts(), key=FEATURES)
    about = {
        "width": width,
        "parts": widths,
        "context": context,
        "text_limit": text_limit,
        "starts": shards.starts.tolist(),
        FEATURES: store.identity[FEATURES],
    }
    described = f"{len(figures):,} samples x {width} x 4 bytes"
    store.fill(shards, making.run, batch_size=batch_size, described=described, say=say)
    runtime.on_rank0(lambda: write_whole(folder / BORDERS, json_bytes(about)))
    return shards


def _widths(parts: Sequence[int] | None, width: int) -> list[int]:
    if parts is None:
        if width % 2:
            raise ConfigError(f"parts: {width} features are no two halves; give the widths of text and image")
        return [width // 2, width // 2]
    if sum(parts) != width or min(parts) < 1:
        raise ConfigError(f"parts: {list(parts)} are {sum(parts)} features, and the encoders make {width}")
    return [int(part) for part in parts]


class _Making:
    """Encodes samples."""

    def __init__(self, figures: Sequence[Figure], features: Features, images: ImageRoot | None, skip: bool) -> None:
        self.figures, self.features, self.images, self.skip = figures, features, images, skip

    def width(self) -> int:
        """Return the number of features, by encoding the first text with an empty image."""
        blank = [Image.new("RGB", (32, 32))] if self.features.looks else []
        return int(self.features.of(self.figures[:1], blank, [0]).shape[1])

    def run(self, batches: Batches) -> Generator[list[Made], None, None]:
        """Yield the features of each batch of numbers."""
        for batch in batches:
            opened = [self._open(self.figures[number]) for number in batch]
            shown = [image for image, _ in opened] if self.features.looks else []
            table = torch.from_numpy(self.features.of([self.figures[number] for number in batch], shown, batch))
            yield [
                Made({FEATURES: table[row : row + 1].contiguous()}, failed) for row, (_, failed) in enumerate(opened)
            ]

    def _open(self, figure: Figure) -> tuple[Any, str | None]:
        if not self.features.looks:
            return None, None
        if self.images is None or not figure.image:
            raise ConfigError("these features need the images; set image_root, and name an image in every row")
        try:
            return self.images.load(figure.image, f"sample {figure.id!r}"), None
        except ConfigError:
            raise
        except DataError as error:
            if not self.skip:
                raise
            return Image.new("RGB", (32, 32)), str(error)
