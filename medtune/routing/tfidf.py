"""A task router of word statistics: TF-IDF features and a multinomial logistic regression. It needs no extra package.

It is the baseline of the trained classifier (ME-VLIP, section 2.3), fits in a second, and answers in microseconds.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from medtune.data.folders import write_folder
from medtune.data.opening import refuse_special
from medtune.data.writing import json_bytes, sha256
from medtune.errors import ConfigError, DataError, ModelError
from medtune.routing.questions import check_labels, check_questions

MODEL_TYPE = "medtune_tfidf_router"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
TOKEN_PATTERN = r"\w+|[^\w\s]"
"""Words of any length and punctuation: "A" and ":" of an option list tell a classification question."""


class TfidfRouter:
    """Task probabilities by logistic regression on TF-IDF features.

    A text is lower-cased and cut into words and punctuation marks. With n texts, of which df hold the token, its weight
    is ``tf * (ln((1 + n) / (1 + df)) + 1)``, and a text's weights are scaled to length 1. The probabilities are the
    softmax of ``W x + b``.

    Args:
        labels: names of the tasks, at least two.
        vocabulary: the tokens, by column.
        idf: ``[tokens]``.
        coefficients: W, ``[labels, tokens]``.
        intercept: b, ``[labels]``.
        max_ngram: a feature has at most this number of neighbouring tokens.
    """

    def __init__(
        self,
        labels: Sequence[str],
        vocabulary: Sequence[str],
        idf: NDArray[np.float64],
        coefficients: NDArray[np.float64],
        intercept: NDArray[np.float64],
        max_ngram: int = 1,
    ) -> None:
        self._labels = check_labels(labels)
        self.vocabulary, self.idf, self.max_ngram = tuple(vocabulary), np.asarray(idf), max_ngram
        # scikit-learn's are in column order, which safetensors would write as if they were in row order
        self.coefficients, self.intercept = np.ascontiguousarray(coefficients), np.asarray(intercept)
        self._vectorizer = _vectorizer(max_ngram, vocabulary=list(vocabulary))
        self._vectorizer.idf_ = self.idf

    @classmethod
    def fit(
        cls,
        questions: Sequence[str],
        tasks: Sequence[str | None],
        labels: Sequence[str],
        *,
        inverse_penalty: float = 10.0,
        min_texts: int = 2,
        max_ngram: int = 1,
        balanced: bool = True,
    ) -> "TfidfRouter":
        """Fit a router, to the optimum.

        A text of no task counts as 1/K of a text of each of the K tasks, so that its probabilities become uniform. Its
        own words are often in no other text and then no features (``min_texts``); what remains moves the intercept
        towards equal probabilities, which is what a text of unknown words gets.

        Args:
            questions: the texts.
            tasks: the task of each; None for a text of no task.
            labels: names of the tasks, in the order of the columns of :meth:`probabilities`.
            inverse_penalty: C of scikit-learn: the objective is ``C * sum of losses + |W|^2 / 2``.
            min_texts: a feature is in at least this number of texts.
            max_ngram: a feature has at most this number of neighbouring tokens.
            balanced: give each task the same total weight.

        Raises:
            ConfigError: if a task has no label, or a label has no question.
            DataError: if a question is empty, or no token is in ``min_texts`` texts.
        """
        labels, questions = check_labels(labels), check_questions(questions)
        unknown = sorted({task for task in tasks if task is not None} - set(labels))
        if unknown:
            raise ConfigError(f"there are questions of the task {unknown[0]!r}, and the labels are {', '.join(labels)}")
        if absent := [label for label in labels if label not in tasks]:
            raise ConfigError(f"no question of the task {absent[0]!r} to fit the router on; leave the label out")
        vectorizer = _vectorizer(max_ngram, min_df=min_texts)
        try:
            features = vectorizer.fit_transform(questions)
        except ValueError as error:
            raise DataError(
                f"the {len(questions)} questions have no token in common ({error}); lower min_texts or give more"
            ) from error
        rows = [row for row, task in enumerate(tasks) for _ in ([task] if task is not None else labels)]
        targets = [name for task in tasks for name in ([task] if task is not None else labels)]
        shares = np.array([1.0 if tasks[row] is not None else 1.0 / len(labels) for row in rows])
        if balanced:
            shares *= _balance([task for task in tasks if task is not None], tasks, rows)
        model = LogisticRegression(C=inverse_penalty, max_iter=5000, tol=1e-8)
        model.fit(features[rows], [labels.index(name) for name in targets], sample_weight=shares)
        coefficients, intercept = model.coef_, model.intercept_
        if len(labels) == 2:  # scikit-learn then has the second logit alone, the first is 0
            coefficients = np.vstack([np.zeros_like(coefficients), coefficients])
            intercept = np.concatenate([[0.0], intercept])
        names = vectorizer.get_feature_names_out().tolist()
        return cls(labels, names, vectorizer.idf_, coefficients, intercept, max_ngram)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return self._labels

    def probabilities(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """Return the probability of each task, ``[questions, labels]``; a question's row does not depend on others.

        Raises:
            DataError: if a question is empty.
        """
        if not (questions := check_questions(questions)):
            return np.empty((0, len(self.labels)))
        features = self._vectorizer.transform(questions)
        return softmax(features @ self.coefficients.T + self.intercept, axis=1)

    def identity(self) -> dict[str, Any]:
        """Return kind, labels and a SHA-256 of the weights."""
        return {
            "router": MODEL_TYPE,
            "labels": list(self.labels),
            "weights": sha256(self._weights()),
            **self._settings(),
        }

    def _settings(self) -> dict[str, Any]:
        vocabulary = sha256(json.dumps(self.vocabulary).encode())
        return {"max_ngram": self.max_ngram, "vocabulary_sha256": vocabulary}

    def _weights(self) -> bytes:
        return save({"idf": self.idf, "coefficients": self.coefficients, "intercept": self.intercept})

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``; the folder is replaced as a whole.

        Raises:
            ConfigError: if the disk refuses.
        """
        folder = Path(folder)
        content = {
            "model_type": MODEL_TYPE,
            "labels": list(self.labels),
            "max_ngram": self.max_ngram,
            "vocabulary": list(self.vocabulary),
        }

        def write(path: Path) -> None:
            (path / CONFIG_NAME).write_bytes(json_bytes(content))
            (path / WEIGHTS_NAME).write_bytes(self._weights())

        try:
            write_folder(folder.with_name(f".{folder.name}.writing"), folder, write)
        except OSError as error:
            raise ConfigError(f"cannot write the router to {folder}: {error.strerror or error}") from error
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "TfidfRouter":
        """Read a router that :meth:`save` wrote.

        Raises:
            ModelError: if the folder does not hold one, or it is damaged.
        """
        folder = Path(folder)
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            refuse_special(folder / name, ModelError)
        try:
            config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
            weights = load_file(folder / WEIGHTS_NAME)
            arrays = [weights[name] for name in ("idf", "coefficients", "intercept")]
            labels, vocabulary = tuple(config["labels"]), tuple(config["vocabulary"])
            shapes = [(len(vocabulary),), (len(labels), len(vocabulary)), (len(labels),)]
            if [array.shape for array in arrays] != shapes or not all(np.isfinite(array).all() for array in arrays):
                raise ValueError("its weights do not fit its labels and tokens")
            return cls(labels, vocabulary, arrays[0], arrays[1], arrays[2], max_ngram=config["max_ngram"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, ConfigError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else error
            raise ModelError(f"{folder} holds no TF-IDF router ({what}); fit it again") from error


def _vectorizer(max_ngram: int, **arguments: Any) -> TfidfVectorizer:
    return TfidfVectorizer(token_pattern=TOKEN_PATTERN, ngram_range=(1, max_ngram), **arguments)


def _balance(with_task: list[str], tasks: Sequence[str | None], rows: Sequence[int]) -> NDArray[np.float64]:
    """Weight of each row: texts with a task / (tasks x texts of this task); 1 for texts of no task."""
    counts = {task: with_task.count(task) for task in set(with_task)}
    mean = len(with_task) / len(counts)
    return np.array([mean / counts[task] if (task := tasks[row]) is not None else 1.0 for row in rows])
