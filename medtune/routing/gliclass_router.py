"""The trained GLiClass as a task router."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medtune.data.identity import files_identity
from medtune.errors import ConfigError
from medtune.models.task_router.builders import load_task_router
from medtune.models.task_router.model import TaskRouterModel
from medtune.routing.questions import check_questions

_FILES = ("config.json", "tokenizer.json", "*.safetensors")


class GLiClassRouter:
    """Task probabilities by GLiClass: the softmax of its scores over the labels. Threads may share it.

    Args:
        model: in evaluation mode.
        identity: what its scores depend on, by content.
        batch_size: questions that are scored together; the scores do not depend on it beyond rounding.
    """

    def __init__(self, model: TaskRouterModel, identity: dict[str, Any], batch_size: int = 32) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        self.model, self.batch_size = model, batch_size
        self._identity = identity
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", batch_size: int = 32) -> "GLiClassRouter":
        """Read a trained router.

        Args:
            folder: the ``weights`` folder of a ``task_router`` run.
            device: where it scores.
            batch_size: see the class.

        Raises:
            ModelError: if the folder does not hold such a model, or it is damaged.
            ConfigError: without the package ``gliclass``.
        """
        folder = Path(folder)
        model = load_task_router(folder).to(device)
        files = {file.name: file for pattern in _FILES for file in sorted(folder.glob(pattern))}
        return cls(model, {"router": "GLiClass", "files": files_identity(files)}, batch_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self.model.labels

    def probabilities(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each task, ``[questions, labels]``.

        The end of a question that is longer than ``max_seq_len`` is not read.

        Raises:
            DataError: if a question is empty.
        """
        return self.ordered_probabilities(check_questions(questions), range(len(self.labels)))

    def ordered_probabilities(self, questions: Sequence[str], order: Sequence[int]) -> NDArray[np.float64]:
        """Return the probabilities when the prompt names the labels in another order.

        Args:
            questions: their texts.
            order: the numbers of all labels.

        Returns:
            ``[questions, labels]``, the columns in the order of ``labels``.
        """
        questions = check_questions(questions)
        # questions of like length share a batch, so that little is padded
        ranked = sorted(range(len(questions)), key=lambda number: len(questions[number]))
        found = np.empty((len(questions), len(self.labels)))
        with self._lock, torch.no_grad():
            for start in range(0, len(ranked), self.batch_size):
                rows = ranked[start : start + self.batch_size]
                scores = self.model.probabilities([questions[row] for row in rows], [order] * len(rows))
                found[rows] = scores.cpu().numpy()
        return found

    def identity(self) -> dict[str, Any]:
        """Return kind and SHA-256 of the files."""
        return self._identity
