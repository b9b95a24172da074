"""A served model rates single questions with their answers by clinicians' criteria (BioMed-VITAL, Sec. 3.2 and Fig. 9).

One question is rated at a time, as in the official code; a reply whose score cannot be read gives no rating, where the
official code puts 0.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from medtune.clients.budget import Spent
from medtune.clients.concurrency import in_order
from medtune.clients.errors import RequestRefusedError
from medtune.clients.messages import ChatRequest, SamplingAt, content
from medtune.clients.served import RecordedClient, ServedModel
from medtune.curation.prompts import FOLDER, NONE, shortened
from medtune.curation.records import Record
from medtune.data.images import ImageRoot
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction, iterate_predictions
from medtune.judges.parsing import ReadScores, read_scores
from medtune.judges.prompts import JudgePrompt, read_prompt

TASK = "rate"
"""Name of the step in the log."""
PLACEHOLDERS = ("question", "answer", "caption")


@dataclass(frozen=True)
class Criteria:
    """How the rating model is asked.

    Attributes:
        prompt: Name of a packaged prompt (``rating-v1`` shows the image, ``rating_text-v1`` does not), or path of a
            ``.txt`` file.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Least sum of the probabilities of the kept tokens.
        seed: Seed of the sampling.
        max_tokens: Maximum number of tokens of a reply; null leaves it to the server.
        text_limit: Most characters of a caption, and of the mentions, that a prompt shows.

    Raises:
        ConfigError: There is no such prompt, or its header is wrong.
        ValueError: A number is out of range.
    """

    prompt: str = "rating-v1"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int | None = 200
    text_limit: int = 6000

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError(
                "temperature must not be negative, top_p must be above 0 and at most 1, max_tokens positive"
            )
        if self.text_limit < 100:
            raise ValueError("text_limit must be at least 100")
        assert self.read

    @cached_property
    def read(self) -> JudgePrompt:
        """The prompt."""
        return read_prompt(self.prompt, PLACEHOLDERS, folder=FOLDER)

    @property
    def looks(self) -> bool:
        """Whether the image is shown."""
        return self.read.images

    def identity(self) -> dict[str, Any]:
        """Return everything of it that decides a request."""
        return {
            "prompt": self.read.version,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "text_limit": self.text_limit,
        }

    def request(self, record: Record, open_image: Callable[[], Image.Image]) -> ChatRequest:
        """Return the request for a record; the image is opened only if the prompt shows it.

        Raises:
            DataError: The image cannot be opened.
        """
        text = self.read.filled(
            {
                "question": record.question,
                "answer": record.answer,
                "caption": shortened(record.caption, self.text_limit) or NONE,
                "mentions": shortened(record.mentions, self.text_limit) or NONE,
            }
        )
        parts: list[str | Image.Image] = [open_image(), text] if self.looks else [text]
        sampling = SamplingAt(self.temperature, self.top_p, seed=self.seed) if self.temperature else None
        return ChatRequest(record.id, [{"role": "user", "content": content(parts)}], sampling, self.max_tokens)

    def score(self, row: Prediction) -> ReadScores:
        """Read one row of the log."""
        if row.meta.get("state") != "answered":
            return ReadScores(None, "refusal" if row.meta.get("state") == "declined" else "rejected")
        return read_scores(row.prediction, 1, self.read.low, self.read.high, str(row.meta.get("finish_reason")))


@dataclass(frozen=True)
class Rating:
    """Asks about records.

    Attributes:
        criteria: How.
        images: Where the images lie; None if they are not shown.
        refuse: Called with id and error of a record whose image cannot be used; may raise.
    """

    criteria: Criteria
    images: ImageRoot | None
    refuse: Callable[[str, DataError], None]

    def request(self, record: Record) -> ChatRequest:
        """Return the request for a record, with its image."""
        return self.criteria.request(record, lambda: self._open(record))

    def estimate(self, records: Iterable[Record], server: ServedModel) -> Spent:
        """Return what the requests may use at most; no image is opened."""
        blank = Image.new("RGB", (1, 1))
        return sum((server.estimate(self.criteria.request(record, lambda: blank)) for record in records), Spent())

    def run(
        self,
        records: Iterable[Record],
        client: RecordedClient,
        concurrency: int,
        write: Callable[[Prediction], None],
        progress: Callable[[int], None],
    ) -> None:
        """Ask about every record and write each reply.

        Raises:
            MedtuneError: Whatever stops the run; every reply that came is in the cache.
        """
        for record, future in in_order(lambda item: self._ask(item, client), records, concurrency, client.stop):
            error = future.exception()
            if isinstance(error, DataError) and not isinstance(error, ConfigError):
                self.refuse(record.id, error)
            else:
                write(future.result())
            progress(1)

    def _ask(self, record: Record, client: RecordedClient) -> Prediction:
        request = self.request(record)
        try:
            reply = client.ask(request, self.criteria.read.version)
        except RequestRefusedError as error:
            return Prediction(record.id, TASK, "", "", (), {"state": "rejected", "status": error.status})
        meta = {
            "state": "declined" if reply.text is None else "answered",
            "finish_reason": reply.finish_reason,
            "asked": reply.asked,
        }
        return Prediction(record.id, TASK, "", reply.text or "", (), meta)

    def _open(self, record: Record) -> Image.Image:
        if self.images is None:
            raise ConfigError("this prompt shows the images; set image_root to their folder or .tar file")
        if not record.image:
            raise DataError(f"sample {record.id!r}: the row names no image, and the prompt shows it; name one.")
        return self.images.load(record.image, f"sample {record.id!r}")


def rating_lines(log: Path, ids: Sequence[str], criteria: Criteria) -> Iterator[bytes]:
    """Yield the rows of ``ratings.jsonl``: ``{"id", "rating", "reason"}``; the rating is null without a score.

    Args:
        log: The log of replies.
        ids: Records of this run.
        criteria: How replies are read.
    """
    wanted = set(ids)
    for row in iterate_predictions(log):
        if row.id in wanted:
            found = criteria.score(row)
            value = None if found.scores is None else found.scores[0]
            yield (json.dumps({"id": row.id, "rating": value, "reason": found.reason}) + "\n").encode()


def rating_counts(log: Path, ids: Sequence[str], criteria: Criteria) -> dict[str, Any]:
    """Return how many were rated, the distribution of whole scores, and the replies without a score by reason."""
    wanted = set(ids)
    scores: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    for row in iterate_predictions(log):
        if row.id in wanted:
            found = criteria.score(row)
            if found.scores is None:
                reasons[found.reason] += 1
            else:
                scores[round(found.scores[0])] += 1
    return {
        "records": len(wanted),
        "rated": scores.total(),
        "scores": {str(score): scores[score] for score in sorted(scores)},
        "unread": dict(sorted(reasons.items())),
    }
