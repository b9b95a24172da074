"""Which value is taken for which: right values against answered ones, for one attribute at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import confusion_matrix

from medtune.errors import DataError
from medtune.evaluation.metrics import UNREAD


@dataclass(frozen=True)
class Confusion:
    """Counts of answers by right value and by value read.

    Args:
        gold: The right values that occur, sorted, or all classes in their order; one row each.
        answered: The values that occur, as right ones or as answers, sorted, or all classes; one column each.
        counts: ``[gold][answered]``.
        unread: For each right value, how many answers could not be read.
    """

    gold: tuple[str, ...]
    answered: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    unread: tuple[int, ...]

    @property
    def n(self) -> int:
        """All answers counted."""
        return sum(map(sum, self.counts)) + sum(self.unread)


def confusion(gold: Sequence[str], predicted: Sequence[str | None], classes: Sequence[str] | None = None) -> Confusion:
    """Count the answers to one attribute's questions (scikit-learn).

    Args:
        gold: Right value of each question.
        predicted: Value read from each answer, None where none could be read.
        classes: All values there are, in the order of the table; None takes those that occur.

    Raises:
        DataError: No question, not one answer to each, or a value that is none of the classes.
    """
    if not gold or len(gold) != len(predicted):
        raise DataError(f"a confusion table needs one answer to each question, found {len(predicted)} to {len(gold)}.")
    found = set(gold) | {value for value in predicted if value is not None}
    if classes is not None and found - set(classes):
        raise DataError(f"the value {min(found - set(classes))!r} is none of the classes {', '.join(classes)}.")
    rows = sorted(set(gold)) if classes is None else list(classes)
    columns = sorted(found) if classes is None else list(classes)
    answers = [UNREAD if value is None else value for value in predicted]
    matrix = confusion_matrix(list(gold), answers, labels=[*columns, UNREAD])
    held = [matrix[columns.index(value)] for value in rows]
    return Confusion(
        tuple(rows),
        tuple(columns),
        tuple(tuple(int(count) for count in row[:-1]) for row in held),
        tuple(int(row[-1]) for row in held),
    )
