"""Builders of question-task pairs, split by distinct wording."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from medtune.config import instantiate
from medtune.data.sample import Message, Sample
from medtune.datasets.flare.task_types import TASKS
from medtune.datasets.task_questions.rows import (
    KINDS,
    NO_TASK,
    Pair,
    from_files,
    from_source,
    from_templates,
    no_task_texts,
    read_asset,
    wording,
)
from medtune.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
_FRACTIONS = (0.6, 0.2, 0.2)


class QuestionSource:
    """Questions without images, in memory; ``meta`` holds ``task`` and ``origin``."""

    def __init__(self, pairs: Sequence[Pair], name: str) -> None:
        self.name = name
        self._samples = [
            Sample(pair.id, (), (Message("user", pair.text),), {"task": pair.task, "origin": pair.origin})
            for pair in pairs
        ]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return a question."""
        return self._samples[index]

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Return no images."""
        return []

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Return no sizes."""
        return []

    def fingerprint(self) -> str:
        """Return a SHA-256 of all samples."""
        rows = [sample.to_dict() for sample in self._samples]
        return hashlib.sha256(json.dumps([self.name, rows]).encode()).hexdigest()


def task_questions(
    split: str,
    files: str | Sequence[str] = (),
    sources: Sequence[Mapping[str, Any]] = (),
    templates: Sequence[str] = (),
    fills: int = 3,
    no_task: Sequence[str] = ("letters", "words", "everyday", "medical"),
    made_up: int = 60,
    tasks: Sequence[str] = TASKS,
    keep: Sequence[str] | None = None,
    fractions: Sequence[float] = _FRACTIONS,
    seed: int = 0,
) -> QuestionSource:
    """One split of distinct questions with their tasks, and of texts of no task.

    Each distinct wording occurs once, however often the files repeat it, and is in one split only; all texts of one
    template are in one split too. The wordings of each task are divided on their own, in an order that the seed
    decides. Builders that differ in ``split`` alone give splits without a common wording.

    Args:
        split: ``train``, ``val``, ``test`` or ``all``.
        files: JSON files with ``question`` and ``task`` (or FLARE's ``Question`` and ``TaskType``) in each row; ``*``
            stands for any text.
        sources: builders of data sets whose samples have ``meta["task"]``, for example FLARE's.
        templates: tasks for which the packaged templates are filled in.
        fills: different texts of each template.
        no_task: kinds of texts of no task: ``letters``, ``words``, ``symbols``, ``everyday``, ``medical``.
        made_up: texts of each kind that is made up (the first three).
        tasks: the known tasks; a row of another one is an error.
        keep: tasks whose questions are kept, after the division; absent keeps all.
        fractions: shares of train, val and test; they add up to 1.
        seed: decides the division, what fills templates, and made-up texts.

    Raises:
        ConfigError: for an unknown split, fractions that are no shares, or an unknown task or kind.
        DataError: if a file is missing, a row is not usable, one wording has two tasks, or the split is empty.
    """
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"split: {split!r} is unknown; use {', '.join(SPLITS)} or all")
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ConfigError(f"fractions: three shares that add up to 1 are needed, not {list(fractions)}")
    if unknown := sorted({*templates, *(keep or ())} - {*tasks, NO_TASK}):
        raise ConfigError(f"{unknown[0]!r} is none of the tasks {', '.join(tasks)}")
    pairs = list(from_files([files] if isinstance(files, str) else list(files), tasks))
    for component in sources:
        pairs += from_source(instantiate(component), tasks)
    pairs += from_templates(templates, fills, seed)
    pairs += no_task_texts(no_task, made_up, seed)
    distinct = _distinct(pairs)
    kept = [pair for pair in _divided(distinct, fractions, seed)[split] if keep is None or pair.task in keep]
    if not kept:
        raise DataError(f"the split {split} has no question; give files, sources or templates")
    return QuestionSource(kept, f"task_questions_{split}")


def unseen_task_questions(kinds: Sequence[str] | None = None) -> QuestionSource:
    """Questions on images whose tasks are none of FLARE's (segmentation, retrieval, ...), for the evaluation.

    Args:
        kinds: some of the packaged tasks; absent takes all.

    Raises:
        ConfigError: for an unknown task.
    """
    content: dict[str, list[str]] = read_asset("templates.json")["unseen"]
    if unknown := sorted(set(kinds or ()) - content.keys()):
        raise ConfigError(f"kinds: {unknown[0]!r} is unknown; known are {', '.join(content)}")
    pairs = [
        Pair(f"unseen/{task}/{number}", text, task, text, "unseen")
        for task, texts in content.items()
        if kinds is None or task in kinds
        for number, text in enumerate(texts)
    ]
    return QuestionSource(pairs, "unseen_tasks")


def _distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """The first row of each wording.

    Raises:
        DataError: if a wording has two tasks.
    """
    first: dict[str, Pair] = {}
    for pair in pairs:
        known = first.setdefault(wording(pair.text), pair)
        if known.task != pair.task:
            raise DataError(
                f"{pair.id}: the question has the task {pair.task}, and the same wording has {known.task} in "
                f"{known.id}; a router cannot tell them apart, so correct one"
            )
    return list(first.values())


def _divided(pairs: Sequence[Pair], fractions: Sequence[float], seed: int) -> dict[str, list[Pair]]:
    """Divide the groups of each task, and of each kind of no task, by the fractions."""
    classes: dict[tuple[str, str], dict[str, None]] = {}
    for pair in pairs:
        kind = pair.origin if pair.task == NO_TASK else ""
        classes.setdefault((pair.task, kind), {})[pair.group] = None
    split_of: dict[str, str] = {}
    for groups in classes.values():
        ordered = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}|{group}".encode()).digest())
        ends = [round(len(ordered) * sum(fractions[: number + 1])) for number in range(3)]
        for at, group in enumerate(ordered):
            split_of[group] = SPLITS[next(number for number, end in enumerate(ends) if at < end)]
    divided: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in pairs:
        divided[split_of[pair.group]].append(pair)
    return {**divided, "all": list(pairs)}


__all__ = ["KINDS", "QuestionSource", "task_questions", "unseen_task_questions"]
