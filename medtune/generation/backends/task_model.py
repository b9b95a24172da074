"""A task-specific model as one more model that answers: its label text, and a score for each class."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch

from medtune.data.labels import label_text
from medtune.errors import ConfigError, DataError, ModelError
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.identity import weights_identity
from medtune.generation.requests import Generation, Request
from medtune.models.classifier.tsm import TaskModel, load_tsm


@dataclass(frozen=True)
class TaskModelBackend:
    """A trained classifier in the place of a VLM; it answers classification questions only.

    Attributes:
        path: The ``weights`` folder of a ``tsm`` run.
        batch_size: Pictures per forward pass.
        threshold: Probability from which a finding of a multi-label set is named.
        heads: Set of the questions to the set, of the same classes, that the model was trained on: an external set is
            answered by the head of another one.
    """

    remote: ClassVar[bool] = False
    path: str
    batch_size: int = 64
    threshold: float = 0.5
    heads: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (Path(self.path) / "config.json").is_file():
            raise ConfigError(f"backend.path {self.path} holds no config.json; name the weights folder of a tsm run")
        if self.batch_size < 1 or not 0 < self.threshold < 1:
            raise ConfigError("backend.batch_size must be at least 1, backend.threshold between 0 and 1")

    def identity(self) -> dict[str, Any]:
        """The weights, and what makes labels of probabilities."""
        heads = {"heads": dict(self.heads)} if self.heads else {}
        return {"files": weights_identity(self.path, beside=("*.json",)), "threshold": self.threshold, **heads}

    def open(self, settings: AnswerSettings) -> "Classified":
        """Load the model.

        Raises:
            ConfigError: Sampling is set: a classifier draws no tokens.
        """
        if settings.sampling is not None:
            raise ConfigError("a classifier draws no tokens; leave sampling out")
        return Classified(load_tsm(self.path).to(settings.device, settings.dtype), self, settings)


class Classified:
    """Answers of a task-specific model.

    Args:
        model: On the device of ``settings``.
        backend: Batch size and threshold.
        settings: Device, type, and what happens to questions that cannot be used.
    """

    def __init__(self, model: TaskModel, backend: TaskModelBackend, settings: AnswerSettings) -> None:
        self.model, self.backend, self.settings = model, backend, settings
        self.model.transform.dtype = settings.dtype
        self.images_encoded = 0

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Classify the pictures of all requests but those in ``done``."""
        waiting = (request for request in requests if request.id not in done)
        while block := list(islice(waiting, self.backend.batch_size)):
            yield self._answer(block)

    @torch.inference_mode()
    def _answer(self, block: list[Request]) -> list[Generation]:
        kept, pixels = [], []
        for request in block:
            try:
                self._check(request)
                pixels.append(self.model.transform.pixels(request.source.open_images(request.sample)[0]))
                kept.append(request)
            except DataError as error:
                self.settings.refuse(request, error)
        if not kept:
            return []
        self.images_encoded += len(kept)
        logits = self.model.logits(torch.stack(pixels).to(self.settings.device)).cpu()
        return [self._labelled(request, row) for request, row in zip(kept, logits, strict=True)]

    def _check(self, request: Request) -> None:
        if request.sampling is not None:
            raise ConfigError(f"request {request.id!r}: a classifier draws no tokens; leave its sampling out")
        name, classes = request.sample.meta.get("set"), request.sample.meta.get("classes")
        if name is None or classes is None or len(request.sample.images) != 1:
            raise DataError(f"request {request.id!r}: a classifier answers classification questions on one image alone")
        try:
            self.model.check(self.backend.heads.get(name, name), tuple(classes))
        except ModelError as error:
            raise DataError(f"request {request.id!r}: {error}") from error

    def _labelled(self, request: Request, logits: torch.Tensor) -> Generation:
        name = self.backend.heads.get(request.sample.meta["set"], request.sample.meta["set"])
        known, mine = self.model.sets[name], logits[self.model.slice(name)]
        if known.task == "multi_label":
            scores = mine.sigmoid()
            named = [
                label for label, score in zip(known.classes, scores, strict=True) if score >= self.backend.threshold
            ]
        else:
            scores = mine.softmax(dim=0)
            named = [known.classes[int(scores.argmax())]]
        return Generation(request.id, label_text(named), 0, True, tuple(scores.tolist()))
