"""Conversations that clinicians chose, shown to the generator as examples (BioMed-VITAL, Sec. 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtune.curation.figures import MODALITIES, Figure, figure_of, plain, read_rows
from medtune.data.randomness import sample_rng
from medtune.data.rows import CONVERSATIONS
from medtune.data.sample import IMAGE_TAG
from medtune.data.writing import file_sha256
from medtune.errors import ConfigError, DataError

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True)
class Demonstration:
    """A figure with a conversation about it.

    Attributes:
        figure: Its image is not shown to the generator, only its texts.
        turns: Questions with their answers.
    """

    figure: Figure
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Demonstrations:
    """The pool that demonstrations are drawn from.

    Attributes:
        pool: All of them.
        per_modality: How many of each modality a request shows; the paper has 2, the official code 1.
        seed: Seed of the draw.
        sha256: Of their file; empty without one.

    Raises:
        ConfigError: A modality has too few of them.
    """

    pool: tuple[Demonstration, ...]
    per_modality: int = 2
    seed: int = 0
    sha256: str = ""

    def __post_init__(self) -> None:
        for modality in MODALITIES if self.per_modality else ():
            count = sum(modality in one.figure.domains for one in self.pool)
            if count < self.per_modality:
                raise ConfigError(
                    f"demonstrations.per_modality is {self.per_modality}, and there are {count} of the modality "
                    f"{modality}; lower it, or add some"
                )

    def drawn(self, figure: Figure) -> list[Demonstration]:
        """Draw demonstrations for one figure, in random order; none is drawn twice, and none is of this figure.

        Rare modalities are drawn first, so that a demonstration of two modalities is not used up by the common one.
        Where the figure itself is one of them, its modality may have one less.

        Args:
            figure: The figure to write about.

        Returns:
            What depends on the pool, the seed and the figure's id alone, not on its place in a file.
        """
        rng = sample_rng(self.seed, 0, 0, stream=f"demonstrations/{figure.id}")
        left = {
            place: one
            for place, one in enumerate(self.pool)
            if one.figure.id != figure.id and one.figure.image != figure.image
        }
        of = {name: [place for place, one in left.items() if name in one.figure.domains] for name in MODALITIES}
        chosen: list[int] = []
        for name in sorted(MODALITIES, key=lambda name: (len(of[name]), name)):
            free = [place for place in of[name] if place not in chosen]
            chosen += rng.sample(free, min(self.per_modality, len(free)))
        rng.shuffle(chosen)
        return [self.pool[place] for place in chosen]


def read_demonstrations(path: str | Path, per_modality: int = 2, seed: int = 0) -> Demonstrations:
    """Read demonstrations in the layout of BioMed-VITAL's file.

    Args:
        path: JSON array or JSON Lines of ``{"pair_id" or "id", "imgs" or "image", "domain", "fig_caption",
            "in_text_mention", "conversations": [{"from", "value"}]}``.
        per_modality: How many of each modality a request shows.
        seed: Seed of the draw.

    Raises:
        ConfigError: A modality has too few of them.
        DataError: The file cannot be read, an id occurs twice, a modality is unknown or none is named, or a row is no
            conversation.
    """
    path = Path(path).expanduser()
    pool: dict[str, Demonstration] = {}
    for where, row in read_rows(path):
        one = demonstration_of(row, where)
        if one.figure.id in pool:
            raise DataError(f"{where}: the id {one.figure.id!r} occurs twice; keep one of the demonstrations.")
        pool[one.figure.id] = one
    return Demonstrations(tuple(pool.values()), per_modality, seed, file_sha256(path))


def demonstration_of(row: Any, where: str) -> Demonstration:
    """Check a decoded row.

    Several answers in a row to one question become one answer of several paragraphs, as two of the published 58 have.

    Raises:
        DataError: Naming ``where`` and the wrong field.
    """
    figure = figure_of(row, where)
    named = f"{where} (id {figure.id!r})"
    if not figure.domains:
        raise DataError(f"{named}: 'domain' names no modality; those known are {', '.join(MODALITIES)}.")
    turns = next((row[name] for name in CONVERSATIONS if name in row), None)
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{named}: 'conversations' must be a list of {{'from', 'value'}}.")
    found: list[tuple[str, str]] = []
    question = ""
    for turn in turns:
        who, text = _turn(turn, named)
        if who in ASKS and not question:
            question = text
        elif who in ANSWERS and question:
            found.append((question, text))
            question = ""
        elif who in ANSWERS and found:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{text}")
        else:
            raise DataError(f"{named}: a question has no answer; questions and answers must alternate.")
    if question:
        raise DataError(f"{named}: the last question has no answer.")
    return Demonstration(figure, tuple(found))


def _turn(turn: Any, where: str) -> tuple[str, str]:
    who = turn.get("from") if isinstance(turn, Mapping) else None
    if who not in (*ASKS, *ANSWERS) or not isinstance(turn.get("value"), str):
        raise DataError(f"{where}: a turn must be {{'from': 'human' or 'gpt', 'value': text}}.")
    text = plain(turn["value"].replace(IMAGE_TAG, ""))
    if not text:
        raise DataError(f"{where}: a turn is empty.")
    return who, text
