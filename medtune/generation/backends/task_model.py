"""Backend for a task-specific model: it answers with the label text and a score for each class."""

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
    """A trained classifier that replaces the VLM; it answers only classification questions.

    Attributes:
        path: The ``weights`` folder of a ``tsm`` run.
        batch_size: Number of images per forward pass.
        threshold: In a multi-label set, a finding is named if its probability is at least this value.
        heads: Maps the set of the questions to a set with the same classes that the model was trained on, so that an
            external set is answered by the head of another set.
    """

    remote: ClassVar[bool] = False
    scores: ClassVar[bool] = False
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
        """Return the checksums of the weights, and the settings that turn probabilities into labels."""
        heads = {"heads": dict(self.heads)} if self.heads else {}
        return {"files": weights_identity(self.path, beside=("*.json",)), "threshold": self.threshold, **heads}

    def open(self, settings: AnswerSettings) -> "Classified":
        """Load the model.

        Raises:
            ConfigError: If sampling is set; a classifier samples no tokens.
        """
        if settings.sampling is not None:
            raise ConfigError("a classifier draws no tokens; leave sampling out")
        return Classified(load_tsm(self.path).to(settings.device, settings.dtype), self, settings)


class Classified:
    """Answers of a task-specific model.

    Args:
        model: The classifier, on the device of ``settings``.
        backend: Batch size, threshold and heads.
        settings: Device, type, and the handling of questions that cannot be used.
    """

    def __init__(self, model: TaskModel, backend: TaskModelBackend, settings: AnswerSettings) -> None:
        self.model, self.backend, self.settings = model, backend, settings
        self.model.transform.dtype = settings.dtype
        self.images_encoded = 0

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Classify the images of all requests except those in ``done``."""
        waiting = (request for request in requests if request.id not in done)
        while block := list(islice(waiting, self.backend.batch_size)):
            yield self._answer(block)

    @torch.inference_mode()
    def _answer(self, block: list[Request]) -> list[Generation]:
        usable, pixels = [], []
        for request in block:
            try:
                self._check(request)
                pixels.append(self.model.transform.pixels(request.source.open_images(request.sample)[0]))
                usable.append(request)
            except DataError as error:
                self.settings.refuse(request, error)
        if not usable:
            return []
        self.images_encoded += len(usable)
        logits = self.model.logits(torch.stack(pixels).to(self.settings.device)).cpu()
        return [self._labelled(request, row) for request, row in zip(usable, logits, strict=True)]

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
        label_set, set_logits = self.model.sets[name], logits[self.model.slice(name)]
        if label_set.task == "multi_label":
            scores = set_logits.sigmoid()
            named = [
                label for label, score in zip(label_set.classes, scores, strict=True) if score >= self.backend.threshold
            ]
        else:
            scores = set_logits.softmax(dim=0)
            named = [label_set.classes[int(scores.argmax())]]
        return Generation(request.id, label_text(named), 0, True, tuple(scores.tolist()))
