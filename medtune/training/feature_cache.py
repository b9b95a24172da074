"""Image features on disk: if the encoder is frozen, each image of a data set is encoded once, before training.

They are kept in a :class:`medtune.training.precompute.PrecomputeStore`. The cache records everything that its features
depend on, and is refused if any of it differs. After a kill, only the missing shards are made.
"""

import copy
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medtune.config import to_plain
from medtune.data.features import EncodedSource, FeatureShards, PictureItems, Pictures, find_pictures
from medtune.data.training_set import TrainingSet
from medtune.errors import ConfigError
from medtune.models.common.names import is_adapter_key
from medtune.objectives.base import AuxiliaryEncoder, Objective, Stage
from medtune.training.adapter import adapter_identity
from medtune.training.building import DTYPES, base_fingerprint
from medtune.training.config import TrainConfig
from medtune.training.data import BatchLoader, on_device
from medtune.training.model_pass import model_pass
from medtune.training.parts import TrainedParts
from medtune.training.precompute import SHARD_BYTES, Batches, Made, PrecomputeStore
from medtune.training.precompute import readable_size as readable_size
from medtune.training.runtime import Runtime

_ENCODER = "encoder."
_ADAPTER_SIZES = ("lora_rank", "lora_alpha", "lora_dropout")


def check_frozen(stages: Iterable[Stage], parts: TrainedParts, transform: Any) -> None:
    """Refuse a cache if the features of an image depend on anything else than the image.

    Raises:
        ConfigError: Naming what is trained, or what else changes the features.
    """
    for stage in stages:
        for part in stage.trainable:
            name = next((name for name in parts.select([part]) if name.startswith(_ENCODER)), None)
            if name is not None:
                raise ConfigError(
                    f"feature_cache: stage {stage.name} trains {part}, and with it the image encoder ({name}), so that "
                    f"features change with every step; take {part} out of `trainable`, leave LoRA out of the encoder, "
                    "or set feature_cache=null"
                )
    model: Any = parts.model
    encoder = model.encoder
    if not hasattr(transform, "feature_width"):
        raise ConfigError("feature_cache: this model reads pixels, and there are no features to keep; set it to null")
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in encoder.modules()):
        raise ConfigError("feature_cache: the image encoder has dropout, so its features are random; set it to null")
    if getattr(encoder, "mode", None) == "torchtune" and transform.tiler.max_tiles > 1:
        raise ConfigError(
            "feature_cache: with encoder_mode=torchtune and several tiles an image's features depend on its batch; "
            "take another encoder_mode, max_num_tiles=1, or feature_cache=null"
        )


def use_features(
    feed: BatchLoader, folder: Path, model: Any, objective: Objective, runtime: Runtime, say: Callable[[str], None]
) -> None:
    """Replace pixels by features in a data set's batches; features that are not on disk are made now. A collective.

    Args:
        feed: The data set; its batches then hold ``features``, and ``exemplar_features`` if the method has an auxiliary
            encoder.
        folder: Where the features are kept; all processes must be able to read it.
        model: The model in its state before the first step.
        objective: The method.
        runtime: Every process encodes a share.
        say: Prints a line, on the first process.

    Raises:
        ConfigError: If the folder holds features of other data or another model, or the disk has too little space.
        DataError: If an image cannot be used and ``on_error`` is ``raise``.
    """
    transform: Any = feed.dataset.transform
    config = feed.config
    pictures = runtime.on_rank0(lambda: find_pictures(feed.source, feed.checked.indices.tolist(), transform))
    kept = _Kept.of(pictures, transform, model, objective.auxiliary_encoder(), DTYPES[config.dtype])
    if not len(pictures):
        raise ConfigError("feature_cache: no sample has an image; set it to null")
    store = PrecomputeStore(
        folder,
        lambda: cache_identity(config, model, kept.auxiliary, transform, feed, pictures),
        kept.bytes,
        runtime,
        key="feature_cache",
        what="features",
        shard_bytes=SHARD_BYTES,
    )
    shards = FeatureShards(folder, pictures, store.starts())
    encoding = _Encoding(feed, pictures, model, kept.auxiliary, runtime)
    store.fill(shards, encoding.run, batch_size=config.batch_size, described=kept.described(), say=say)
    with_features = copy.copy(transform)
    with_features.feature_width = model.embed_dim
    source = EncodedSource(feed.source, shards)
    feed.dataset = TrainingSet(source, feed.dataset.items, with_features, config.seed, config.on_error)


