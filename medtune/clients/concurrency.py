"""Concurrent calls with results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Per thread, the number of calls that may be pending behind a slow one.
AHEAD = 4


def in_order(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    concurrency: int,
    on_interrupt: Callable[[], None] | None = None,
) -> Generator[tuple[ItemT, Future[ResultT]]]:
    """Call a function on each item in threads; yield each item with its finished call, in the order of the items.

    Args:
        function: A function that may be slow; ``concurrency`` threads call it at the same time.
        items: Items. A limited number is read ahead, more than there are threads, so that a slow call does not block
            the others.
        concurrency: Number of threads.
        on_interrupt: Called at a keyboard interrupt, before the running calls are waited for.

    Yields:
        The item and its finished future; ``result()`` returns at once or raises the call's error.
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
    except KeyboardInterrupt:
        if on_interrupt is not None:
            on_interrupt()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(item: ItemT, future: Future[ResultT]) -> tuple[ItemT, Future[ResultT]]:
    future.exception()  # waits
    return item, future
