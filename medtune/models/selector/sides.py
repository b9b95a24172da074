"""What the selection model reads of one sample: its stored features, or pixels and tokens."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medtune.data.shards import Shards
from medtune.errors import ConfigError, DataError
from medtune.models.selector.clip import preprocessing

Side = Mapping[str, Any]
"""One sample of a pair: ``number`` (of its stored features), ``image`` and ``text``."""
FEATURES = "features"
BORDERS = "selector.json"


class SideTransform(Protocol):
    """Turns samples into the selection model's inputs. Picklable.

    Attributes:
        max_seq_len: 1; in a training run this takes the place of a language model's transform.
        dtype: set by the trainer.
    """

    max_seq_len: int
    dtype: torch.dtype

    @property
    def looks(self) -> bool:
        """Whether images are opened."""
        ...

    def inputs(self, side: Side, open_image: Callable[[], Image.Image]) -> dict[str, Tensor]:
        """Return the tensors of one sample, without a batch dimension."""
        ...

    def settings(self) -> dict[str, Any]:
        """Return what the inputs depend on."""
        ...


def stacked(inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the inputs of several samples as a batch."""
    return {name: torch.stack([one[name] for one in inputs]) for name in inputs[0]}


class StoredSides:
    """Reads features that the recipe ``selector_pairs`` has kept.

    Args:
        folder: the folder of that run.

    Attributes:
        max_seq_len: 1.
        dtype: of the features.

    Raises:
        ConfigError: if the folder holds no features.
    """

    looks = False

    def __init__(self, folder: str) -> None:
        self.folder, self.max_seq_len, self.dtype = folder, 1, torch.float32
        self.width = stored_width(folder)

    def inputs(self, side: Side, open_image: Callable[[], Image.Image]) -> dict[str, Tensor]:
        """Return ``features`` [D].

        Raises:
            DataError: if the image could not be read when the features were made.
        """
        row = self._shards.item(int(side["number"]))
        return {FEATURES: row[FEATURES][0].to(self.dtype)}

    def settings(self) -> dict[str, Any]:
        """Return the widths, and what the features were made of."""
        return {name: value for name, value in read_about(self.folder).items() if name != "starts"}

    @cached_property
    def _shards(self) -> Shards:
        return open_store(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open files."""
        return {name: value for name, value in self.__dict__.items() if name != "_shards"}

    def token_counts(self, sample: Any, sizes: Any = None) -> tuple[int, int]:
        """Return one token, which is supervised."""
        return 1, 1

    def tile_count(self, width: int, height: int) -> int:
        """Return 0: no image is seen."""
        return 0


def open_store(folder: str | Path) -> Shards:
    """Open the store of features of a folder."""
    starts = np.asarray(read_about(folder)["starts"], dtype=np.int64)
    return Shards(Path(folder).expanduser() / FEATURES, starts, key=FEATURES)


def stored_width(folder: str | Path) -> int:
    """Return the number of features of a sample, text and image together."""
    return int(read_about(folder)["width"])


def read_about(folder: str | Path) -> dict[str, Any]:
    """Read what a folder says of its features.

    Raises:
        ConfigError: It holds none.
    """
    path = Path(folder).expanduser() / BORDERS
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {name: about[name] for name in ("width", "parts", "context", "text_limit", "starts", FEATURES)}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder} holds no features ({BORDERS} is missing or damaged); run the recipe selector_pairs, or name its "
            "output_dir"
        ) from None


class ClipSides:
    """Makes the pixels and tokens of a CLIP model of open_clip, which :func:`~.builders.clip_selector` builds.

    Args:
        model: as for the model.

    Attributes:
        max_seq_len: 1.
        dtype: of the pixels.
    """

    looks = True

    def __init__(self, model: str) -> None:
        self.model, self.max_seq_len, self.dtype = model, 1, torch.float32

    def inputs(self, side: Side, open_image: Callable[[], Image.Image]) -> dict[str, Tensor]:
        """Return ``pixels`` [3, h, w] and ``tokens`` [context]; what does not fit into the context is cut off."""
        transform, tokenizer = self._tools
        return {"pixels": transform(open_image()).to(self.dtype), "tokens": tokenizer([str(side["text"])])[0]}

    @cached_property
    def _tools(self) -> tuple[Any, Any]:
        return preprocessing(self.model)

    def settings(self) -> dict[str, Any]:
        """Return the architecture."""
        return {"model": Path(self.model).name}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without open_clip's objects."""
        return {name: value for name, value in self.__dict__.items() if name != "_tools"}

    def token_counts(self, sample: Any, sizes: Any = None) -> tuple[int, int]:
        """Return one token, which is supervised."""
        return 1, 1

    def tile_count(self, width: int, height: int) -> int:
        """Return 1."""
        return 1


def side_of(row: Any, where: str) -> dict[str, Any]:
    """Check one side of a pair.

    Raises:
        DataError: A field is missing.
    """
    if not isinstance(row, Mapping) or not isinstance(row.get("text"), str) or not isinstance(row.get("number"), int):
        raise DataError(f"{where}: a side of a pair needs 'number', 'image' and 'text'; run selector_pairs again.")
    return dict(row)
