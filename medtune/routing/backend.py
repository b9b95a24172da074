"""Backend of ``predict``: one base model with several adapters, of which a router chooses one for each question."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, Literal

from medtune.config import Component, instantiate, to_plain
from medtune.errors import ConfigError, DataError
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.engine.generator import Generator
from medtune.generation.identity import weights_identity
from medtune.generation.requests import Generation, Request
from medtune.models.lora.bank import AdapterBank
from medtune.models.lora.merge import Adapter
from medtune.models.lora.merging import WeightMerger
from medtune.routing.adapters import adapter_folders
from medtune.routing.assignment import Assignment, ByName, ByRouter, ByTask, assigned, check_fallback
from medtune.routing.base_model import load_base
from medtune.routing.extension import BASE, RoutedAdapters, adapter_of
from medtune.routing.loading import load_router
from medtune.routing.routes import TaskRouter
from medtune.routing.validation import chosen_threshold

Mode = Literal["batch", "merged", "oracle", "single"]


@dataclass(frozen=True)
class RoutedModel:
    """A base model, its adapters, and the router that chooses between them (ME-VLIP, section 2.3).

    Attributes:
        model: Component of the base model's builder; one with LoRA is built without it, one with QLoRA has its NF4
            weights and no adapters of its own.
        transform: Component of its tokenizer and image transform.
        checkpoint: The base weights: a folder in HF layout or one safetensors file.
        adapters: name -> folder of a PEFT adapter, or of a training run, whose newest checkpoint is read. An adapter
            answers the task whose name it has.
        router: Folder of a trained router, or a component that makes one; null if each row names its adapter as
            ``meta.adapter``.
        threshold: Least score at which the task's own adapter answers; or the ``threshold.json`` that the recipe
            ``router_threshold`` wrote, whose best one is taken.
        fallback: Name of the adapter that answers otherwise, the multi-task adapter in the paper; null is the base.
        mode: ``batch`` answers mixed batches in one pass, each row with its adapter; ``merged`` merges one adapter
            after the other into the weights, as the paper does; ``oracle`` takes the task from ``meta.task`` of each
            row in place of the router; ``single`` answers all with the adapter ``adapter``.
        adapter: The adapter of mode ``single``; ``base`` is the model without an adapter.
        batch_size: Number of prompts per batch.
        window: Number of batches whose requests are sorted, and routed, together.
        share_prefix: Read a beginning that several prompts of a batch have in common only once.
    """

    remote: ClassVar[bool] = False
    scores: ClassVar[bool] = True
    model: Component
    transform: Component
    checkpoint: str
    adapters: dict[str, str]
    router: str | Component | None = None
    threshold: float | str = 0.5
    fallback: str | None = None
    mode: Mode = "batch"
    adapter: str | None = None
    batch_size: int = 16
    window: int = 8
    share_prefix: bool = True

    def __post_init__(self) -> None:
        adapter_folders(self.adapters)
        check_fallback(self.fallback, self.adapters)
        if self.batch_size < 1 or self.window < 1 or self.least_score < 0:
            raise ConfigError("backend: batch_size and window must be at least 1, and threshold at least 0")
        if (self.mode == "single") != (self.adapter is not None):
            raise ConfigError("backend.adapter names the adapter of mode single; give both or neither")
        if self.adapter is not None and self.adapter not in (BASE, *self.adapters):
            raise ConfigError(f"backend.adapter {self.adapter!r} is none of {', '.join([*self.adapters, BASE])}")

    def identity(self) -> dict[str, Any]:
        """Return the checksums of base, adapters and router, and the settings that choose between adapters."""
        router = self._router.identity() if self._router is not None else None
        return {
            "model": to_plain(self.model),
            "transform": to_plain(self.transform),
            "base": weights_identity(self.checkpoint),
            "adapters": {folder.name: folder.identity() for folder in adapter_folders(self.adapters)},
            "router": router,
            "threshold": self.least_score if router is not None else None,
            "fallback": self.fallback,
            "mode": self.mode,
            "adapter": self.adapter,
        }

    @cached_property
    def least_score(self) -> float:
        """The threshold as a number, read once.

        Raises:
            ConfigError: If it is a file that holds none.
        """
        return chosen_threshold(self.threshold) if isinstance(self.threshold, str) else self.threshold

    @cached_property
    def _router(self) -> TaskRouter | None:
        """The router, if the mode needs it; loaded once for identity and answers."""
        if self.router is None or self.mode in ("oracle", "single"):
            return None
        return load_router(self.router) if isinstance(self.router, str) else instantiate(self.router)

    def assignment(self) -> Assignment:
        """Return what chooses the adapter of each request.

        Raises:
            ConfigError: If the router does not know the task of an adapter.
        """
        if self.mode == "oracle":
            return ByTask(tuple(self.adapters), self.fallback)
        if self._router is not None:
            return ByRouter(self._router, tuple(self.adapters), self.least_score, self.fallback)
        return ByName(tuple(self.adapters), self.adapter)

    def open(self, settings: AnswerSettings) -> "RoutedAnswers":
        """Load the base, the adapters and the router.

        Raises:
            ModelError: If the weights do not fit, or an adapter is of another base.
        """
        assignment = self.assignment()
        model = load_base(
            self.model, self.checkpoint, device=settings.device, dtype=settings.dtype, dense=self.mode == "merged"
        )
        adapters = {
            folder.name: folder.read(model.family, self.checkpoint) for folder in adapter_folders(self.adapters)
        }
        return RoutedAnswers(self, settings, model, adapters, assignment)


class RoutedAnswers:
    """Answers of a base model with adapters.

    Args:
        backend: Its options.
        settings: How to answer.
        model: The base model.
        adapters: Its adapters.
        assignment: Chooses the adapter of each request.
    """

    def __init__(
        self,
        backend: RoutedModel,
        settings: AnswerSettings,
        model: Any,
        adapters: Mapping[str, Adapter],
        assignment: Assignment,
    ) -> None:
        self.backend, self.settings, self.assignment = backend, settings, assignment
        merged = backend.mode == "merged"
        self._merger = WeightMerger(model, adapters) if merged else None
        self._generator = Generator(
            model,
            instantiate(backend.transform),
            batch_size=backend.batch_size,
            max_new_tokens=settings.max_new_tokens,
            device=settings.device,
            dtype=settings.dtype,
            sampling=settings.sampling,
            window=backend.window,
            extension=None if merged else RoutedAdapters(AdapterBank(model, adapters)),
            share_prefix=backend.share_prefix,
            on_error=settings.on_error,
        )

    @property
    def images_encoded(self) -> int:
        """Number of images that were encoded so far."""
        return self._generator.images_encoded

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Route and answer all requests except those in ``done``.

        Raises:
            DataError: If a request cannot be used and the settings do not skip such requests.
        """
        window = self.backend.batch_size * self.backend.window
        routed = assigned(requests, self.assignment, window, self._refuse, done)
        if self._merger is None:
            yield from self._generator.batches(routed, done)
        else:
            yield from self._merged(self._merger, routed, window, done)

    def _merged(
        self, merger: WeightMerger, requests: Iterable[Request], window: int, done: Container[str]
    ) -> Iterator[list[Generation]]:
        """Answer one window after the other, in each one adapter after the other."""
        asked = (request for request in requests if request.id not in done)
        for _, block in groupby(enumerate(asked), key=lambda numbered: numbered[0] // window):
            groups: dict[str | None, list[Request]] = {}
            for _, request in block:
                groups.setdefault(adapter_of(request), []).append(request)
            for name, group in groups.items():
                with merger.merged(name):
                    yield from self._generator.batches(group)

    def _refuse(self, request: Request, error: DataError) -> None:
        self.settings.refuse(request, error)
