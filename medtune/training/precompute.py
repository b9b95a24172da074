"""Outputs of a frozen model for each item, computed once before training and kept on disk.

A store records everything that its items depend on, and is refused if any of it differs. It is written shard by shard,
each shard by one process. After a kill, only the missing shards are made.
"""

import json
import shlex
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medtune.data.identity import differences
from medtune.data.locks import FileLock
from medtune.data.shards import Shards
from medtune.data.writing import json_bytes, write_whole
from medtune.errors import ConfigError
from medtune.training.runtime import Runtime

SHARD_BYTES = 256 << 20
MANIFEST = "manifest.json"
Batches = list[list[int]]


@dataclass(frozen=True)
class Made:
    """The arrays computed for one item.

    Attributes:
        arrays: name -> [rows, ...], on the CPU; the same names and dtypes for every item.
        failed: the reason why the item could not be computed; reading the item raises an error with it.
    """

    arrays: Mapping[str, Tensor]
    failed: str | None = None


Make = Callable[[Batches], Generator[list[Made], None, None]]
"""The computation: it takes this process's batches of item numbers, and yields the results of each batch in order."""


@dataclass(frozen=True)
class Share:
    """The work of one process for one shard.

    Attributes:
        shard: None if this process has no shard to make and only runs the model together with the others.
        batches: item numbers of each call of the model. All processes gather a sharded model together, so each must
            call it equally often: a process without further items computes item 0 again and drops the result.
    """

    shard: int | None
    batches: Batches


