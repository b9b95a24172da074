"""Sharing queries out, and one file of several processes' answers."""

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medtune.data.sample import Message, Sample
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction, PredictionLog, read_predictions
from medtune.evaluation.protocols.base import Query
from medtune.generation.sharding import Progress, SharedLog, part_path, shard

IDENTITY = {"config": {"seed": 0}, "weights": {"options": {"api_key": "sk-1"}}}


def query(name: str, *images: str) -> Query:
    return Query(name, "open", Sample(name, images, (Message("user", "?"),)), (), (), {})


def answered(name: str) -> Prediction:
    return Prediction(name, "open", "?", f"answer to {name}")


class Threads:
    """A world whose processes are threads."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, values: list[Any]) -> None:
        self.rank, self.world, self._barrier, self._values = rank, world, barrier, values

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(20)
        found = list(self._values)
        self._barrier.wait(20)
        return found

    def on_all_ranks(self, work: Callable[[], Any]) -> Any:
        error, result = None, None
        try:
            result = work()
        except (ConfigError, DataError) as raised:
            error = raised
        for found in self.gather(error):
            if found is not None:
                raise found
        return result

    def on_rank0(self, work: Callable[[], Any]) -> Any:
        return self.gather(self.on_all_ranks(lambda: work() if self.rank == 0 else None))[0]


def in_threads(world: int, work: Callable[[Threads], Any]) -> list[Any]:
    """What each of several threads returns, or the error that it raises."""
    barrier, values, found = threading.Barrier(world), [None] * world, [None] * world

    def live(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, world, barrier, values))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=live, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 50])
def test_queries_are_shared_out_by_image(world: int) -> None:
    rng = random.Random(0)
    queries = [query(f"q{i}", *rng.choice([("a",), ("b",), ("c",), ("a", "b"), ("d",), ()])) for i in range(40)]
    shares = shard(queries, world)
    assert len(shares) == world and shares == shard(list(queries), world)
    assert sorted(q.id for share in shares for q in share) == sorted(q.id for q in queries)
    for share in shares:
        assert share == [q for q in queries if q in share], "the order is kept"
    owners: dict[tuple[str, ...], set[int]] = {}
    for rank, share in enumerate(shares):
        for q in share:
            owners.setdefault(q.sample.images, set()).add(rank)
    assert all(len(ranks) == 1 for images, ranks in owners.items() if images)


def test_shares_are_even_where_images_are() -> None:
    queries = [query(f"q{i}{j}", f"image{i}") for i in range(9) for j in range(4)]
    assert sorted(len(share) for share in shard(queries, 2)) == [16, 20]
    assert [len(share) for share in shard([query(f"t{i}") for i in range(8)], 4)] == [2] * 4


def test_parts_become_one_file_in_the_order_of_the_queries(output: Path) -> None:
    path, names = output / "predictions.jsonl", [f"q{i}" for i in range(11)]

    def work(world: Threads) -> Any:
        with SharedLog(path, lambda: IDENTITY, world) as log:
            for name in reversed(names[world.rank :: 3]):
                log.append(answered(name))
            assert part_path(path, world.rank).exists()
            counts = log.gather(len(log.answered))
            log.finish(names)
        return counts

    assert in_threads(3, work) == [[4, 4, 3]] * 3
    assert read_predictions(path) == [answered(name) for name in names]
    assert sorted(file.name for file in output.iterdir()) == ["predictions.jsonl", "predictions.meta.json"]


def write(path: Path, *names: str) -> None:
    with PredictionLog(path) as log:
        for name in names:
            log.append(answered(name))


def test_parts_of_an_earlier_start_are_read_first(output: Path) -> None:
    path = output / "predictions.jsonl"
    with SharedLog(path, lambda: IDENTITY) as log:
        log.append(answered("a"))
    write(part_path(path, 1), "b", "c")
    # A kill between adding a part and removing it leaves its answers in both files.
    write(part_path(path, 7), "a", "d")
    said: list[str] = []
    with part_path(path, 1).open("a") as file:
        file.write('{"id": "torn')

    def work(world: Threads) -> Any:
        with SharedLog(path, lambda: IDENTITY, world, said.append) as log:
            return log.done

    assert in_threads(2, work) == [{"a", "b", "c", "d"}] * 2
    assert [row.id for row in read_predictions(path)] == ["a", "b", "c", "d"]
    assert said == [f"{part_path(path, 1)}: cut off a torn last line of 12 bytes"]
    assert [file.name for file in output.glob("*.rank*")] == ["predictions.rank1.jsonl"], "the new, empty part"


def test_answers_in_parts_alone_bind_to_their_settings(output: Path) -> None:
    path = output / "predictions.jsonl"
    with SharedLog(path, lambda: IDENTITY):
        pass
    write(part_path(path, 2), "b")
    record = path.with_suffix(".meta.json").read_bytes()
    with pytest.raises(ConfigError, match="config.seed: 0 before, 1 now"):
        SharedLog(path, lambda: {**IDENTITY, "config": {"seed": 1}})
    assert path.with_suffix(".meta.json").read_bytes() == record and part_path(path, 2).exists()
    with SharedLog(path, lambda: IDENTITY) as log:
        assert log.done == {"b"}
    path.with_suffix(".meta.json").unlink()
    with pytest.raises(ConfigError, match="its model is unknown"):
        SharedLog(path, lambda: IDENTITY)


def test_a_part_that_is_still_written_keeps_others_out_before_the_record_is_touched(output: Path) -> None:
    path = output / "predictions.jsonl"
    with SharedLog(path, lambda: IDENTITY):
        pass
    record = path.with_suffix(".meta.json").read_bytes()
    with PredictionLog(part_path(path, 1)) as alive:
        with pytest.raises(DataError, match="rank1.jsonl is being written by another run"):
            SharedLog(path, lambda: {"config": {"seed": 1}})
        assert path.with_suffix(".meta.json").read_bytes() == record
        alive.append(answered("a"))
    with pytest.raises(ConfigError, match="other settings"):
        SharedLog(path, lambda: {"config": {"seed": 1}})


def test_the_lock_comes_before_the_record(output: Path) -> None:
    path = output / "predictions.jsonl"
    asked: list[int] = []
    with SharedLog(path, lambda: IDENTITY):
        record = path.with_suffix(".meta.json").read_bytes()
        with pytest.raises(DataError, match="being written by another run"):
            SharedLog(path, lambda: asked.append(1) or {"config": {"seed": 1}})
        assert path.with_suffix(".meta.json").read_bytes() == record and not asked
    with SharedLog(path, lambda: {"config": {"seed": 1}}):  # nothing was answered yet
        assert json.loads(path.with_suffix(".meta.json").read_text()) == {"config": {"seed": 1}}


def test_nothing_is_cut_off_from_another_runs_file(output: Path) -> None:
    path = output / "predictions.jsonl"
    foreign = json.dumps(answered("a").to_dict()) + "\n" + json.dumps(answered("b").to_dict())  # no newline at the end
    for file in (path, part_path(path, 1)):
        file.write_text(foreign)
        with pytest.raises(ConfigError, match="its model is unknown"):
            SharedLog(path, lambda: IDENTITY)
        assert file.read_text() == foreign
        file.unlink()
    with SharedLog(path, lambda: IDENTITY) as log:
        log.append(answered("a"))
    with path.open("a") as torn:
        torn.write('{"id": "b')
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="other settings"):
        SharedLog(path, lambda: {"config": {"seed": 1}})
    assert path.read_bytes() == before
    with SharedLog(path, lambda: IDENTITY) as log:
        assert log.done == {"a"}


def test_an_error_of_the_first_process_is_raised_on_all_and_lets_go_of_the_file(output: Path) -> None:
    path = output / "predictions.jsonl"

    def refused() -> dict:
        raise ConfigError("no such weights")

    found = in_threads(3, lambda world: SharedLog(path, refused, world))
    assert [str(error) for error in found] == ["no such weights"] * 3
    with SharedLog(path, lambda: IDENTITY):
        pass


def test_the_bar_counts_every_processes_answers(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = output / "predictions.jsonl"

    def work(world: Threads) -> None:
        with SharedLog(path, lambda: IDENTITY, world) as log:
            progress = Progress(path, world, 9, 0)
            for number in range(3):
                log.append(answered(f"{world.rank}/{number}"))
                progress(1)
            log.gather(None, meanwhile=progress)
            progress(0)
            progress.close()

    in_threads(3, work)
    assert "9/9" in capsys.readouterr().err
