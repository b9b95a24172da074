"""Gives each request of a stream its adapter: by a router, by the task that its row names, or by name."""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from medtune.errors import ConfigError, DataError
from medtune.generation.requests import Request
from medtune.routing.extension import ADAPTER, BASE, question_of, with_adapter, with_route
from medtune.routing.questions import require_tasks
from medtune.routing.routes import TaskRouter, choose

Refuse = Callable[[Request, DataError], None]


class Assignment(Protocol):
    """Chooses the adapters of requests."""

    def __call__(self, requests: Sequence[Request], refuse: Refuse) -> list[Request]:
        """Return the requests with adapter and route among their notes.

        Args:
            requests: Requests in the order of the stream.
            refuse: Called with a request for which none can be chosen; it is then left out.
        """
        ...


@dataclass(frozen=True)
class ByRouter:
    """A classifier tells the task of each question; see :func:`medtune.routing.routes.choose`.

    Attributes:
        router: The classifier.
        adapters: Names of the adapters.
        threshold: Least probability at which the task's own adapter answers.
        fallback: The adapter for the other questions; None is the base model.

    Raises:
        ConfigError: If the router cannot tell a task that has an adapter.
    """

    router: TaskRouter
    adapters: Collection[str]
    threshold: float
    fallback: str | None

    def __post_init__(self) -> None:
        tasks = [name for name in self.adapters if name != self.fallback]
        require_tasks(self.router.labels, tasks)

    def __call__(self, requests: Sequence[Request], refuse: Refuse) -> list[Request]:
        """See :class:`Assignment`; all questions are classified in one call."""
        asked, questions = [], []
        for request in requests:
            try:
                questions.append(question_of(request))
                asked.append(request)
            except DataError as error:
                refuse(request, error)
        if not asked:
            return []
        scores = self.router.probabilities(questions)
        routes = choose(scores, self.router.labels, self.adapters, self.threshold, self.fallback)
        return [with_route(request, route) for request, route in zip(asked, routes, strict=True)]


@dataclass(frozen=True)
class ByTask:
    """The row's own ``meta.task`` names the task, as if a router were always right.

    Attributes:
        adapters: Names of the adapters.
        fallback: The adapter for tasks that have none; None is the base model.
    """

    adapters: Collection[str]
    fallback: str | None

    def __call__(self, requests: Sequence[Request], refuse: Refuse) -> list[Request]:
        """See :class:`Assignment`."""
        return _each(requests, refuse, self._chosen)

    def _chosen(self, request: Request) -> Request:
        task = request.sample.meta.get("task")
        if not isinstance(task, str):
            raise DataError(f"request {request.id!r}: its row has no meta.task, which mode oracle needs")
        return with_adapter(request, task if task in self.adapters else self.fallback, task)


@dataclass(frozen=True)
class ByName:
    """Each request names its adapter, in its notes or as ``meta.adapter`` of its row; or one answers all.

    Attributes:
        adapters: Names of the adapters.
        adapter: The adapter that answers all requests; None if each names its own.
    """

    adapters: Collection[str]
    adapter: str | None = None

    def __call__(self, requests: Sequence[Request], refuse: Refuse) -> list[Request]:
        """See :class:`Assignment`."""
        return _each(requests, refuse, self._chosen)

    def _chosen(self, request: Request) -> Request:
        name = self.adapter or request.notes.get(ADAPTER, request.sample.meta.get(ADAPTER))
        if name != BASE and name not in self.adapters:
            raise DataError(
                f"request {request.id!r}: without a router its row must name its adapter as meta.adapter, one of "
                f"{', '.join([*self.adapters, BASE])}"
            )
        task = request.sample.meta.get("task")
        return with_adapter(request, None if name == BASE else name, task if isinstance(task, str) else None)


def assigned(
    requests: Iterable[Request], assignment: Assignment, window: int, refuse: Refuse, done: Container[str] = frozenset()
) -> Iterator[Request]:
    """Yield requests with their adapters; a router classifies ``window`` of them at once.

    Args:
        requests: The stream.
        assignment: Chooses the adapters.
        window: Number of requests that are read at once.
        refuse: As for :class:`Assignment`.
        done: Ids that are passed on as they are, because they are not asked.
    """
    stream = iter(requests)
    while block := list(islice(stream, window)):
        found = {request.id: request for request in assignment([r for r in block if r.id not in done], refuse)}
        yield from (found.get(r.id, r) for r in block if r.id in done or r.id in found)


def _each(requests: Sequence[Request], refuse: Refuse, choose_for: Callable[[Request], Request]) -> list[Request]:
    chosen = []
    for request in requests:
        try:
            chosen.append(choose_for(request))
        except DataError as error:
            refuse(request, error)
    return chosen


def check_fallback(fallback: str | None, adapters: Collection[str]) -> None:
    """Refuse a fallback that is not among the adapters.

    Raises:
        ConfigError: naming both.
    """
    if fallback is not None and fallback not in adapters:
        raise ConfigError(f"the fallback {fallback!r} is not among the adapters {', '.join(sorted(adapters))}")
