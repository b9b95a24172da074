"""Pairs of a preferred and a rejected sample, from people's choices and a model's ratings (BioMed-VITAL, Sec. 3.2)."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.curation.records import Record, decoded, read_records, records_of
from medtune.data.images import image_root_of
from medtune.data.json_text import decode_json
from medtune.data.sample import Message, Sample
from medtune.data.source import RecordSource, SampleSource
from medtune.errors import DataError
from medtune.judges.annotations import read_annotations
from medtune.judges.candidates import Candidate
from medtune.objectives.selection import HUMAN, MODEL, PREFERRED, REJECTED, SOURCE

RATING, REASON = "rating", "reason"
_TRIES = 50


@dataclass(frozen=True)
class RecordPair:
    """Two samples of which one is preferred.

    Attributes:
        id: unique in its set.
        preferred: the better sample.
        rejected: the other one.
        source: ``human`` or ``model``.
        judge: what a judge model gave the two, preferred first; None without one.
    """

    id: str
    preferred: Record
    rejected: Record
    source: str
    judge: tuple[float, float] | None = None


@dataclass
class Dealt:
    """Pairs of one split.

    Attributes:
        pairs: the pairs.
        counts: what was made, and what was left out, by reason.
    """

    pairs: list[RecordPair] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def held_out(image: str, share: float, seed: int) -> bool:
    """Whether an image belongs to the validation pairs; depends on its path and the seed alone."""
    digest = hashlib.sha256(f"{seed}|{image}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") < share * 256**7


def human_pairs(
    path: str, judged: Mapping[str, tuple[float, float]] | None = None
) -> tuple[list[RecordPair], Counter[str]]:
    """Return a pair for each question of which most annotators chose the same answer.

    Args:
        path: annotations of :func:`medtune.judges.annotations.read_annotations`, or ``pairs.jsonl`` of a human judge.
        judged: a judge's scores of the two answers by the candidate's id.

    Returns:
        The pairs, and counts: ``chosen``, ``equal`` (both, neither, or no majority), ``identical_answers``.

    Raises:
        DataError: The file cannot be read.
    """
    by_candidate: dict[str, list[tuple[Candidate, str, str]]] = {}
    for row in read_annotations(path):
        by_candidate.setdefault(row.candidate.id, []).append((row.candidate, row.preference, row.where))
    counts: Counter[str] = Counter()
    found = []
    for name, rows in by_candidate.items():
        candidate, _, where = rows[0]
        votes = Counter(preference for _, preference, _ in rows)
        if candidate.unusable:
            counts[candidate.unusable] += 1
            continue
        if 2 * max(votes["first"], votes["second"]) <= len(rows):
            counts["equal"] += 1
            continue
        chosen = int(votes["second"] > votes["first"])
        answers = records_of({**candidate.to_dict(), "answers": list(candidate.answers)}, where)
        scores = (judged or {}).get(name)
        judge = None if scores is None else (scores[chosen], scores[1 - chosen])
        found.append(RecordPair(name, answers[chosen], answers[1 - chosen], HUMAN, judge))
        counts["chosen"] += 1
    return found, counts


def read_ratings(path: str | Path) -> dict[str, float]:
    """Read a model's ratings by the record's id; rows without a rating are left out.

    Args:
        path: JSON Lines ``{"id", "rating"}`` of the recipe ``rate``.

    Raises:
        DataError: A line is no rating, or an id has two.
    """
    found: dict[str, float] = {}
    with Path(path).expanduser().open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = decoded(line, f"{path}, line {number}")
            value = row.get(RATING, "") if isinstance(row, Mapping) else ""
            if value is None:
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not isinstance(row.get("id"), str):
                raise DataError(f"{path}, line {number}: a row needs 'id' and a number 'rating'; run rate again.")
            if row["id"] in found:
                raise DataError(f"{path}, line {number}: the id {row['id']!r} has been rated before; keep one row.")
            found[row["id"]] = float(value)
    return found


def read_judged(path: str | Path) -> dict[str, tuple[float, float]]:
    """Read a judge's scores of two answers by the candidate's id.

    Args:
        path: ``judgements.jsonl`` of the recipe ``judge``, or ratings of candidates by the recipe ``rate``.

    Raises:
        DataError: A line is neither.
    """
    found: dict[str, tuple[float, float]] = {}
    single: dict[str, dict[str, float]] = {}
    with Path(path).expanduser().open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = decoded(line, f"{path}, line {number}")
            if not isinstance(row, Mapping) or not isinstance(row.get("id"), str):
                raise DataError(f"{path}, line {number}: this is no judgement and no rating.")
            if "scores" in row:
                scores = row["scores"]
                if isinstance(scores, list) and len(scores) == 2:
                    found[row["id"]] = (float(scores[0]), float(scores[1]))
                continue
            name, _, answer = row["id"].rpartition("/")
            if row.get(RATING) is not None and answer in ("answer_1", "answer_2"):
                single.setdefault(name, {})[answer] = float(row[RATING])
    for name, scores in single.items():
        if len(scores) == 2:
            found[name] = (scores["answer_1"], scores["answer_2"])
    return found


def model_pairs(
    records: Sequence[Record], ratings: Mapping[str, float], count: int, least_gap: float, seed: int
) -> tuple[list[RecordPair], Counter[str]]:
    """Draw pairs of samples that a model rates differently; equal ratings give none.

    Args:
        records: the samples.
        ratings: by the record's id.
        count: pairs to draw; no two have the same samples.
        least_gap: ratings must differ by more than this.
        seed: of the draw.

    Returns:
        The pairs, and counts: ``rated``, ``drawn``, ``equal`` (draws whose ratings were equal or too close).

    Raises:
        DataError: All ratings are equal, or there are fewer pairs than asked for.
    """
    rated = [record for record in records if record.id in ratings]
    counts = Counter({"rated": len(rated), "equal": 0})
    if not count or not ratings:
        return [], counts
    values = [ratings[record.id] for record in rated]
    if not values or max(values) - min(values) <= least_gap:
        raise DataError(
            f"no two of the {len(rated)} rated samples have ratings that differ by more than {least_gap:g}, and equal "
            "ratings are no preference; rate more samples, or set model_pairs=0"
        )
    most = len(rated) * (len(rated) - 1) // 2
    if count > most:
        raise DataError(
            f"model_pairs is {count}, and {len(rated)} rated samples make {most} pairs at most; lower it, or rate more "
            "samples"
        )
    rng = random.Random(seed)
    seen: set[tuple[int, int]] = set()
    found: list[RecordPair] = []
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        one, other = rng.randrange(len(rated)), rng.randrange(len(rated))
        if one == other or (min(one, other), max(one, other)) in seen:
            continue
        gap = values[one] - values[other]
        if abs(gap) <= least_gap:
            counts["equal"] += 1
            continue
        seen.add((min(one, other), max(one, other)))
        better, worse = (one, other) if gap > 0 else (other, one)
        found.append(RecordPair(f"model:{len(found)}", rated[better], rated[worse], MODEL))
    if len(found) < count:
        raise DataError(
            f"only {len(found)} different pairs of {len(rated)} rated samples were found and model_pairs is {count}; "
            "lower it, or rate more samples"
        )
    counts["drawn"] = len(found)
    return found, counts


def pair_lines(pairs: Iterable[RecordPair], numbers: Mapping[str, int], context: bool, limit: int) -> Iterable[bytes]:
    """Yield the rows of a file of pairs.

    Args:
        pairs: the pairs.
        numbers: number of each record's features by its id.
        context: whether texts have caption and mentions.
        limit: most characters of a text.
    """

    def side(record: Record) -> dict[str, Any]:
        return {
            "id": record.id,
            "number": numbers[record.id],
            "image": record.image,
            "question": record.question,
            "answer": record.answer,
            "text": record.text(context, limit),
        }

    for pair in pairs:
        row: dict[str, Any] = {
            "id": pair.id,
            SOURCE: pair.source,
            PREFERRED: side(pair.preferred),
            REJECTED: side(pair.rejected),
        }
        if pair.judge is not None:
            row["judge"] = list(pair.judge)
        yield (json.dumps(row, ensure_ascii=False) + "\n").encode()


class PairSource(RecordSource):
    """Pairs of the recipe ``selector_pairs``, read a row at a time."""

    def spans(self) -> Any:
        """Yield the place of each row; see :class:`medtune.data.source.RecordSource`."""
        position = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield position, position + len(raw), number, self._id_of(raw)
                position += len(raw)

    def _id_of(self, raw: bytes) -> object:
        try:
            row = decode_json(raw, "")
        except DataError:
            return None
        return row.get("id") if isinstance(row, dict) else None

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row to a sample: the preferred turn, the images of both sides, and the sides under ``meta``."""
        row = decode_json(raw, where)
        if not isinstance(row, Mapping) or not isinstance(row.get("id"), str):
            raise DataError(f"{where}: this is no pair; run selector_pairs again.")
        sides: list[Any] = [row.get(name) for name in (PREFERRED, REJECTED)]
        if not all(isinstance(side, Mapping) and isinstance(side.get("answer"), str) for side in sides):
            raise DataError(f"{where}: a pair needs {PREFERRED!r} and {REJECTED!r}; run selector_pairs again.")
        preferred, rejected = sides
        images = tuple(dict.fromkeys(side["image"] for side in (preferred, rejected) if side.get("image")))
        turns = (Message("user", preferred["question"]), Message("assistant", preferred["answer"]))
        meta = {SOURCE: row.get(SOURCE), PREFERRED: preferred, REJECTED: rejected, "judge": row.get("judge")}
        return Sample(row["id"], images, turns, meta)


def pair_dataset(source: str, image_root: str | None = None) -> SampleSource:
    """Pairs of the recipe ``selector_pairs``.

    Args:
        source: its ``train.jsonl`` or ``val.jsonl``.
        image_root: folder or ``.tar`` of the images; needed if the selection model is trained as a whole.

    Raises:
        DataError: if a file is absent or empty.
    """
    return PairSource(source, image_root_of(image_root, None))


__all__ = [
    "Dealt",
    "PairSource",
    "RecordPair",
    "held_out",
    "human_pairs",
    "model_pairs",
    "pair_dataset",
    "pair_lines",
    "read_judged",
    "read_ratings",
    "read_records",
]