@dataclass(frozen=True)
class _Kept:
    """The features that are kept for each image.

    Attributes:
        pictures: All images.
        tile: Shape of the features of a tile, [k, d].
        dtype: Type of the features.
        auxiliary: The auxiliary encoder of the method.
        auxiliary_shape: Shape of its features of one image, [n, d].
    """

    pictures: Pictures
    tile: tuple[int, int]
    dtype: torch.dtype
    auxiliary: AuxiliaryEncoder | None
    auxiliary_shape: tuple[int, ...]

    @staticmethod
    def of(
        pictures: Pictures, transform: Any, model: Any, auxiliary: AuxiliaryEncoder | None, dtype: torch.dtype
    ) -> "_Kept":
        tile = (transform.tokens_per_tile, model.embed_dim)
        shape: tuple[int, ...] = ()
        if auxiliary is not None:
            blank = auxiliary.pixels(Image.new("RGB", (8, 8)))
            shape = tuple(auxiliary.features(blank[None]).shape[1:])
        return _Kept(pictures, tile, dtype, auxiliary, shape)

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of each image's features."""
        tile = self.tile[0] * self.tile[1] * self.dtype.itemsize
        return self.pictures.tiles * tile + (4 * int(np.prod(self.auxiliary_shape)) if self.auxiliary else 0)

    def described(self) -> str:
        """The number of images and the shape of their features."""
        tokens, width = self.tile
        text = f"{len(self.pictures):,} images, {int(self.pictures.tiles.sum()):,} tiles x {tokens} tokens x {width}"
        text += f" x {self.dtype.itemsize} bytes"
        if self.auxiliary:
            text += f" + {len(self.pictures):,} x {' x '.join(map(str, self.auxiliary_shape))} x 4 bytes"
        return text


def cache_identity(
    config: TrainConfig,
    model: Any,
    auxiliary: AuxiliaryEncoder | None,
    transform: Any,
    feed: BatchLoader,
    pictures: Pictures,
) -> dict[str, Any]:
    """Everything that the features depend on, as plain values."""
    component = to_plain(config.model)
    adapted = any(is_adapter_key(name) for name, _ in model.encoder.named_parameters())
    if config.checkpoint and not adapted:
        component = {key: value for key, value in component.items() if key not in _ADAPTER_SIZES}
    made_of = {
        "weights": base_fingerprint(config.checkpoint),
        "seed of the weights": None if config.checkpoint else config.seed,
        "model": component,
        "dtype": config.dtype,
        "transform": transform.tiler.settings(),
        "data": feed.source.fingerprint(),
        "pictures": pictures.digest,
        "task-specific model": None
        if auxiliary is None
        else {"weights": base_fingerprint(auxiliary.weights), **auxiliary.settings},
    }
    if config.adapter is not None:  # left out otherwise, so that older caches stay valid
        made_of["adapter"] = adapter_identity(config)
    return json.loads(json.dumps(made_of))


class _Encoding:
    """Encodes images.

    Args:
        feed: The data set that the images belong to.
        pictures: All images.
        model: The model whose encoder is called.
        auxiliary: The auxiliary encoder of the method.
        runtime: Rank of this process and number of processes.
    """

    def __init__(
        self, feed: BatchLoader, pictures: Pictures, model: Any, auxiliary: AuxiliaryEncoder | None, runtime: Runtime
    ) -> None:
        self.feed, self.pictures, self.model, self.runtime = feed, pictures, model, runtime
        self.auxiliary = auxiliary

    def run(self, batches: Batches) -> Generator[list[Made], None, None]:
        """Yield the features of each batch of images. A collective: all processes have the same number of batches."""
        config = self.feed.config
        pixels = None if self.auxiliary is None else self.auxiliary.pixels
        items = PictureItems(self.pictures, pixels, config.on_error == "skip")
        dataset = TrainingSet(self.feed.source, items, self.feed.dataset.transform, config.seed)
        yield from model_pass(dataset, batches, self._encode, self.model, config, self.runtime, "encode images")

    def _encode(self, batch: dict[str, Any], numbers: list[int]) -> list[Made]:
        moved = on_device(batch, self.runtime.device)
        features = self.model.compute(_encoded, moved["vision"])
        auxiliary = None if self.auxiliary is None else self.auxiliary.features(moved["own"]).cpu()
        rows = features.unflatten(1, (batch["vision"]["images"].shape[2], -1)).cpu()
        made = []
        for row, (number, failed) in enumerate(zip(numbers, batch["failed"], strict=True)):
            arrays = {"features": rows[row, : int(self.pictures.tiles[number])]}
            if auxiliary is not None:
                arrays["own"] = auxiliary[row : row + 1]
            made.append(Made(arrays, failed))
        return made


def _encoded(model: Any, vision: dict[str, Tensor]) -> Tensor:
    return model.encode(vision)
