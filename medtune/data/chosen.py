"""The rows of a source whose ``meta`` holds chosen values, such as those of one task."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from medtune.data.passing import PassingSource
from medtune.data.sample import Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError

Where = Mapping[str, str | Sequence[str]]
"""Key of ``meta`` -> its value, or its values."""


class ChosenRows(PassingSource):
    """The samples of a source whose ``meta`` has, for each key of ``where``, one of its values.

    A row that cannot be read is kept, so that the data check names it.

    Args:
        source: the samples.
        where: key of ``meta`` -> a value, or several.

    Raises:
        ConfigError: for an empty choice.
        DataError: if no row is left; the message names the values that occur.
    """

    def __init__(self, source: SampleSource, where: Where) -> None:
        super().__init__(source)
        self._where = {key: [wanted] if isinstance(wanted, str) else list(wanted) for key, wanted in where.items()}
        if not self._where or not all(self._where.values()):
            raise ConfigError("where: name keys of meta and a value for each, as in {task: counting}")
        self._rows = [row for row in range(len(source)) if self._is_chosen(row)]
        if not self._rows:
            raise DataError(f"{source.name}: no row has {self._named()}; {self._occurring()}")

    def __len__(self) -> int:
        """Return the number of chosen samples."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return a chosen sample."""
        return self.source[self._rows[index]]

    def fingerprint(self) -> str:
        """Return a SHA-256 of the source and the choice."""
        choice = json.dumps(sorted(self._where.items()))
        return hashlib.sha256(f"{choice} of {self.source.fingerprint()}".encode()).hexdigest()

    def _is_chosen(self, row: int) -> bool:
        meta = self._meta(row)
        return meta is None or all(str(meta.get(key)) in wanted for key, wanted in self._where.items())

    def _meta(self, row: int) -> dict[str, Any] | None:
        try:
            return self.source[row].meta
        except DataError:
            return None

    def _named(self) -> str:
        return " and ".join(f"{key} {' or '.join(wanted)}" for key, wanted in self._where.items())

    def _occurring(self) -> str:
        metas = [meta for row in range(len(self.source)) if (meta := self._meta(row)) is not None]
        key = next((k for k, wanted in self._where.items() if not any(str(m.get(k)) in wanted for m in metas)), None)
        if key is None:
            return "each value occurs, but not together."
        known = sorted({str(meta[key]) for meta in metas if key in meta})
        more = ", ..." if len(known) > 10 else ""
        return f"{key} is {', '.join(known[:10])}{more}." if known else f"no row has {key} in its meta."


def chosen_rows(source: SampleSource, where: Where | None) -> SampleSource:
    """Return the chosen rows of a source, or the source itself if there is no choice."""
    return source if where is None else ChosenRows(source, where)