class PrecomputeStore:
    """Items of a data set in a folder; missing items are made. Every method is a collective.

    Use: ``shards = Shards(folder, store.starts(), ...)``, then ``store.fill(shards, ...)``; afterwards the data workers
    read from ``shards``.

    Args:
        folder: where the items are kept; all processes must be able to read it.
        identity: returns everything that the items depend on, as plain values; called on the first process.
        sizes: bytes of each item, or an upper bound of them, [items].
        runtime: every process makes a share.
        key: the config key that names the folder, for messages.
        what: the name of the items in messages, e.g. ``features``.
        shard_bytes: size at which a shard is closed.
    """

    def __init__(
        self,
        folder: Path,
        identity: Callable[[], Mapping[str, Any]],
        sizes: np.ndarray,
        runtime: Runtime,
        *,
        key: str,
        what: str,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.folder, self.sizes, self.runtime = folder, sizes, runtime
        self.key, self.what, self.shard_bytes = key, what, shard_bytes
        self.identity: dict[str, Any] = runtime.on_rank0(lambda: json.loads(json.dumps(identity())))

    def starts(self) -> np.ndarray:
        """The borders of the shards, on disk or planned: the first item of each shard, and the end.

        Raises:
            ConfigError: If the folder holds items with another identity, naming each key with both values.
        """
        return self.runtime.on_rank0(self._starts)

    def fill(self, shards: Shards, make: Make, *, batch_size: int, described: str, say: Callable[[str], None]) -> None:
        """Make the missing items. Their size is printed, and the free disk space checked, before anything is written.

        Args:
            shards: with the borders that :meth:`starts` returned.
            make: computes items; called only if some are missing.
            batch_size: items of one call of the model.
            described: the number of items and the shape of each, for the line about the size.
            say: prints a line, on the first process.

        Raises:
            ConfigError: If the disk has too little space, or another run is making the items.
        """
        if not self.runtime.on_rank0(lambda: self._announce(shards, described, say)):
            return
        with self._alone():
            missing = self.runtime.on_rank0(lambda: self._claim(shards))
            shares = self.shares(shards, missing, batch_size)
            with closing(make([batch for share in shares for batch in share.batches])) as made:
                for share in shares:
                    items = [item for _ in share.batches for item in next(made)]
                    self.runtime.on_all_ranks(lambda share=share, items=items: _write(shards, share, items))  # type: ignore[misc]
                if next(made, None) is not None:  # runs `make` to its end, where it restores the model's state
                    raise ValueError("more batches were made than asked for")

    def shares(self, shards: Shards, missing: list[int], batch_size: int) -> list[Share]:
        """This process's share of each round, in which every process makes one shard."""
        world, rank = self.runtime.world, self.runtime.rank
        shares = []
        for together in (missing[at : at + world] for at in range(0, len(missing), world)):
            every = [
                [list(numbers[at : at + batch_size]) for at in range(0, len(numbers), batch_size)]
                for numbers in map(shards.numbers, together)
            ]
            calls = max(len(batches) for batches in every)
            shard, mine = (together[rank], every[rank]) if rank < len(together) else (None, [])
            shares.append(Share(shard, mine + [[0]] * (calls - len(mine))))
        return shares

    def _starts(self) -> np.ndarray:
        manifest = self.folder / MANIFEST
        if manifest.is_file():
            return np.asarray(self._read_manifest(manifest), dtype=np.int64)
        if any(self.folder.glob("shard_*")):
            raise ConfigError(
                f"{self.key}: {self.folder} holds shards and no {MANIFEST}, so nobody knows what they were made of; "
                f"delete them, or set another {self.key}"
            )
        shard = np.cumsum(self.sizes) // self.shard_bytes
        return np.array([0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(self.sizes)], dtype=np.int64)

    def _read_manifest(self, path: Path) -> list[int]:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            made_of, starts = dict(found["made_of"]), [int(start) for start in found["starts"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.key}: {path} cannot be read as that of kept {self.what}; set another {self.key}, or delete the "
                f"folder {path.parent} if it is one"
            ) from error
        differing = differences(made_of, self.identity, keys=self.identity.keys(), null_is_absent=True)
        if differing:
            raise ConfigError(
                f"{self.key}: the {self.what} in {path.parent} are of something else:\n"
                + "\n".join(f"  {found}" for found in differing)
                + f"\nTo make them anew, run: rm -r {shlex.quote(str(path.parent))}"
                + f"\nand start again, or set another {self.key}."
            )
        return starts

    def _announce(self, shards: Shards, described: str, say: Callable[[str], None]) -> bool:
        """Print the size and check the disk space; returns whether items are missing."""
        missing = _missing(shards)
        needed = sum(int(self.sizes[shards.starts[shard] : shards.starts[shard + 1]].sum()) for shard in missing)
        whole, left = readable_size(int(self.sizes.sum())), readable_size(needed)
        rest = f"of which {left} are to be written" if missing else "all of it there"
        say(f"{self.key.replace('_', ' ')} {self.folder}: {described} = {whole}, {rest}")
        if missing:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                free = shutil.disk_usage(self.folder).free
            except OSError as error:
                raise ConfigError(f"{self.key}: cannot write into {self.folder}: {error}") from error
            if free < needed:
                raise ConfigError(
                    f"{self.key}: {self.folder} needs {left} more and the disk has {readable_size(free)} free; name a "
                    "folder on another disk, or set it to null"
                )
        return bool(missing)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let only one run at a time make the items of a folder; the lock ends with the process."""
        locks: list[FileLock] = []
        taken = ConfigError(
            f"{self.key}: another run is making the {self.what} in {self.folder}; start again when it is done, or name "
            "another folder"
        )
        self.runtime.on_rank0(lambda: locks.append(FileLock(self.folder / ".lock", taken)))
        try:
            yield
        finally:
            for lock in locks:
                lock.close()

    def _claim(self, shards: Shards) -> list[int]:
        """Write the manifest before the first item, and remove incomplete files of a killed run.

        Another run may have filled the folder between the first check and the lock, so the borders are checked again.
        """
        if not np.array_equal(self._starts(), shards.starts):
            raise ConfigError(f"{self.key}: {self.folder} was changed by another run; start again")
        manifest = self.folder / MANIFEST
        try:
            if not manifest.is_file():
                write_whole(manifest, json_bytes({"made_of": self.identity, "starts": shards.starts.tolist()}))
            for torn in self.folder.glob(".shard_*.tmp"):
                torn.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.key}: cannot write into {self.folder}: {error}") from error
        return _missing(shards)


def _missing(shards: Shards) -> list[int]:
    return [shard for shard in range(len(shards)) if not shards.is_whole(shard)]


def _write(shards: Shards, share: Share, items: list[Made]) -> None:
    if share.shard is None:
        return
    numbers = shards.numbers(share.shard)
    own = items[: len(numbers)]  # further items were computed only to run the model as often as the others
    failed = {number: item.failed for number, item in zip(numbers, own, strict=True) if item.failed is not None}
    shards.write(share.shard, [item.arrays for item in own], failed)


def readable_size(count: float) -> str:
    """Bytes as GB, or as kB where they are few."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e7 else f"{count / 1e3:,.1f} kB"
