"""Several adapters on one base as the models of a server: a request names one, or a router chooses."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from medtune.generation.requests import Request
from medtune.models.lora.bank import AdapterBank
from medtune.models.lora.peft import read_peft
from medtune.routing.extension import ADAPTER, BASE, RoutedAdapters, with_adapter, with_route
from medtune.routing.loading import load_router
from medtune.routing.questions import require_tasks
from medtune.routing.routes import TaskRouter, choose

AUTO = "auto"
"""The name under which the router chooses the adapter."""


@dataclass(frozen=True)
class RoutedModels:
    """The names of a base model and its adapters.

    Attributes:
        adapters: Names of the adapters.
        router: Tells the task of a question; None if requests must name an adapter.
        threshold: Least score for the adapter of a task.
        fallback: The adapter of other questions; None is the base.
    """

    adapters: tuple[str, ...]
    router: TaskRouter | None = None
    threshold: float = 0.5
    fallback: str | None = None
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> tuple[str, ...]:
        """``auto`` if there is a router, ``base``, and the adapters."""
        return (*((AUTO,) if self.router else ()), BASE, *self.adapters)

    def assign(self, request: Request, model: str, question: str) -> Request:
        """Return the request with its route in its notes."""
        if model != AUTO or self.router is None:
            return with_adapter(request, None if model == BASE else model)
        with self._one_at_a_time:  # a router is a model too, whose forward pass need not bear several threads
            scores = self.router.probabilities([question])
        (route,) = choose(scores, self.router.labels, self.adapters, self.threshold, self.fallback)
        return with_route(request, route)

    def told(self, request: Request) -> Mapping[str, Any]:
        """Return adapter, task and score."""
        return {"adapter": request.notes[ADAPTER], "task": request.notes["route"], "score": request.notes["score"]}


def open_adapters(
    model: Any,
    folders: Mapping[str, str],
    router: str | None = None,
    threshold: float = 0.5,
    fallback: str | None = None,
) -> tuple[RoutedModels, RoutedAdapters]:
    """Load adapters beside their base.

    Args:
        model: The base model.
        folders: Name -> folder in PEFT's format.
        router: Folder of a task router; None for none.
        threshold: See :class:`RoutedModels`.
        fallback: See :class:`RoutedModels`.

    Raises:
        MedtuneError: If an adapter belongs to another base, or the router does not know a task.
    """
    read = {name: read_peft(folder, model.family) for name, folder in folders.items()}
    bank = AdapterBank(model, read)
    return RoutedModels(tuple(folders), open_router(router, folders, fallback), threshold, fallback), RoutedAdapters(
        bank
    )


def open_router(folder: str | None, adapters: Collection[str], fallback: str | None) -> TaskRouter | None:
    """Load a router; None without a folder.

    Raises:
        MedtuneError: If it cannot be read, or lacks the task of an adapter other than the fallback.
    """
    if folder is None:
        return None
    router = load_router(folder)
    require_tasks(router.labels, [name for name in adapters if name != fallback])
    return router
