"""Which requests are answered together: a planner turns a stream of requests into batches."""

from collections.abc import Callable, Container, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from medtune.errors import ConfigError
from medtune.generation.engine.batches import Plan, plan_batches
from medtune.generation.requests import Request


@dataclass(frozen=True)
class PlanKeys:
    """Keys of a request, from which a planner forms batches.

    Attributes:
        order: Sort key: maximum length of the answer and length of the prompt. Batches of similar requests need little
            padding.
        apart: Requests with different keys must not share a batch.
        together: Requests with equal keys have a common prefix, which one batch can read once.
    """

    order: Callable[[Request], Any]
    apart: Callable[[Request], Hashable]
    together: Callable[[Request], Hashable]


class Planner(Protocol):
    """Forms batches."""

    def __call__(
        self, requests: Iterable[Request], keys: PlanKeys, done: Container[str] = frozenset()
    ) -> Iterator[Plan]:
        """Yield batches of the requests that are not in ``done``.

        Args:
            requests: The stream. It is read in a thread of the generator, one batch ahead of the one being answered.
            keys: Keys that say which requests fit together.
            done: Ids that are answered already.

        Raises:
            DataError: If an id occurs twice.
        """
        ...


@dataclass(frozen=True)
class WindowPlanner:
    """Sorts a window of requests and cuts it into batches. It waits until the window is full or the stream ends.

    Attributes:
        batch_size: Requests per batch.
        window: Batches per window; a larger window means less padding.
    """

    batch_size: int = 16
    window: int = 8

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.window < 1:
            raise ConfigError(f"batch_size {self.batch_size} or window {self.window} is too small")

    def __call__(
        self, requests: Iterable[Request], keys: PlanKeys, done: Container[str] = frozenset()
    ) -> Iterator[Plan]:
        """See :class:`Planner`."""
        return plan_batches(
            requests,
            batch_size=self.batch_size,
            window=self.window,
            order=keys.order,
            done=done,
            apart=keys.apart,
            together=keys.together,
        )
