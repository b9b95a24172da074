"""Reads which questions predict asked, from the record that predict writes next to its predictions.

The record of ``NAME.jsonl`` is ``NAME.meta.json`` in the same folder (:mod:`medtune.generation.identity`). Predictions
from other programs have no record. Then the rows of the file show which protocols were asked, and which of them on
swapped images.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import PROTOCOLS
from medtune.evaluation.robustness import chosen_probes

SEEDED = "yes_no"
"""The protocol that makes random choices from the seed; an image swap depends on the seed too."""


@dataclass(frozen=True)
class Asked:
    """The settings of a prediction run; None if a value is unknown.

    Attributes:
        protocols: Names of the protocols.
        swapped: Those that were also asked on swapped images.
        limit: Number of questions from the start; None is all of them.
        seed: Seed of the random choices and of the swap.
        robustness: Probes of the robustness card.
    """

    protocols: list[str] | None = None
    swapped: list[str] | None = None
    limit: int | None = None
    seed: int | None = None
    robustness: list[str] | None = None


def what_was_asked(
    written: Asked,
    predictions: Sequence[tuple[Path, Sequence[Prediction]]],
    *,
    on_missing: Literal["error", "wrong"] = "error",
    on_extra: Literal["error", "ignore"] = "error",
) -> Asked:
    """Decide which queries evaluate expects, from its config and the records.

    Args:
        written: Values of the evaluate config; None takes the value of the record.
        predictions: The files and their rows. The protocols of several files are joined.
        on_missing: ``wrong`` allows the config to ask for more than the record; the missing answers count as wrong.
        on_extra: ``ignore`` allows the config to ask for less than the record.

    Returns:
        The settings; every value except ``limit`` is set.

    Raises:
        ConfigError: If the config contradicts the record (the message has both values), or two records contradict each
            other.
        DataError: If a record cannot be read.
    """
    known = [(path, record) for path, _ in predictions if (record := read_record(path))]
    seed, limit = _agreed("seed", known), _agreed("limit", known)
    pairs = [(read_record(path) or {}, rows) for path, rows in predictions]
    protocols = _joined(_said(record, "protocols") or _of_rows(rows) for record, rows in pairs)
    swapped = _joined(_swapped(record, rows) for record, rows in pairs)
    probes = _joined(_probes(record, rows) for record, rows in pairs)
    recorded = Asked(protocols or list(PROTOCOLS), swapped, limit, seed, list(chosen_probes(probes)))
    if known:
        _refuse_contradictions(written, recorded, known[0][0], on_missing, on_extra)
    given = {key: value for key, value in dataclasses.asdict(written).items() if value is not None}
    return dataclasses.replace(recorded, **{"seed": recorded.seed or 0, **given})


def read_record(predictions: Path) -> dict[str, Any] | None:
    """Return the config of predict from the record of a prediction file; None if there is no record.

    Raises:
        DataError: If the file is not a record in JSON.
    """
    path = predictions.with_suffix(".meta.json")
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        if not isinstance(config, dict):
            raise TypeError("config is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a record that predict wrote ({error!r}); remove it to evaluate without") from None
    return config


def _said(record: dict[str, Any], key: str, otherwise: list[str] | None = None) -> list[str]:
    value = record.get(key)
    return [str(item) for item in value] if isinstance(value, list) else otherwise or []


def _swapped(record: dict[str, Any], rows: Sequence[Prediction]) -> list[str]:
    """Return the protocols on swapped images; those that were swapped for the robustness card are not listed."""
    card = "swapped" in _probes(record, rows)
    return _said(record, "swapped", [] if card else _of_rows(rows, swapped=True))


def _probes(record: dict[str, Any], rows: Sequence[Prediction]) -> list[str]:
    """Return the probes of the record, else those of the rows; with any probe, swapped rows belong to the card."""
    given = record.get("robustness")
    if given is not None:
        return list(chosen_probes(given))
    found = [str(row.meta["probe"]) for row in rows if row.meta.get("probe")]
    swapped = ["swapped"] if found and any(row.meta.get("swapped") for row in rows) else []
    return list(chosen_probes([*swapped, *dict.fromkeys(found)]))


def _of_rows(rows: Sequence[Prediction], swapped: bool = False) -> list[str]:
    """Return the protocols of the rows, in the usual order."""
    tasks = dict.fromkeys(row.task for row in rows if row.meta.get("swapped") or not swapped)
    return [*(name for name in PROTOCOLS if name in tasks), *(name for name in tasks if name not in PROTOCOLS)]


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(item for items in lists for item in items))


def _agreed(key: str, known: Sequence[tuple[Path, dict[str, Any]]]) -> Any:
    values = [(path, record[key]) for path, record in known if key in record]
    for path, value in values[1:]:
        if value != values[0][1]:
            raise ConfigError(
                f"{key}: {values[0][0]} was made with {values[0][1]!r} and {path} with {value!r}; evaluate them apart"
            )
    return values[0][1] if values else None


def _refuse_contradictions(
    written: Asked,
    recorded: Asked,
    path: Path,
    on_missing: Literal["error", "wrong"],
    on_extra: Literal["error", "ignore"],
) -> None:
    """Raise an error for a value that differs from the record, unless ``on_missing`` or ``on_extra`` allows it."""
    for key in ("protocols", "swapped", "robustness"):
        wanted, known = getattr(written, key), getattr(recorded, key)
        if wanted is None:
            continue
        more, less = set(wanted) - set(known), set(known) - set(wanted)
        if (more and on_missing == "error") or (less and on_extra == "error"):
            raise _contradiction(key, wanted, known, path)
    if written.limit is not None and written.limit != recorded.limit:
        larger = recorded.limit is not None and written.limit > recorded.limit
        if (on_missing if larger else on_extra) == "error":
            raise _contradiction("limit", written.limit, recorded.limit, path)
    matters = recorded.swapped or recorded.robustness or SEEDED in (recorded.protocols or [])
    if matters and written.seed is not None and recorded.seed is not None and written.seed != recorded.seed:
        raise _contradiction("seed", written.seed, recorded.seed, path)


def _contradiction(key: str, wanted: Any, known: Any, path: Path) -> ConfigError:
    return ConfigError(
        f"{key}: {wanted!r} is asked for, but {path} was made with {known!r} (its record says so); leave {key} out, or "
        f"set {key}=null, to take what the record says"
    )
