"""From candidates to preference pairs: a log of judgements that a killed run continues, the pairs, and a manifest."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from medtune.clients.budget import Spent
from medtune.clients.concurrency import in_order
from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient, ServedModel
from medtune.data.append import LineLog, cut_torn_tail
from medtune.data.sample import Sample
from medtune.data.writing import json_bytes, write_files
from medtune.errors import ConfigError, DataError
from medtune.judges.base import Judge, Judgement
from medtune.judges.bias import position_bias
from medtune.judges.candidates import Candidate

DROPPED = ("empty_answer", "identical_answers")
"""Reasons that lie in the candidate: nothing is asked."""
Ties = Literal["drop", "second"]


class Candidates(Protocol):
    """Where candidates come from; :class:`~medtune.judges.candidates.CandidateSource` is one."""

    name: str

    def __len__(self) -> int:
        """Return the number of candidates."""
        ...

    def __getitem__(self, index: int) -> Candidate:
        """Return a candidate, or raise a DataError that names file and row."""
        ...

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Return a candidate's images, decoded to RGB."""
        ...

    def fingerprint(self) -> str:
        """Return a SHA-256 of the contents."""
        ...


class JudgementLog(LineLog):
    """An append-only file of judgements; one run at a time writes it.

    Args:
        path: The file; it is created if absent.

    Attributes:
        done: Judgements by id of the candidate.
        cut: Bytes of a torn last line that were removed.

    Raises:
        DataError: Another run writes the file, or a line is no judgement.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.cut = 0
        self.done: dict[str, Judgement] = {}

    def recover(self) -> None:
        """Remove a torn last line and read what was judged.

        Raises:
            DataError: A line is no judgement.
        """
        self.cut = cut_torn_tail(self.path)
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    judgement = Judgement.from_dict(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    raise DataError(
                        f"{self.path}, line {number}: this is no judgement; remove the line, and the run judges anew."
                    ) from None
                self.done[judgement.id] = judgement

    def append(self, judgement: Judgement) -> None:
        """Append a judgement."""
        self.write(json.dumps(judgement.to_dict(), ensure_ascii=False) + "\n")
        self.done[judgement.id] = judgement


class Judging:
    """One run of a judge over candidates.

    Args:
        judge: The judge.
        source: The candidates.
        limit: Only the first N candidates.
        skip: Whether a candidate that cannot be used (a broken row, an image that is gone) is skipped and counted; else
            its error is raised.
        words: Whether the log keeps what the judge wrote.

    Attributes:
        skipped: Reason by name of each skipped candidate.
        total: Number of candidates.
    """

    def __init__(
        self, judge: Judge, source: Candidates, limit: int | None = None, skip: bool = False, words: bool = False
    ) -> None:
        self.judge, self.source, self.skip, self.words = judge, source, skip, words
        self.total = len(source) if limit is None else min(limit, len(source))
        self.skipped: dict[str, str] = {}

    def candidates(self) -> Iterator[Candidate]:
        """Yield the candidates whose rows can be read."""
        for index in range(self.total):
            try:
                candidate = self.source[index]
            except DataError as error:
                self.refuse(f"row {index + 1}", error)
                continue
            yield candidate

    def refuse(self, name: str, error: DataError) -> None:
        """Record a candidate that cannot be used, or raise its error."""
        if not self.skip:
            raise error
        self.skipped[name] = str(error)

    def run(
        self,
        log: JudgementLog,
        client: RecordedClient | None,
        concurrency: int,
        on_judged: Callable[[], None],
    ) -> None:
        """Judge every candidate that the log does not hold, and write each judgement at once.

        Args:
            log: Where judgements are written.
            client: Client of the served model, for a judge that asks one.
            concurrency: Candidates that are judged at the same time.
            on_judged: Called after each candidate.

        Raises:
            MedtuneError: Whatever stops the run; everything judged before is in the log, every reply in the cache.
        """
        waiting = (candidate for candidate in self.candidates() if candidate.id not in log.done)
        interrupted = None if client is None else client.stop
        for candidate, future in in_order(lambda item: self._judge(item, client), waiting, concurrency, interrupted):
            error = future.exception()
            if isinstance(error, DataError) and not isinstance(error, ConfigError):
                self.refuse(candidate.id, error)
            else:
                log.append(future.result())
            on_judged()
        log.sync()

    def _judge(self, candidate: Candidate, client: RecordedClient | None) -> Judgement:
        if candidate.unusable:
            return Judgement(candidate.id, None, candidate.unusable)
        judged = self.judge.judge(candidate, lambda: self.source.open_images(candidate), client)
        return judged if self.words else replace(judged, words=())

    def pairs(self, done: Mapping[str, Judgement], ties: Ties, who: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield the lines of the preference file, in the order of the candidates.

        Args:
            done: Judgements by id.
            ties: ``drop``, or ``second``: the second answer is the better one, as in STLLaVA-Med's code.
            who: Judge, prompt and sampling, for every row's ``source``.
        """
        for candidate in self.candidates():
            judgement = done.get(candidate.id)
            if judgement is None or judgement.scores is None:
                continue
            chosen = judgement.preferred
            if chosen is None:
                if ties == "drop":
                    continue
                chosen = 1
            source = {**who, **({"votes": list(judgement.votes)} if judgement.votes else {})}
            row = candidate.pair(chosen, judgement.scores, source)
            yield (json.dumps(row, ensure_ascii=False) + "\n").encode()

    def estimate(self, server: ServedModel, done: Mapping[str, Judgement]) -> tuple[int, Spent, ChatRequest | None]:
        """Return how many images would be sent, what all requests may use at most, and one request with its images."""
        images, total, example = 0, Spent(), None
        for candidate in self.candidates():
            if candidate.unusable or candidate.id in done:
                continue
            blank = [Image.new("RGB", (1, 1))] * len(candidate.images)
            requests = self.judge.requests(candidate, lambda blank=blank: blank)  # type: ignore[misc]
            images += len(blank) * len(requests) if self.judge.looks else 0
            for request in requests:
                total += server.estimate(request)
            if example is None and requests:
                example = self.judge.requests(candidate, lambda shown=candidate: self.source.open_images(shown))[0]  # type: ignore[misc]
        return images, total, example


