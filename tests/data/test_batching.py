import random
from collections import Counter
from itertools import product

import numpy as np
import pytest

from medtune.data.batching import BatchPlan, split_step
from medtune.errors import ConfigError


def cases(count=40):
    """Random data sets and batch sizes; no package for properties is needed."""
    rng = random.Random(0)
    for _ in range(count):
        size = rng.choice([1, 2, 7, 64, 333])
        lengths = [rng.randrange(1, 50) for _ in range(size)]
        yield lengths, [rng.randrange(3) for _ in range(size)], rng.choice([1, 2, 3, 8, 400]), rng.randrange(5)


def test_every_sample_once_and_only_the_last_step_short():
    for lengths, tiles, batch, seed in cases():
        for shuffle, bucket in product((True, False), repeat=2):
            plan = BatchPlan(lengths, batch, seed, shuffle=shuffle, bucket=bucket, tiles=tiles)
            for epoch in (0, 3):
                steps = plan.steps(epoch)
                assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
                assert len(steps) == len(plan) and all(len(step) == batch for step in steps[:-1])


def test_the_plan_is_a_function_of_its_arguments():
    for lengths, tiles, batch, seed in cases(10):
        state = random.getstate()
        first = BatchPlan(lengths, batch, seed, tiles=tiles).steps(1)
        assert random.getstate() == state
        assert first == BatchPlan(lengths, batch, seed, tiles=tiles).steps(1)


def test_epochs_and_seeds_differ():
    lengths = [random.Random(0).randrange(100) for _ in range(200)]
    plans = [BatchPlan(lengths, 8, seed).steps(epoch) for seed, epoch in product((0, 1), repeat=2)]
    assert len({str(plan) for plan in plans}) == 4


def test_without_shuffling_the_source_order_stands():
    assert BatchPlan([5, 1, 3], 2, seed=9, shuffle=False).steps(4) == [[0, 1], [2]]


def test_buckets_save_padding_and_keep_tiles_apart():
    rng = random.Random(3)
    lengths = np.array([rng.randrange(1, 200) for _ in range(2000)])
    tiles = np.array([rng.randrange(1, 5) for _ in range(2000)])

    def waste(bucket):
        steps = BatchPlan(lengths, 8, 0, bucket=bucket, tiles=tiles).steps(0)
        return sum(int((lengths[step].max() - lengths[step]).sum()) for step in steps), sum(
            len(set(tiles[step].tolist())) > 1 for step in steps
        )

    (padded, mixed), (padded_without, mixed_without) = waste(True), waste(False)
    assert padded < padded_without / 4
    assert mixed < mixed_without / 10


def test_long_and_short_steps_come_in_random_order():
    lengths = list(range(1000))
    means = [np.mean(step) for step in BatchPlan(lengths, 10, 0).steps(0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3


def test_left_out_rows_do_not_come_back():
    plan = BatchPlan([4, 2, 9], 2, 0, indices=[10, 20, 30])
    assert sorted(index for step in plan.steps(0) for index in step) == [10, 20, 30]


def test_a_batch_below_one_is_refused():
    with pytest.raises(ConfigError, match="global batch is 0"):
        BatchPlan([1], 0, 0)


def test_the_same_samples_for_every_division_of_the_work():
    rng = random.Random(1)
    for _ in range(200):
        world, accumulation, size = rng.choice([1, 2, 3, 4]), rng.choice([1, 2, 5]), rng.choice([1, 2, 4])
        total = world * accumulation * size
        step = rng.sample(range(1000), rng.randrange(1, total + 1))
        shares = [split_step(step, world, rank, accumulation, size) for rank in range(world)]
        assert all(len(share) == accumulation and all(len(m) == size for m in share) for share in shares)
        entries = [entry for share in shares for micro in share for entry in micro]
        assert Counter(index for index, real in entries if real) == Counter(step)
        assert {index for index, real in entries if not real} <= set(step)
        assert len(entries) == total


def test_a_step_that_does_not_fit_is_refused():
    for step in ([], [1, 2, 3]):
        with pytest.raises(ConfigError, match="does not fit"):
            split_step(step, world=2, rank=0, accumulation=1, batch_size=1)


def test_a_process_has_neighbours_of_a_round_in_their_order():
    """Which samples share a micro-batch matters where one is the other's negative."""
    shares = [split_step([10, 11, 12, 13, 14, 15, 16], 2, rank, 2, 2) for rank in (0, 1)]
    assert shares[0] == [[(10, True), (11, True)], [(14, True), (15, True)]]
    assert shares[1] == [[(12, True), (13, True)], [(16, True), (10, False)]]


def test_a_weight_of_nothing_is_refused():
    for weights in ([1.0, 0.0, 2.0], [1.0, float("nan"), 2.0], [1.0, 2.0]):
        with pytest.raises(ValueError, match="weights must be positive numbers, one for each sample"):
            BatchPlan([5, 5, 5], 1, seed=0, weights=weights)
