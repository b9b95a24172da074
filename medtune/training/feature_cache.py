"""Image features on disk: each picture of a data set is encoded once, before training, where the encoder is frozen.

Kept in a :class:`medtune.training.precompute.PrecomputeStore`: the cache says what it was made of, is refused where
anything of that differs, and goes on after a kill with the shards that are missing.
"""

import copy
import json
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from medtune.config import to_plain
from medtune.data.features import EncodedSource, FeatureShards, PictureItems, Pictures, find_pictures
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.errors import ConfigError
from medtune.models.common.names import is_adapter_key
from medtune.objectives.base import AuxiliaryEncoder, Objective, Stage
from medtune.training.building import DTYPES, base_fingerprint
from medtune.training.config import TrainConfig
from medtune.training.data import BatchLoader, on_device
from medtune.training.parts import TrainedParts
from medtune.training.precompute import SHARD_BYTES, Batches, Made, PrecomputeStore
from medtune.training.precompute import readable_size as readable_size
from medtune.training.runtime import Runtime

_ENCODER = "encoder."
_ADAPTER_SIZES = ("lora_rank", "lora_alpha", "lora_dropout")


def check_frozen(stages: Iterable[Stage], parts: TrainedParts, transform: Any) -> None:
    """Refuse a cache where a picture's features are no function of the picture alone.

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
    """Give a data set's batches features in place of pixels, made now as far as they are not on disk. A collective.

    Args:
        feed: The data set; its batches hold ``features``, and ``exemplar_features`` where the method has an encoder of
            its own.
        folder: Where they are kept; all processes must see it.
        model: The model as it stands before the first step.
        objective: The method.
        runtime: Every process encodes a share.
        say: Prints a line, on the first process.

    Raises:
        ConfigError: If the folder holds features of something else, or the disk has too little room.
        DataError: If a picture cannot be used and ``on_error`` is ``raise``.
    """
    transform: Any = feed.dataset.transform
    config = feed.config
    pictures = runtime.on_rank0(lambda: find_pictures(feed.source, feed.checked.indices.tolist(), transform))
    kept = _Kept.of(pictures, transform, model, objective.auxiliary_encoder(), DTYPES[config.dtype])
    if not len(pictures):
        raise ConfigError("feature_cache: no sample has an image; set it to null")
    store = PrecomputeStore(
        folder,
        lambda: cache_identity(config, model, kept.own, transform, feed, pictures),
        kept.bytes,
        runtime,
        key="feature_cache",
        what="features",
        shard_bytes=SHARD_BYTES,
    )
    shards = FeatureShards(folder, pictures, store.starts())
    encoding = _Encoding(feed, pictures, model, kept.own, runtime)
    store.fill(shards, encoding.run, batch_size=config.batch_size, described=kept.described(), say=say)
    with_features = copy.copy(transform)
    with_features.feature_width = model.embed_dim
    source = EncodedSource(feed.source, shards)
    feed.dataset = TrainingSet(source, feed.dataset.items, with_features, config.seed, config.on_error)


@dataclass(frozen=True)
class _Kept:
    """What is kept of each picture.

    Attributes:
        pictures: All of them.
        tile: Shape of a tile's features, [k, d].
        dtype: Of the features.
        own: The method's own encoder.
        own_shape: Shape of its features of one picture, [n, d].
    """

    pictures: Pictures
    tile: tuple[int, int]
    dtype: torch.dtype
    own: AuxiliaryEncoder | None
    own_shape: tuple[int, ...]

    @staticmethod
    def of(pictures: Pictures, transform: Any, model: Any, own: AuxiliaryEncoder | None, dtype: torch.dtype) -> "_Kept":
        tile = (transform.tokens_per_tile, model.embed_dim)
        shape = () if own is None else tuple(own.features(own.pixels(Image.new("RGB", (8, 8)))[None]).shape[1:])
        return _Kept(pictures, tile, dtype, own, shape)

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of each picture."""
        tile = self.tile[0] * self.tile[1] * self.dtype.itemsize
        return self.pictures.tiles * tile + (4 * int(np.prod(self.own_shape)) if self.own else 0)

    def described(self) -> str:
        """The number of pictures and the shape of what is kept of them."""
        tokens, width = self.tile
        shape = f"{int(self.pictures.tiles.sum()):,} tiles x {tokens} tokens x {width} x {self.dtype.itemsize} bytes"
        beside = f" + {len(self.pictures):,} x {' x '.join(map(str, self.own_shape))} x 4 bytes" if self.own else ""
        return f"{len(self.pictures):,} pictures, {shape}{beside}"


