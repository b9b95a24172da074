"""Image features on disk: each picture of a data set is encoded once, before training, where the encoder is frozen.

The cache says what it was made of, and is refused where anything of that differs. It is made a shard at a time, each by
one process, and goes on after a kill with the shards that are missing.
"""

import copy
import fcntl
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from medtune.config import to_plain
from medtune.data.features import EncodedSource, FeatureShards, PictureItems, Pictures, find_pictures
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.data.writing import json_bytes, write_files
from medtune.errors import ConfigError
from medtune.models.names import is_adapter_key
from medtune.objectives.base import Objective, PictureEncoder, Stage
from medtune.training.building import DTYPES, base_fingerprint
from medtune.training.config import TrainConfig
from medtune.training.data import DataFeed, on_device
from medtune.training.parts import TrainedParts
from medtune.training.runtime import Runtime

SHARD_BYTES = 256 << 20
MANIFEST = "manifest.json"
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
    encoder: Any = parts.model.encoder
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
    feed: DataFeed, folder: Path, model: Any, objective: Objective, runtime: Runtime, say: Callable[[str], None]
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
    pictures = runtime.by_main(lambda: find_pictures(feed.source, feed.checked.indices.tolist(), transform))
    kept = _Kept.of(pictures, transform, model, objective.picture_encoder(), DTYPES[config.dtype])
    identity = runtime.by_main(lambda: cache_identity(config, model, kept.own, transform, feed, pictures))
    shards = FeatureShards(folder, pictures, runtime.by_main(lambda: _borders(folder, identity, kept)))
    missing = runtime.by_main(lambda: _missing(shards, kept, say))
    if missing:
        with _alone(folder, runtime):
            runtime.by_main(lambda: _claim(shards, identity))
            _Encoding(feed, shards, model, kept.own, runtime).run(missing)
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
    own: PictureEncoder | None
    own_shape: tuple[int, ...]

    @staticmethod
    def of(pictures: Pictures, transform: Any, model: Any, own: PictureEncoder | None, dtype: torch.dtype) -> "_Kept":
        tile = (transform.tokens_per_tile, model.embed_dim)
        shape = () if own is None else tuple(own.features(own.pixels(Image.new("RGB", (8, 8)))[None]).shape[1:])
        return _Kept(pictures, tile, dtype, own, shape)

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of each picture."""
        tile = self.tile[0] * self.tile[1] * self.dtype.itemsize
        return self.pictures.tiles * tile + (4 * int(np.prod(self.own_shape)) if self.own else 0)

    def starts(self) -> list[int]:
        """First picture of each shard, and the number of pictures at the end."""
        shard = np.cumsum(self.bytes) // SHARD_BYTES
        return [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(self.pictures)]


def cache_identity(
    config: TrainConfig, model: Any, own: PictureEncoder | None, transform: Any, feed: DataFeed, pictures: Pictures
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


def _borders(folder: Path, identity: dict[str, Any], kept: _Kept) -> np.ndarray:
    """The borders of the shards, as they were or as they shall be."""
    if not len(kept.pictures):
        raise ConfigError("feature_cache: no sample has an image; set it to null")
    manifest = folder / MANIFEST
    if manifest.is_file():
        return np.asarray(_read_manifest(manifest, identity), dtype=np.int64)
    return np.asarray(kept.starts(), dtype=np.int64)


def _read_manifest(path: Path, identity: dict[str, Any]) -> list[int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        made_of, starts = dict(found["made_of"]), [int(start) for start in found["starts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"feature_cache: {path} cannot be read; delete the folder {path.parent}") from error
    differing = [
        f"  {key}: {_short(made_of.get(key))} there, {_short(value)} here"
        for key, value in identity.items()
        if made_of.get(key) != value
    ]
    if differing:
        raise ConfigError(
            f"feature_cache: the features in {path.parent} are of something else:\n"
            + "\n".join(differing)
            + "\nDelete that folder to make them anew, or set another feature_cache."
        )
    return starts


def _short(value: Any) -> str:
    """A value for a message; of a digest the first digits."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(part)}" for key, part in value.items()) + "}"
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def _missing(shards: FeatureShards, kept: _Kept, say: Callable[[str], None]) -> list[int]:
    """The shards that are to be made; their size is told, and room for them is looked for, before any is."""
    missing = [shard for shard in range(len(shards)) if not shards.is_whole(shard)]
    sizes = kept.bytes
    needed = sum(int(sizes[shards.starts[shard] : shards.starts[shard + 1]].sum()) for shard in missing)
    pictures = kept.pictures
    tokens, width = kept.tile
    shape = f"{int(pictures.tiles.sum()):,} tiles x {tokens} tokens x {width} x {kept.dtype.itemsize} bytes"
    beside = f" + {len(pictures):,} x {' x '.join(map(str, kept.own_shape))} x 4 bytes" if kept.own else ""
    whole, left = readable_size(int(sizes.sum())), readable_size(needed)
    rest = f"of which {left} are to be written" if missing else "all of it there"
    say(f"feature cache {shards.folder}: {len(pictures):,} pictures, {shape}{beside} = {whole}, {rest}")
    if missing:
        try:
            shards.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(shards.folder).free
        except OSError as error:
            raise ConfigError(f"feature_cache: cannot write into {shards.folder}: {error}") from error
        if free < needed:
            raise ConfigError(
                f"feature_cache: {shards.folder} needs {left} more and the disk has {readable_size(free)} free; name a "
                "folder on another disk, or set it to null"
            )
    return missing


