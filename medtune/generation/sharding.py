"""Answering on several processes: which of them asks what, and how their answers become one file.

The first process writes the prediction file itself, every other one a part ``NAME.rank<k>.jsonl`` beside it. At the end
the first process adds the parts to the file and brings its lines into the order of the queries. After a kill, the next
start adds whatever parts there are before anything is asked, so that it may have another number of processes.
"""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from medtune.evaluation.prediction import Prediction, PredictionLog, iterate_predictions
from medtune.evaluation.protocols.base import Query
from medtune.generation.identity import claim

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
        """What the first process finds, or its error, on every process."""
        ...

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Do work on this process; an error of any process is raised on all."""
        ...


class Alone:
    """A world of one process."""

    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Do the work."""
        return work()

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Do the work."""
        return work()


def shard(queries: Sequence[Query], world: int) -> list[list[Query]]:
    """Share queries out, those on the same images to one process, so that each image is encoded once.

    In the order in which images come first, each goes with all its queries to the process that has the fewest queries
    by then. The result depends on the queries and the number of processes alone.

    Args:
        queries: All queries, answered before or not.
        world: Number of processes.

    Returns:
        The queries of each process, in their order.
    """
    groups: dict[Hashable, list[Query]] = {}
    for query in queries:
        # Texts without an image share nothing, and need not stay together.
        groups.setdefault(query.sample.images or (query.id,), []).append(query)
    owner: dict[str, int] = {}
    load = [0] * world
    for group in groups.values():
        rank = load.index(min(load))
        load[rank] += len(group)
        owner.update({query.id: rank for query in group})
    return [[query for query in queries if owner[query.id] == rank] for rank in range(world)]


def part_path(path: Path, rank: int) -> Path:
    """The file of one process's answers: the prediction file itself for the first one."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path


def parts_of(path: Path) -> list[Path]:
    """The parts that lie beside a prediction file, whichever run left them."""
    return sorted(path.parent.glob(f"{path.stem}.rank*{path.suffix}"))


class SharedLog:
    """The prediction file of a run on one process or several; a collective of all of them, as :meth:`finish` is.

    Order matters. The first process locks the file and every part that lies beside it, and only then compares the
    record: a process of another run that still writes holds the lock of its part, and one that does not hold it yet
    cannot begin once its first process has gone.

    Args:
        path: The prediction file.
        identity: What decides the answers; called by the first process alone.
        world: The processes.
        say: Told what a user should know, by the first process alone.

    Attributes:
        done: Ids that were answered when the run started, by whatever process.

    Raises:
        ConfigError: The file was made with other settings.
        DataError: Another run is writing it, or a line of it is no prediction.
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
        """Add one answer of this process."""
        assert self._log is not None
        self._log.append(row)

    @property
    def answered(self) -> set[str]:
        """Ids that were answered at the start, or by this process since."""
        return self.done | (self._log.done if self._log else set())

    def gather(self, value: T, meanwhile: Callable[[], None] | None = None) -> list[T]:
        """Every process's value, once all of them are done with their queries.

        Args:
            value: This process's.
            meanwhile: Called every now and then while this process waits for the others.
        """
        if meanwhile is None or self.world.world == 1:
            return self.world.gather(value)
        found: list[list[T]] = []
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                found.append(self.world.gather(value))
            except BaseException as error:
                errors.append(error)

        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(0.5)
            meanwhile()
        if errors:
            raise errors[0]
        return found[0]

    def finish(self, ids: Sequence[str]) -> None:
        """Make one file of all answers, its lines in the order of the queries; call it once all processes are done.

        Args:
            ids: Ids of all queries, in order.
        """
        if self.world.rank:
            self.close()
        self.world.gather(None)  # every part is closed, and its lock let go of
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
                parts.append(PredictionLog(path, recover=False))  # one by one: an error closes those before it
            claim(self.path, identity(), [part.path for part in parts])
            for log in (self._log, *parts):  # nothing is cut off from a file that is another run's
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
        """Add the answers of locked parts, and remove these; killed in between, it can be done again."""
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
    """One bar for all processes, shown by the first; it counts the lines that the others add to their parts.

    Args:
        path: The prediction file.
        world: The processes.
        total: Number of queries.
        known: Number of them that were answered before.
    """

    def __init__(self, path: Path, world: World, total: int, known: int) -> None:
        self._shown, self._total, self._known = world.rank == 0, total, known
        self._read = {part_path(path, rank): 0 for rank in range(1, world.world)}
        self._bar: tqdm | None = None

    def __call__(self, answered: int = 0) -> None:
        """Show what this process has answered since the last call, and what the others have."""
        if not self._shown:
            return
        if self._bar is None:
            self._bar = tqdm(total=self._total, initial=self._known, unit="query", desc="predict", smoothing=0.1)
        self._bar.update(answered + self._grown())

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def _grown(self) -> int:
        lines = 0
        for part, start in self._read.items():
            try:
                with part.open("rb") as file:
                    file.seek(start)
                    new = file.read()
            except OSError:  # it comes later, or is hidden for a moment by a network's file system
                continue
            self._read[part] = start + len(new)
            lines += new.count(b"\n")
        return lines
