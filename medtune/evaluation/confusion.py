"""Confusion matrix of right values and answered values, for one attribute at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import confusion_matrix

from medtune.errors import DataError
from medtune.evaluation.metrics import UNREAD


@dataclass(frozen=True)
class Confusion:
    """Counts of answers by right value and by value read.

    Args:
        gold: One value per row: the right values that occur, sorted, or all classes in their order.
        answered: One value per column: all values that occur as right value or as answer, sorted, or all classes.
        counts: Counts, ``[gold][answered]``.
        unread: For each right value, the number of answers that could not be read.
    """

    gold: tuple[str, ...]
    answered: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    unread: tuple[int, ...]

    @property
    def n(self) -> int:
        """Number of all answers."""
        return sum(map(sum, self.counts)) + sum(self.unread)


def confusion(gold: Sequence[str], predicted: Sequence[str | None], classes: Sequence[str] | None = None) -> Confusion:
    """Count the answers to one attribute's questions (scikit-learn).

    Args:
        gold: Right value of each question.
        predicted: Value read from each answer; None if no value could be read.
        classes: All possible values, in the order of the table; None takes the values that occur.

    Raises:
        DataError: There is no question, the number of answers differs, or a value is not one of the classes.
    """
    if not gold or len(gold) != len(predicted):
        raise DataError(f"a confusion table needs one answer to each question, found {len(predicted)} to {len(gold)}.")
    values = set(gold) | {value for value in predicted if value is not None}
    if classes is not None and values - set(classes):
        raise DataError(f"the value {min(values - set(classes))!r} is none of the classes {', '.join(classes)}.")
    rows = sorted(set(gold)) if classes is None else list(classes)
    columns = sorted(values) if classes is None else list(classes)
    answers = [UNREAD if value is None else value for value in predicted]
    matrix = confusion_matrix(list(gold), answers, labels=[*columns, UNREAD])
    matrix_rows = [matrix[columns.index(value)] for value in rows]
    return Confusion(
        tuple(rows),
        tuple(columns),
        tuple(tuple(int(count) for count in row[:-1]) for row in matrix_rows),
        tuple(int(row[-1]) for row in matrix_rows),
    )
