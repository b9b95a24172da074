import random
import subprocess
import sys
import time

import pytest
import torch

from medtune.data.batching import BatchPlan, split_step
from medtune.data.items import SampleItems
from medtune.data.source import JsonlSource
from medtune.data.training_set import TrainingSet, epoch_loader
from medtune.errors import DataError
from tests.data.tools import LetterTransform, row, shuffle_letters, unchanged, write_pictures, write_rows


@pytest.fixture
def source(tmp_path):
    write_pictures(tmp_path / "images", 11)
    rows = [row(f"s{n}", f"report number {n}" + "x" * n, (f"{n}.png",) if n % 3 else ()) for n in range(11)]
    return JsonlSource(write_rows(tmp_path / "a.jsonl", rows), tmp_path / "images")


def steps_of(count, batch, accumulation, epoch=0, rank=0, world=1):
    plan = BatchPlan(list(range(count)), batch * accumulation * world, seed=5)
    return [split_step(step, world, rank, accumulation, batch) for step in plan.steps(epoch)]


def run(source, workers, epoch=0, start_step=0, transform=shuffle_letters, **options):
    dataset = TrainingSet(source, SampleItems(transform), LetterTransform(), seed=5, **options)
    steps = steps_of(len(source), batch=2, accumulation=2, epoch=epoch)
    return list(epoch_loader(dataset, steps, epoch, workers, start_step))


def same(left, right):
    """Whether two runs of batches hold the same values."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def test_two_workers_give_the_very_batches_of_none(source):
    alone = run(source, workers=0)
    assert [len(step) for step in alone] == [2, 2, 2]
    assert same(alone, run(source, workers=2))
    assert not same(alone, run(source, workers=0, epoch=1))


def test_beginning_later_gives_the_same_steps(source):
    assert same(run(source, workers=0)[2:], run(source, workers=2, start_step=2))
    assert run(source, workers=0, start_step=3) == []


def test_global_random_state_is_neither_read_nor_changed(source):
    first = run(source, workers=0)
    torch.manual_seed(99)
    random.seed(99)
    before = (torch.get_rng_state(), random.getstate())
    for workers in (0, 2):
        assert same(first, run(source, workers))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_each_sample_counts_once_and_fillers_not_at_all(source):
    counted: dict[str, int] = {}
    for step in run(source, workers=0):
        for batch in step:
            for id, labels in zip(batch["ids"], batch["labels"], strict=True):
                counted[id] = counted.get(id, 0) + int((labels != -100).any())
    assert counted == {f"s{number}": 1 for number in range(11)}


def test_a_filler_is_the_sample_without_its_labels(source):
    dataset = TrainingSet(source, SampleItems(shuffle_letters), LetterTransform(), seed=5)
    real, filler = dataset[0, 4, True], dataset[0, 4, False]
    assert real["tokens"] == filler["tokens"] and set(filler["labels"]) == {-100}


def test_a_bad_sample_stops_the_run_with_its_own_message(source, tmp_path):
    (tmp_path / "images/4.png").unlink()
    for workers in (0, 2):
        with pytest.raises(DataError) as caught:
            run(source, workers)
        assert str(caught.value).startswith("a.jsonl, line 5 (id 's4'): the image 4.png is not in")
        assert "Traceback" not in str(caught.value)


def test_a_skipped_sample_is_listed_and_has_no_weight(source, tmp_path):
    (tmp_path / "images/4.png").write_bytes(b"x")
    (tmp_path / "images/5.png").unlink()
    for workers in (0, 2):
        batches = [batch for step in run(source, workers, on_error="skip") for batch in step]
        skipped = [entry for batch in batches for entry in batch["skipped"]]
        assert sorted({id for id, _ in skipped}) == ["s4", "s5"]
        assert all(f"(id '{id}')" in reason for id, reason in skipped)
        labelled = {
            id for b in batches for id, labels in zip(b["ids"], b["labels"], strict=True) if (labels != -100).any()
        }
        assert labelled == {f"s{number}" for number in range(11)} - {"s4", "s5"}
        assert all(len(batch["ids"]) == 2 for batch in batches)


def test_a_row_that_is_no_sample_is_listed_by_its_row(tmp_path):
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", ["{", row("b")]), None)
    item = TrainingSet(source, SampleItems(unchanged), LetterTransform(), 0, "skip")[0, 0, True]
    assert item["id"] == "b" and set(item["labels"]) == {-100}
    assert item["skipped"][0][0] == "row 1" and "not valid JSON" in item["skipped"][0][1]


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", ["{", "}"]), None)
    with pytest.raises(DataError, match="not one sample can be used; the first problem: a.jsonl, line 1"):
        TrainingSet(source, SampleItems(unchanged), LetterTransform(), 0, "skip")[0, 0, True]


def test_a_sample_without_a_supervised_token_is_refused(tmp_path):
    question = {"id": "q", "messages": [{"role": "user", "content": "why?"}]}
    source = JsonlSource(write_rows(tmp_path / "a.jsonl", [question]), None)
    with pytest.raises(DataError, match=r"a.jsonl, line 1 \(id 'q'\): nothing of the sample is supervised"):
        TrainingSet(source, SampleItems(unchanged), LetterTransform(), 0)[0, 0, True]


def test_randomness_belongs_to_the_sample_not_to_its_place(source):
    dataset = TrainingSet(source, SampleItems(shuffle_letters), LetterTransform(), seed=5)
    assert dataset[2, 7, True]["tokens"] == dataset[2, 7, True]["tokens"]
    assert len({tuple(dataset[epoch, 7, True]["tokens"]) for epoch in range(4)}) == 4


LEFT_OPEN = """
import multiprocessing, os, signal, sys
from medtune.data.source import JsonlSource
from medtune.data.items import SampleItems
from medtune.data.training_set import TrainingSet, epoch_loader
from tests.data.tools import LetterTransform, unchanged

def run():
    global batches  # still referred to when the process ends, as from a traceback
    dataset = TrainingSet(JsonlSource(sys.argv[1], None), SampleItems(unchanged), LetterTransform(), 0)
    batches = epoch_loader(dataset, [[[(0, True)]]] * 40, 0, num_workers=2)
    for _ in range(10):  # until both workers have begun
        next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    for _ in range(20):
        next(batches)
    print("served", flush=True)
    raise ValueError("training failed")

if sys.argv[2] == "main":
    run()
process = multiprocessing.get_context("fork").Process(target=run)
process.start()
process.join()
"""


@pytest.mark.parametrize("where", ["main", "child"])
def test_workers_outlive_a_signal_but_not_the_run(tmp_path, checkout, where):
    path = write_rows(tmp_path / "a.jsonl", [row("a")])
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, path, where], cwd=checkout, capture_output=True, text=True, timeout=120
    )
    assert "served" in done.stdout and "training failed" in done.stderr
    assert time.monotonic() - began < 100


def test_the_next_usable_sample_stands_in(source, tmp_path):
    for name in ("4.png", "5.png"):
        (tmp_path / "images" / name).unlink()
    item = TrainingSet(source, SampleItems(unchanged), LetterTransform(), 5, "skip")[0, 4, True]
    assert item["id"] == "s6" and set(item["labels"]) == {-100} and [id for id, _ in item["skipped"]] == ["s4"]


def test_other_items_of_the_same_samples(source):
    first = TrainingSet(source, SampleItems(unchanged), LetterTransform(), 5, "skip")
    other = first.with_items(SampleItems(shuffle_letters))
    assert other.items == SampleItems(shuffle_letters) != first.items
    assert all(getattr(other, name) is getattr(first, name) for name in ("source", "transform", "seed", "on_error"))
