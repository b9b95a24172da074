"""Reads a question file."""

from pathlib import Path

from medtune.data.sample import Sample
from medtune.data.source import JsonlSource


def read_questions(path: str | Path) -> list[Sample]:
    """Read a question file (JSON lines of samples); duplicate ids and invalid lines are DataErrors with the line."""
    source = JsonlSource(path, image_root=None)
    return [source[index] for index in range(len(source))]