def counts(done: Mapping[str, Judgement], ids: Iterator[str], ties: Ties) -> dict[str, Any]:
    """Return how many candidates were judged, became pairs, tied, could not be read or had nothing to choose."""
    chosen = [done[id] for id in ids if id in done]
    tied = sum(judgement.scores is not None and judgement.preferred is None for judgement in chosen)
    scored = sum(judgement.scores is not None for judgement in chosen)
    reasons = Counter(judgement.reason for judgement in chosen if judgement.reason)
    return {
        "judged": len(chosen),
        "pairs": scored - (tied if ties == "drop" else 0),
        "ties": tied,
        "unread": dict(sorted((name, n) for name, n in reasons.items() if name not in DROPPED)),
        "dropped": dict(sorted((name, n) for name, n in reasons.items() if name in DROPPED)),
    }


def run_id(folder: Path) -> str:
    """Return the id of the run in this folder; a new one is written if there is none.

    Replies in a cache carry it, so that a run knows what its earlier starts have spent.

    Raises:
        DataError: The folder cannot be written to.
    """
    path = folder / "run.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        made = uuid.uuid4().hex
        write_files(folder, {path.name: json_bytes({"run": made})}, overwrite=True)
        return made


def bias_of(done: Mapping[str, Judgement], ids: Iterator[str]) -> dict[str, Any] | None:
    """Return the position bias over some candidates; see :func:`medtune.judges.bias.position_bias`."""
    return position_bias(done[id] for id in ids if id in done)
