"""Reads a question file."""

from pathlib import Path

from medtune.data.chosen import Where, chosen_rows
from medtune.data.sample import Sample
from medtune.data.source import JsonlSource


def read_questions(path: str | Path, where: Where | None = None) -> list[Sample]:
    """Read a question file (JSON lines of samples); duplicate ids and invalid lines are DataErrors with the line.

    Args:
        path: the file.
        where: values of ``meta`` by which rows are chosen; see :func:`medtune.datasets.jsonl_dataset`.
    """
    source = chosen_rows(JsonlSource(path, image_root=None), where)
    return [source[index] for index in range(len(source))]
