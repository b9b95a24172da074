"""A judge of known truth: it prefers the answer that names more of an image's attributes.

For tests and experiments in miniature. Its noise is known too: a given share of its choices is turned round.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient
from medtune.data.randomness import sample_rng
from medtune.data.source import JsonlSource
from medtune.data.writing import file_sha256
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
        return {"name": "attributes", "truth": truth, **how}

    def versions(self) -> Sequence[str]:
        """Return nothing: it has no prompt."""
        return []

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return nothing: it asks no server."""
        return []

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Count the right attributes in each answer; exchange the counts if the noise says so."""
        phrases = self.attributes(candidate)
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
            return own
        if self.truth is None:
            raise ConfigError(f"{where} has no meta.{self.key}; add it, or name a file of reports as judge.truth")
        found = dict.fromkeys(phrase for image in candidate.images for phrase in self._by_image.get(image, ()))
        if not found:
            raise DataError(f"{where}: {self.truth} has no report of its images; add one, or remove the candidate.")
        return tuple(found)


def count_named(answer: str, phrases: Sequence[str]) -> int:
    """Return how many of the phrases an answer names, as whole words and regardless of case and spaces."""
    text = _words(answer)
    return sum(_words(phrase) in text for phrase in dict.fromkeys(phrases))


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
