"""From a checked request to one of the engine, and the number of tokens of its prompt."""

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from medtune.data.features import EncodedPicture
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.generation.engine.continuous import Engine
from medtune.generation.requests import Request
from medtune.serving.chat import ChatCall
from medtune.serving.errors import unknown_model
from medtune.serving.images import ReceivedImages

SEEDED = "seeded"


class CountedPrompts:
    """A model's transform that remembers how long each request's prompt is, from :meth:`expect` to :meth:`forget`.

    The engine's thread may read a prompt whose client has just hung up: nothing is noted of a forgotten request, as
    nobody would remove it.

    Args:
        transform: The transform; everything else is as there.
    """

    def __init__(self, transform: Any) -> None:
        self._transform = transform
        self._lengths: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def remembered(self) -> int:
        """Number of requests that are remembered."""
        return len(self._lengths)

    def expect(self, name: str) -> None:
        """Remember the length of the sample of this id."""
        with self._lock:
            self._lengths[name] = 0

    def length(self, name: str) -> int | None:
        """Return the tokens of a sample's prompt: 0 before it is read, None for a sample that is not remembered."""
        return self._lengths.get(name)

    def forget(self, name: str) -> int:
        """Forget a sample; return the tokens of its prompt, 0 if it was never read."""
        with self._lock:
            return self._lengths.pop(name, 0)

    def __call__(
        self, sample: Sample, images: Sequence[Image.Image | EncodedPicture], *, inference: bool = False
    ) -> dict[str, Any]:
        """Call the transform, and note the number of tokens."""
        made = self._transform(sample, images, inference=inference)
        with self._lock:
            if sample.id in self._lengths:
                self._lengths[sample.id] = len(made["tokens"])
        return made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transform, name)


class Models(Protocol):
    """The names under which a server answers."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names, the one that answers by default first."""
        ...

    def assign(self, request: Request, model: str, question: str) -> Request:
        """Return the request with what it needs to be answered by a model of this name; may take a while.

        Args:
            request: The request.
            model: One of the names.
            question: Its question.
        """
        ...

    def told(self, request: Request) -> Mapping[str, Any]:
        """Return what the reply tells of the request's route; empty without routes."""
        ...


@dataclass(frozen=True)
class OneModel:
    """A model without adapters to choose from.

    Attributes:
        name: Its name.
    """

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        """The only name."""
        return (self.name,)

    def assign(self, request: Request, model: str, question: str) -> Request:
        """Return the request unchanged."""
        return request

    def told(self, request: Request) -> Mapping[str, Any]:
        """Nothing is chosen."""
        return {}


@dataclass
class Served:
    """A loaded model, and all that is needed to ask it.

    Attributes:
        models: Its names.
        open_engine: Makes an engine for it.
        prompts: Its transform.
        images: The images of the requests that are being answered.
        source: The same images, changed as in training.
        created: When it was loaded, in seconds since 1970.
    """

    models: Models
    open_engine: Callable[[], Engine]
    prompts: CountedPrompts
    images: ReceivedImages
    source: SampleSource
    created: int = 0

    def __post_init__(self) -> None:
        self.created = self.created or int(time.time())

    def check(self, model: str) -> None:
        """Refuse a name that is not served.

        Raises:
            ApiError: With the names that are.
        """
        if model not in self.models.names:
            raise unknown_model(self.models.names)

    def request(self, call: ChatCall) -> Request:
        """Return the engine's request; its images are kept until :meth:`release`.

        Raises:
            MedtuneError: If it cannot be routed.
        """
        name = f"chatcmpl-{uuid.uuid4().hex}"
        images = self.images.take(call.images)
        self.prompts.expect(name)
        try:
            sample = Sample(name, images, call.messages)
            request = Request(
                name,
                sample,
                self.source,
                max_new_tokens=call.max_new_tokens,
                sampling=call.sampling,
                draws_as=SEEDED if call.seeded else None,
            )
            return self.models.assign(request, call.model, call.question)
        except BaseException:
            self.images.release(images)
            self.prompts.forget(name)
            raise

    def release(self, request: Request) -> int:
        """Forget a request; return the number of tokens of its prompt, 0 if it was never read."""
        self.images.release(request.sample.images)
        return self.prompts.forget(request.id)
