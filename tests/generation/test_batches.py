"""Which requests are answered together, and how their tokens are aligned."""

import threading

import pytest
import torch

from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.generation.engine.batches import ahead, causal, left_pad, plan_batches
from medtune.generation.requests import Request


def request(name: str, length: int, *images: str) -> Request:
    return Request(name, Sample(name, images, (Message("user", "x" * length),)), source=None)


def by_length(one: Request) -> int:
    return len(one.sample.messages[0].content)


def plans(requests: list[Request], **options) -> list[list[str]]:
    settings = {"batch_size": 2, "window": 2, "order": by_length, **options}
    return [[one.id for one in plan.requests] for plan in plan_batches(requests, **settings)]


def test_windows_are_sorted_each_for_itself():
    requests = [request(str(i), length) for i, length in enumerate([1, 4, 2, 3, 9, 8])]
    assert plans(requests) == [["1", "3"], ["2", "0"], ["4", "5"]]


def test_done_requests_leave_the_other_batches_as_they_were():
    requests = [request(str(i), length) for i, length in enumerate([1, 4, 2, 3, 9, 8])]
    assert plans(requests, done={"1", "3"}) == [["2", "0"], ["4", "5"]]


def test_a_picture_is_released_with_its_last_use_in_the_window():
    requests = [request("a", 4, "p"), request("b", 3, "q"), request("c", 2, "p"), request("d", 1, "r")]
    first, second = plan_batches(requests, batch_size=2, window=2, order=by_length)
    assert {path for _, path in first.last} == {"q"}
    assert {path for _, path in second.last} == {"p", "r"}


def test_requests_that_belong_together_stand_where_the_largest_stands():
    requests = [request(name, length) for name, length in [("a1", 1), ("b1", 9), ("a2", 8), ("c1", 5), ("b2", 2)]]
    assert plans(requests, window=3, together=lambda one: one.id[0]) == [["b1", "b2"], ["a2", "a1"], ["c1"]]


def test_requests_that_must_stay_apart_share_no_batch():
    requests = [request(str(i), i) for i in range(5)]
    assert plans(requests, window=3, apart=lambda one: int(one.id) % 2) == [["4", "2"], ["0"], ["3", "1"]]


def test_an_id_given_twice_is_refused_by_name():
    with pytest.raises(DataError, match="'a' occurs twice"):
        plans([request("a", 1), request("b", 1), request("a", 2)])


def test_left_padding_and_mask():
    tokens, padding = left_pad([[5, 6, 7], [8]], pad_id=0)
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert padding.int().tolist() == [[1, 1, 1], [0, 0, 1]]
    mask = causal(padding[:, None])
    assert mask[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert mask[1].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_an_empty_row_attends_to_itself_alone():
    mask = causal(torch.zeros(1, 1, 3, dtype=torch.bool))
    assert torch.equal(mask[0], torch.eye(3, dtype=torch.bool))


def test_ahead_works_on_the_next_item_while_the_caller_is_busy():
    started = [threading.Event() for _ in range(3)]

    def work(index: int) -> int:
        started[index].set()
        return index * 10

    results = ahead(work, range(3))
    assert next(results) == 0
    assert started[1].wait(timeout=5)
    assert not started[2].is_set()
    assert list(results) == [10, 20]


def test_a_result_does_not_wait_for_the_next_item_to_arrive():
    """As in a server, where the next request may come in an hour."""
    arrived = threading.Event()

    def items():
        yield 1
        assert arrived.wait(timeout=5)
        yield 2

    results = ahead(lambda item: item * 10, items())
    assert next(results) == 10
    arrived.set()
    assert list(results) == [20]


def test_ahead_passes_an_error_on():
    def work(index: int) -> int:
        raise DataError(f"item {index}")

    with pytest.raises(DataError, match="item 0"):
        list(ahead(work, range(2)))