def cache_identity(
    config: TrainConfig, model: Any, own: AuxiliaryEncoder | None, transform: Any, feed: BatchLoader, pictures: Pictures
) -> dict[str, Any]:
    """Everything that decides the features, as plain values."""
    component = to_plain(config.model)
    adapted = any(is_adapter_key(name) for name, _ in model.encoder.named_parameters())
    if config.checkpoint and not adapted:
        component = {key: value for key, value in component.items() if key not in _ADAPTER_SIZES}
    found = {
        "weights": base_fingerprint(config.checkpoint),
        "seed of the weights": None if config.checkpoint else config.seed,
        "model": component,
        "dtype": config.dtype,
        "transform": transform.tiler.settings(),
        "data": feed.source.fingerprint(),
        "pictures": pictures.digest,
        "task-specific model": None if own is None else {"weights": base_fingerprint(own.weights), **own.settings},
    }
    return json.loads(json.dumps(found))


class _Encoding:
    """Encodes pictures.

    Args:
        feed: Where the pictures come from.
        pictures: All of them.
        model: Its encoder is called.
        own: The method's own encoder.
        runtime: This process's place in the world.
    """

    def __init__(
        self, feed: BatchLoader, pictures: Pictures, model: Any, own: AuxiliaryEncoder | None, runtime: Runtime
    ) -> None:
        self.feed, self.pictures, self.model, self.own, self.runtime = feed, pictures, model, own, runtime

    def run(self, batches: Batches) -> Generator[list[Made], None, None]:
        """Yield the features of each batch of pictures. A collective: every process has as many batches."""
        config = self.feed.config
        items = PictureItems(self.pictures, None if self.own is None else self.own.pixels, config.on_error == "skip")
        dataset = TrainingSet(self.feed.source, items, self.feed.dataset.transform, config.seed)
        steps = [[[(number, True) for number in batch]] for batch in batches]
        pin = self.runtime.device.type == "cuda"
        self.model.eval()
        with (
            closing(epoch_loader(dataset, steps, 0, config.num_workers, pin_memory=pin)) as loaded,  # type: ignore[type-var]
            tqdm(total=len(steps), desc="encode pictures", unit="batch", disable=not self.runtime.is_main) as bar,
        ):
            for batch in batches:
                (found,) = self.runtime.on_all_ranks(lambda: next(loaded))
                yield self._encode(found, batch)
                bar.update()
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root stays whole after a forward pass, with other tensors as its parameters

    @torch.no_grad()
    def _encode(self, batch: dict[str, Any], numbers: list[int]) -> list[Made]:
        moved = on_device(batch, self.runtime.device)
        features = self.model.compute(_encoded, moved["vision"])
        own = None if self.own is None else self.own.features(moved["own"]).cpu()
        rows = features.unflatten(1, (batch["vision"]["images"].shape[2], -1)).cpu()
        made = []
        for row, (number, failed) in enumerate(zip(numbers, batch["failed"], strict=True)):
            arrays = {"features": rows[row, : int(self.pictures.tiles[number])]}
            made.append(Made(arrays if own is None else {**arrays, "own": own[row : row + 1]}, failed))
        return made


def _encoded(model: Any, vision: dict[str, Tensor]) -> Tensor:
    return model.encode(vision)
