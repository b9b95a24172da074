"""A batch of requests for several adapters, answered in one pass over their common base model."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image
from torch import Tensor

from medtune.config import nearest
from medtune.data.sample import last_question
from medtune.errors import DataError
from medtune.generation.interfaces import AnswerModel
from medtune.generation.prompt_extension import PromptExtension
from medtune.generation.requests import Request
from medtune.models.lora.bank import AdapterBank
from medtune.routing.routes import Route

BASE = "base"
"""The name that stands for the model without an adapter in notes, configs and requests."""
ADAPTER = "adapter"
"""The note that names a request's adapter."""


def question_of(request: Request) -> str:
    """Return the text that a router reads: the request's last question, without image tags.

    Raises:
        DataError: If there is none, so that no task can be told.
    """
    question = last_question(request.sample)
    if not question:
        raise DataError(f"request {request.id!r}: its question is empty, so its task cannot be told; give it a text")
    return question


def with_route(request: Request, route: Route) -> Request:
    """Return the request with its route in the notes ``route`` (the task), ``score`` and ``adapter``."""
    return _noted(request, route.task, route.score, route.adapter)


def with_adapter(request: Request, adapter: str | None, task: str | None = None) -> Request:
    """Return the request with an adapter that no router chose: its score is null.

    Args:
        request: The request.
        adapter: Name of the adapter; None is the base model.
        task: The task for which the adapter was named, if it is known.
    """
    return _noted(request, task, None, adapter)


def adapter_of(request: Request) -> str | None:
    """Return the adapter that the request's notes name; None is the base model.

    Raises:
        DataError: If they name none.
    """
    name = request.notes.get(ADAPTER)
    if not isinstance(name, str):
        raise DataError(f"request {request.id!r} names no adapter; name one, {BASE!r} for the model without an adapter")
    return None if name == BASE else name


def _noted(request: Request, task: str | None, score: float | None, adapter: str | None) -> Request:
    return replace(request, notes={**request.notes, "route": task, "score": score, ADAPTER: adapter or BASE})


class RoutedAdapters(PromptExtension):
    """Answers each request with the adapter that its notes name (:func:`with_route`, :func:`with_adapter`).

    Requests for different adapters share batches. They share no prefix, because keys and values depend on the adapter.
    They share the embeddings of an image, unless an adapter is in the image encoder.

    Args:
        bank: Holds the adapters; nothing else may set its route.
    """

    def __init__(self, bank: AdapterBank) -> None:
        self.bank = bank

    def prepare(self, request: Request, images: list[Image.Image], prompt: dict[str, Any]) -> None:
        """Check that the bank holds the request's adapter.

        Raises:
            DataError: If it does not, or if the request names none.
        """
        name = adapter_of(request)
        if name is not None and name not in self.bank.names:
            raise DataError(f"request {request.id!r}: there is no adapter {name!r}; {nearest(name, self.bank.names)}")

    def prefix_key(self, request: Request) -> Hashable:
        """Return the name of the request's adapter."""
        return request.notes.get(ADAPTER)

    def feature_key(self, request: Request) -> Hashable:
        """Return the name of the request's adapter if image embeddings depend on it."""
        return request.notes.get(ADAPTER) if self.bank.adapts_encoder else None

    def encode(self, model: AnswerModel, vision: dict[str, Tensor], requests: Sequence[Request]) -> Tensor:
        """Return image embeddings, each computed with the adapter of its request."""
        self._route(requests)
        return self.bank.encode(vision)

    def before_forward(self, requests: Sequence[Request]) -> None:
        """Give each row its adapter."""
        self._route(requests)

    def _route(self, requests: Sequence[Request]) -> None:
        self.bank.set_route([adapter_of(request) for request in requests])
