"""Fitting of a TF-IDF router on a data set of questions."""

from collections.abc import Sequence
from pathlib import Path

from medtune.data.folders import claim
from medtune.data.source import SampleSource, place
from medtune.datasets.task_questions.rows import NO_TASK
from medtune.errors import DataError
from medtune.models.task_router.transform import question_of
from medtune.routing.tfidf import CONFIG_NAME, MODEL_TYPE, TfidfRouter

WEIGHTS = "weights"


def fit_tfidf(
    source: SampleSource,
    labels: Sequence[str],
    *,
    inverse_penalty: float = 10.0,
    min_texts: int = 2,
    max_ngram: int = 1,
    balanced: bool = True,
) -> TfidfRouter:
    """Fit a router on questions with ``meta["task"]``; arguments as for :meth:`TfidfRouter.fit`.

    Raises:
        DataError: if a sample has no question, or a task that is neither a label nor ``none``.
    """
    texts: list[str] = []
    tasks: list[str | None] = []
    for index in range(len(source)):
        sample = source[index]
        task = sample.meta.get("task")
        if task != NO_TASK and task not in labels:
            raise DataError(
                f"{place(source, sample)}: meta needs a 'task' that is one of the labels ({', '.join(labels)}), or "
                f"{NO_TASK!r}; correct the row, or add the label"
            )
        texts.append(question_of(sample))
        tasks.append(None if task == NO_TASK else task)
    return TfidfRouter.fit(
        texts,
        tasks,
        labels,
        inverse_penalty=inverse_penalty,
        min_texts=min_texts,
        max_ngram=max_ngram,
        balanced=balanced,
    )


def save_fitted(router: TfidfRouter, output_dir: str | Path) -> Path:
    """Write a router into the ``weights`` folder of a run.

    Raises:
        ConfigError: if the folder holds weights of something else, or cannot be written to.
    """
    folder = Path(output_dir)
    claim(folder, "tfidf_router", [WEIGHTS, "config.yaml"], _is_router)
    return router.save(folder / WEIGHTS)


def _is_router(folder: Path) -> bool:
    """Whether a folder without a record holds a TF-IDF router."""
    file = folder / WEIGHTS / CONFIG_NAME
    return file.is_file() and f'"{MODEL_TYPE}"' in file.read_text(encoding="utf-8", errors="replace")
