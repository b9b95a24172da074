"""A reported number with its unit, direction, n, 95% interval and definition."""

import math
from dataclasses import dataclass
from typing import Any

from medtune.errors import DataError

_FIELDS = ("value", "unit", "higher_is_better", "n", "interval", "definition")


@dataclass(frozen=True)
class Metric:
    """One reported number.

    Args:
        value: The number, or None if it is undefined (no question was asked).
        unit: ``"fraction"`` or ``"count"`` or ``"difference of fractions"``.
        higher_is_better: True, False, or None if neither applies (chance, a count).
        n: Number of answers.
        interval: Lower and upper end of its 95% interval, or None if the number is exact or undefined.
        definition: One sentence that says how it was computed.
        caution: One sentence that a reader needs beside the number, for example that a class has few images; empty for
            none.
    """

    value: float | None
    unit: str
    higher_is_better: bool | None
    n: int
    interval: tuple[float, float] | None
    definition: str
    caution: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the number as plain JSON values; an undefined value (NaN) becomes null."""
        value = None if self.value is None or math.isnan(self.value) else self.value
        interval = None if value is None or self.interval is None else list(self.interval)
        return {
            "value": value,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "n": self.n,
            "interval": interval,
            "definition": self.definition,
            **({"caution": self.caution} if self.caution else {}),
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any], where: str = "results") -> "Metric":
        """Read a number from plain values.

        Raises:
            DataError: A field is missing.
        """
        missing = [name for name in _FIELDS if name not in row]
        if missing:
            raise DataError(f"{where}: a number lacks {missing[0]!r}; run the evaluate recipe again.")
        interval = None if row["interval"] is None else (float(row["interval"][0]), float(row["interval"][1]))
        fields = (row["value"], row["unit"], row["higher_is_better"], row["n"], interval, row["definition"])
        return cls(*fields, row.get("caution", ""))


def is_metric(node: object) -> bool:
    """Return whether a node of a results tree is a number written by :meth:`Metric.to_dict`."""
    return isinstance(node, dict) and all(name in node for name in _FIELDS)