@contextmanager
def _alone(folder: Path, runtime: Runtime) -> Iterator[None]:
    """One run at a time makes the features of a folder; the lock dies with the process."""
    held: list[TextIO] = []
    runtime.by_main(lambda: held.append(_lock(folder)))
    try:
        yield
    finally:
        for lock in held:
            lock.close()


def _lock(folder: Path) -> TextIO:
    lock = (folder / ".lock").open("w")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"feature_cache: another run is making the features in {folder}; start again when it is done, or name "
            "another folder"
        ) from error
    return lock


def _claim(shards: FeatureShards, identity: dict[str, Any]) -> None:
    """Say what the features are of before there are any, and clear away what a killed run had begun."""
    manifest = {"made_of": identity, "starts": shards.starts.tolist()}
    write_files(shards.folder, {MANIFEST: json_bytes(manifest)}, overwrite=True)
    for torn in shards.folder.glob(".shard_*.tmp"):
        torn.unlink(missing_ok=True)


def readable_size(count: float) -> str:
    """Bytes as GB, or as kB where they are few."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e3:,.1f} kB"


class _Encoding:
    """Encodes pictures, a shard a process at a time.

    A sharded encoder is gathered by all processes together, so each of them calls it equally often: one that has no
    picture left encodes the first one again and drops it.

    Args:
        feed: Where the pictures come from.
        shards: Where their features go.
        model: Its encoder is called.
        own: The method's own encoder.
        runtime: This process's place in the world.
    """

    def __init__(
        self, feed: DataFeed, shards: FeatureShards, model: Any, own: PictureEncoder | None, runtime: Runtime
    ) -> None:
        self.feed, self.shards, self.model, self.own, self.runtime = feed, shards, model, own, runtime

    def run(self, missing: list[int]) -> None:
        """Make the missing shards. A collective."""
        config, world = self.feed.config, self.runtime.world
        rounds = [missing[at : at + world] for at in range(0, len(missing), world)]
        plans = [self._share(together, config.batch_size) for together in rounds]
        items = PictureItems(
            self.shards.pictures, None if self.own is None else self.own.pixels, config.on_error == "skip"
        )
        dataset = TrainingSet(self.feed.source, items, self.feed.dataset.transform, config.seed)
        steps = [[[(number, True) for number in batch]] for _, batches in plans for batch in batches]
        pin = self.runtime.device.type == "cuda"
        self.model.eval()
        with (
            torch.no_grad(),
            closing(epoch_loader(dataset, steps, 0, config.num_workers, pin_memory=pin)) as loaded,  # type: ignore[type-var]
            tqdm(total=len(steps), desc="encode pictures", unit="batch", disable=not self.runtime.is_main) as bar,
        ):
            for shard, batches in plans:
                made = _Made()
                for batch in batches:
                    (found,) = self.runtime.together(lambda: next(loaded))
                    self._encode(found, batch, made)
                    bar.update()
                self.runtime.together(lambda shard=shard, made=made: self._write(shard, made))  # type: ignore[misc]
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the root stays whole after a forward pass, with other tensors as its parameters

    def _share(self, together: list[int], batch_size: int) -> tuple[int | None, list[list[int]]]:
        """This process's shard of one round, and the pictures of each call of the encoder."""
        every = [
            [list(numbers[at : at + batch_size]) for at in range(0, len(numbers), batch_size)]
            for numbers in map(self.shards.numbers, together)
        ]
        calls = max(len(batches) for batches in every)
        rank = self.runtime.rank
        shard, mine = (together[rank], every[rank]) if rank < len(together) else (None, [])
        return shard, mine + [[0]] * (calls - len(mine))

    def _encode(self, batch: dict[str, Any], numbers: list[int], made: "_Made") -> None:
        moved = on_device(batch, self.runtime.device)
        features = self.model.compute(_encoded, moved["vision"])
        own = None if self.own is None else self.own.features(moved["own"]).cpu()
        rows = features.unflatten(1, (batch["vision"]["images"].shape[2], -1)).cpu()
        for row, (number, why) in enumerate(zip(numbers, batch["failed"], strict=True)):
            made.features.append(rows[row, : int(self.shards.pictures.tiles[number])])
            if own is not None:
                made.own.append(own[row])
            if why is not None:
                made.failed[number] = why

    def _write(self, shard: int | None, made: "_Made") -> None:
        if shard is None:
            return
        count = len(self.shards.numbers(shard))  # what comes after them was encoded to keep step
        own = torch.stack(made.own[:count]) if made.own else None
        self.shards.write(shard, torch.cat(made.features[:count]), own, made.failed)


class _Made:
    """What was encoded of a shard so far."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.own: list[Tensor] = []
        self.failed: dict[int, str] = {}


def _encoded(model: Any, vision: dict[str, Tensor]) -> Tensor:
    return model.encode(vision)
