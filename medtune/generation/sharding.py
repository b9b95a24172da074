"""Prediction on several processes: splits the queries and merges the answers into one file.

The first process writes the prediction file itself. Every other process writes a part, ``NAME.rank<k>.jsonl``, in the
same folder. At the end the first process adds the parts to the file and sorts its lines in the order of the queries.
If a run was killed, the next run first adds all parts that it finds, so it may use another number of processes.
"""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from medtune.evaluation.prediction import Prediction, PredictionLog, iterate_predictions
from medtune.evaluation.protocols.base import Query
from medtune.generation.identity import claim
from medtune.progress import tqdm

T = TypeVar("T")


class World(Protocol):
    """The processes of a run; :class:`medtune.training.runtime.Runtime` is one."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def world(self) -> int:
        """Number of processes."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, on every process."""
        ...

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Run work on the first process; every process gets its result or raises its error."""
        ...

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run work on this process; an error on any process is raised on all processes."""
        ...


class Alone:
    """A run with a single process."""

    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """Return a list of this one value."""
        return [value]

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Do the work."""
        return work()

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Do the work."""
        return work()


def shard(queries: Sequence[Query], world: int) -> list[list[Query]]:
    """Split the queries over the processes. Queries on the same images stay together, so each image is encoded once.

    Groups of queries are taken in the order in which their images first occur. Each group goes to the process that has
    the fewest queries so far. The result depends only on the queries and the number of processes.

    Args:
        queries: All queries, answered before or not.
        world: Number of processes.

    Returns:
        The queries of each process, in their order.
    """
    groups: dict[Hashable, list[Query]] = {}
    for query in queries:
        # Queries without an image share no encoding, so each forms a group by itself.
        groups.setdefault(query.sample.images or (query.id,), []).append(query)
    owner: dict[str, int] = {}
    load = [0] * world
    for group in groups.values():
        rank = load.index(min(load))
        load[rank] += len(group)
        owner.update({query.id: rank for query in group})
    return [[query for query in queries if owner[query.id] == rank] for rank in range(world)]


def part_path(path: Path, rank: int) -> Path:
    """Return the file in which a process writes its answers; for the first process, the prediction file itself."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path


def parts_of(path: Path) -> list[Path]:
    """Return all parts in the folder of a prediction file, also those of earlier runs."""
    return sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))


class SharedLog:
    """The prediction file of a run on one or several processes.

    All processes must create it together, and must call :meth:`finish` together. The order of the steps is important:
    the first process locks the file and all existing parts, and compares the record only after that. A process of
    another run that is still writing holds the lock of its part. A process of another run that does not hold its lock
    yet cannot start any more once the first process of that run has ended.

    Args:
        path: The prediction file.
        identity: Returns the values on which the answers depend; called only by the first process.
        world: The processes.
        say: Called with messages for the user, only by the first process.

    Attributes:
        done: Ids that any process had answered when the run started.

    Raises:
        ConfigError: The file was made with other settings.
        DataError: Another run is writing the file, or a line of it is not a prediction.
    """

    def __init__(
        self,
        path: Path,
        identity: Callable[[], Mapping[str, Any]],
        world: World | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.path, self.world, self.say = path, world or Alone(), say
        self._log: PredictionLog | None = None
        try:
            self.done: set[str] = self.world.on_rank0(lambda: self._open_first(identity))
            self.world.on_all_ranks(self._open_part)
        except BaseException:
            self.close()
            raise

    def append(self, row: Prediction) -> None:
        """Write one answer of this process."""
        assert self._log is not None
        self._log.append(row)

    @property
    def answered(self) -> set[str]:
        """Ids that were answered before the start, or by this process since then."""
        return self.done | (self._log.done if self._log else set())

    def gather(self, value: T, meanwhile: Callable[[], None] | None = None) -> list[T]:
        """Return the values of all processes, once all of them have answered their queries.

        Args:
            value: The value of this process.
            meanwhile: Called twice a second while this process waits for the others.
        """
        if meanwhile is None or self.world.world == 1:
            return self.world.gather(value)
        gathered: list[list[T]] = []
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                gathered.append(self.world.gather(value))
            except BaseException as error:
                errors.append(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(0.5)
            meanwhile()
        if errors:
            raise errors[0]
        return gathered[0]

    def finish(self, ids: Sequence[str]) -> None:
        """Merge all answers into one file, in the order of the queries; call it when all processes have answered.

        Args:
            ids: Ids of all queries, in order.
        """
        if self.world.rank:
            self.close()
        self.world.gather(None)  # from here on every part is closed and its lock is released
        if self.world.rank == 0:
            self._absorb([PredictionLog(part) for part in parts_of(self.path)])
            assert self._log is not None
            self._log.arrange(ids)

    def close(self) -> None:
        """Close this process's file."""
        if self._log is not None:
            self._log.close()
        self._log = None

    def __enter__(self) -> "SharedLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_first(self, identity: Callable[[], Mapping[str, Any]]) -> set[str]:
        self._log = PredictionLog(self.path, recover=False)
        parts: list[PredictionLog] = []
        try:
            for path in parts_of(self.path):
                parts.append(
                    PredictionLog(path, recover=False)
                )  # one by one, so that an error closes the parts opened before it
            claim(self.path, identity(), [part.path for part in parts])
            for log in (self._log, *parts):  # only now: a file of another run must not be truncated
                log.recover()
                self._tell_cut(log)
            self._absorb(parts)
        finally:
            for part in parts:
                part.close()
        return set(self._log.done)

    def _open_part(self) -> None:
        if self.world.rank:
            self._log = PredictionLog(part_path(self.path, self.world.rank))

    def _absorb(self, parts: Sequence[PredictionLog]) -> None:
        """Add the answers of locked parts to the file and remove the parts; can be repeated after an interruption."""
        assert self._log is not None
        for part in parts:
            for row in iterate_predictions(part.path):
                if row.id not in self._log.done:
                    self._log.append(row)
        if parts:
            self._log.sync()
        for part in parts:
            part.path.unlink()
            part.close()

    def _tell_cut(self, log: PredictionLog) -> None:
        if log.cut:
            self.say(f"{log.path}: cut off a torn last line of {log.cut} bytes")


class Progress:
    """Progress bar for all processes. The first process shows it and counts the lines that the others write.

    Args:
        path: The prediction file.
        world: The processes.
        total: Number of queries.
        known: Number of queries that were answered before.
        title: What the bar is called.
        unit: What it counts.
    """

    def __init__(
        self, path: Path, world: World, total: int, known: int, title: str = "predict", unit: str = "query"
    ) -> None:
        self._shown, self._total, self._known = world.rank == 0, total, known
        self._title, self._unit = title, unit
        self._read = {part_path(path, rank): 0 for rank in range(1, world.world)}
        self._bar: tqdm | None = None

    def __call__(self, answered: int = 0) -> None:
        """Add the queries that this process has answered since the last call, and those of the other processes."""
        if not self._shown:
            return
        if self._bar is None:
            self._bar = tqdm(total=self._total, initial=self._known, unit=self._unit, desc=self._title, smoothing=0.1)
        self._bar.update(answered + self._grown())

    def close(self) -> None:
        """Close the bar; it stays visible."""
        if self._bar is not None:
            self._bar.close()

    def _grown(self) -> int:
        lines = 0
        for part, start in self._read.items():
            try:
                with part.open("rb") as file:
                    file.seek(start)
                    new = file.read()
            except OSError:  # not created yet, or not visible for a moment on a network file system
                continue
            self._read[part] = start + len(new)
            lines += new.count(b"\n")
        return lines
