"""One answer to a FLARE question, read and judged."""

from dataclasses import dataclass

from medtune.evaluation.protocols.base import Verdict


@dataclass(frozen=True)
class FlareVerdict(Verdict):
    """A verdict with the texts that the published definitions are computed from; these are never written.

    Args:
        said: the model's answer.
        right: the right answer as it stands in the file.
        key: what the published script tells questions apart by.
        reason: why the answer could not be read, one of :data:`medtune.evaluation.flare.reading.REASONS`; empty if it
            could.
    """

    said: str = ""
    right: str = ""
    key: str = ""
    reason: str = ""


def attribute_of(dataset: str, task: str) -> str:
    """Return the attribute of a question: ``iugc/detection``."""
    return f"{dataset}/{task}"


def task_of(attribute: str) -> str:
    """Return the task of an attribute."""
    return attribute.rpartition("/")[2]


def dataset_of(attribute: str) -> str:
    """Return the data set of an attribute."""
    return attribute.rpartition("/")[0]
