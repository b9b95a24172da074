"""A judge of known truth: it prefers the answer that names more of an image's attributes.

For tests and experiments in miniature. Its noise is known too: a given share of its choices is turned round.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient
from medtune.data.randomness import sample_rng
from medtune.data.source import JsonlSource
from medtune.data.writing import file_sha256
from medtune.datasets.conversations import VALUE_ONLY
from medtune.errors import ConfigError, DataError
from medtune.judges.base import Judgement, OpenImages
from medtune.judges.candidates import Candidate


@dataclass(frozen=True)
class AttributeJudge:
    """Scores an answer by the number of right attributes that it names.

    The attributes are those under ``meta`` of the candidate, a list of phrases or a mapping of names to phrases;
    without them, those of the candidate's image in the file ``truth``. A phrase counts if it occurs in the answer as
    whole words, in small or capital letters.

    Attributes:
        truth: JSON Lines file of image-report pairs. The phrases of an image are the parts of its reports.
        separator: Separates the phrases of a report.
        key: Name under ``meta`` of the candidate's own attributes.
        noise: Share of the choices that is turned round, drawn for each candidate from the seed and its id.
        seed: Seed of the noise.
        optional: Findings that a report names only where they are present, such as "granularity". The right phrase is
            "yes granularity" where the report names it, and "no granularity" where it does not, so that a right "no"
            counts as much as a right "yes".
        asked: Names of attributes. If the question names some of them, only the right phrases about these count, so
            that a right answer to another question is not preferred to a wrong one to this question. A phrase is about
            the attribute that it ends in ("big cell size"); one that ends in none of the names is about the label.

    Raises:
        ValueError: ``noise`` is not between 0 and 1.
    """

    remote: ClassVar[bool] = False
    looks: ClassVar[bool] = False
    truth: str | None = None
    separator: str = ", "
    key: str = "attributes"
    noise: float = 0.0
    seed: int = 0
    optional: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must be between 0 and 1, got {self.noise}")
        if not self.separator:
            raise ValueError("separator must not be empty")

    @cached_property
    def _by_image(self) -> Mapping[str, tuple[str, ...]]:
        if self.truth is None:
            return {}
        found: dict[str, dict[str, None]] = {}
        source = JsonlSource(self.truth, None)
        for index in range(len(source)):
            sample = source[index]
            phrases = dict.fromkeys(_phrases(sample.meta.get(self.key), source.where(sample)))
            for message in sample.messages if not phrases else ():
                if message.role == "assistant":
                    phrases |= dict.fromkeys(part.strip() for part in message.content.split(self.separator))
            for image in sample.images:
                found.setdefault(image, {}).update(phrases)
        return {image: tuple(phrase for phrase in phrases if phrase) for image, phrases in found.items()}

    def identity(self) -> dict[str, Any]:
        """Return where the truth is from, and the noise."""
        truth = None if self.truth is None else file_sha256(JsonlSource(self.truth, None).path)
        how = {"separator": self.separator, "key": self.key, "noise": self.noise, "seed": self.seed}
        optional = {"optional": self.optional} if self.optional else {}
        asked = {"asked": self.asked} if self.asked else {}
        return {"name": "attributes", "truth": truth, **how, **optional, **asked}

    def versions(self) -> Sequence[str]:
        """Return nothing: it has no prompt."""
        return []

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return nothing: it asks no server."""
        return []

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Count the right attributes in each answer; exchange the counts if the noise says so."""
        phrases = self._about(candidate.question, self.attributes(candidate))
        first, second = (float(count_named(answer, phrases)) for answer in candidate.answers)
        if sample_rng(self.seed, 0, 0, f"judge/{candidate.id}").random() < self.noise:
            first, second = second, first
        return Judgement(candidate.id, (first, second))

    def attributes(self, candidate: Candidate) -> tuple[str, ...]:
        """Return the right phrases of a candidate.

        Raises:
            DataError: None are known.
            ConfigError: The file ``truth`` is needed and not set.
        """
        where = f"candidate {candidate.id!r}"
        own = tuple(_phrases(candidate.meta.get(self.key), where))
        if own:
            return self._with_optional(own)
        if self.truth is None:
            raise ConfigError(f"{where} has no meta.{self.key}; add it, or name a file of reports as judge.truth")
        found = dict.fromkeys(phrase for image in candidate.images for phrase in self._by_image.get(image, ()))
        if not found:
            raise DataError(f"{where}: {self.truth} has no report of its images; add one, or remove the candidate.")
        return self._with_optional(tuple(found))

    def _about(self, question: str, phrases: tuple[str, ...]) -> tuple[str, ...]:
        """Return the phrases about the attributes that the question names; all if it names none."""
        named = [name for name in self.asked if _words(name) in _words(question)]
        about = {phrase: _subject(phrase, self.asked) for phrase in phrases}
        return tuple(phrase for phrase in phrases if not named or about[phrase] in named)

    def _with_optional(self, phrases: tuple[str, ...]) -> tuple[str, ...]:
        """Replace each optional finding by whether it is present."""
        said = tuple(f"{'yes' if name in phrases else 'no'} {name}" for name in self.optional)
        return (*(phrase for phrase in phrases if phrase not in self.optional), *said)


def count_named(answer: str, phrases: Sequence[str]) -> int:
    """Return how many of the phrases an answer names, as whole words and regardless of case and spaces."""
    text = _words(answer)
    return sum(_words(phrase) in text for phrase in dict.fromkeys(phrases))


def _subject(phrase: str, names: Sequence[str]) -> str:
    """Return the name of the attribute that a phrase ends in; a value alone is that of the label."""
    return next((name for name in names if _words(phrase).endswith(_words(name))), *VALUE_ONLY)


def _words(text: str) -> str:
    """Return the words of a text, each between spaces."""
    return " " + " ".join(re.findall(r"\w+", text.casefold())) + " "


def _phrases(value: object, where: str) -> Iterator[str]:
    if value is None:
        return
    items = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) and item.strip() for item in items):
        raise DataError(f"{where}: the attributes must be a list of phrases, or names with phrases.")
    yield from items
