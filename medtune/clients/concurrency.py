"""Several calls at once, their results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Calls beyond those in flight that may wait for a slow one before them, per thread.
AHEAD = 4


def in_order(
    function: Callable[[ItemT], ResultT], items: Iterable[ItemT], concurrency: int
) -> Generator[tuple[ItemT, Future[ResultT]]]:
    """Call a function on each item in threads; yield each item with its finished call, in the order of the items.

    Args:
        function: May be slow; it is called by ``concurrency`` threads at once.
        items: Read as far ahead as calls can be started, and a few more, so that one slow call does not hold the rest.
        concurrency: Threads.

    Yields:
        The item, and a future whose ``result()`` is at hand or raises the call's error.
    """
    pending: deque[tuple[ItemT, Future[ResultT]]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ask")
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > AHEAD * concurrency:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(item: ItemT, future: Future[ResultT]) -> tuple[ItemT, Future[ResultT]]:
    future.exception()  # waits
    return item, future
