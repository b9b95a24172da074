"""Asks a served GREEN model about every generated report of a prediction file, and writes the counts into its rows.

Replies are kept in a cache, so a run that was stopped asks only for what is missing. The rows get ``meta["green"]``
(:class:`~medtune.evaluation.reports.green.GreenCounts`), never the reply's text.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from medtune.clients.budget import Spent
from medtune.clients.concurrency import in_order
from medtune.clients.errors import RequestRefusedError
from medtune.clients.messages import ChatRequest
from medtune.clients.served import RecordedClient, ServedModel
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.reports.green import EMPTY, GreenCounts, GreenPrompt, read_green

TASK = "report_generation"
"""Name of the protocol, and of the task of a question, whose answers are reports."""


def is_report(row: Prediction) -> bool:
    """Return whether a prediction is a report on its own images: by its protocol, or by the task of its question."""
    asked = TASK in (row.task, row.meta.get("flare_task"))
    return asked and not row.meta.get("swapped") and not row.meta.get("probe")


def right_report(row: Prediction) -> str:
    """Return the right report of a prediction.

    Raises:
        DataError: The row has none.
    """
    answer = row.meta.get("answer", next(iter(row.references), None))
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"prediction {row.id!r}: a report is graded against the right one; meta needs a text 'answer'.")
    return answer


@dataclass
class Grading:
    """One run of GREEN's model over the reports of a prediction file.

    Args:
        rows: The predictions; those that are no reports are passed on as they are.
        prompt: The text that asks.
        max_tokens: Maximum number of tokens of a reply.

    Attributes:
        graded: Counts by id of the prediction.
        asked: Replies that this run has asked for; the others were in the cache.
        cut: Replies that ended at ``max_tokens``.
    """

    rows: Sequence[Prediction]
    prompt: GreenPrompt
    max_tokens: int | None = None
    graded: dict[str, GreenCounts] = field(default_factory=dict)
    asked: int = 0
    cut: int = 0

    @property
    def reports(self) -> list[Prediction]:
        """The predictions that are reports."""
        return [row for row in self.rows if is_report(row)]

    def request(self, row: Prediction) -> ChatRequest | None:
        """Return the request for one report; None for an empty one, which matches nothing.

        Raises:
            DataError: As :func:`right_report`.
        """
        reference = right_report(row)
        if not row.prediction.strip():
            return None
        text = self.prompt.filled(row.prediction, reference)
        return ChatRequest(row.id, [{"role": "user", "content": text}], None, self.max_tokens)

    def run(self, client: RecordedClient, concurrency: int, on_graded: Callable[[], None]) -> None:
        """Ask about every report, greedily.

        Args:
            client: Client of the served model.
            concurrency: Requests in flight.
            on_graded: Called after each report.

        Raises:
            DataError: A report has no right one.
            MedtuneError: Whatever stops the run; every reply is in the cache.
        """

        def ask(row: Prediction) -> tuple[GreenCounts, bool, bool]:
            request = self.request(row)
            if request is None:
                return EMPTY, False, False
            try:
                reply = client.ask(request, self.prompt.version)
            except RequestRefusedError:
                return read_green(None), True, False
            return read_green(reply.text), reply.asked, reply.finish_reason == "length"

        for row, call in in_order(ask, self.reports, concurrency, client.stop):
            counts, asked, cut = call.result()
            self.graded[row.id] = counts
            self.asked += asked
            self.cut += cut
            on_graded()

    def written(self) -> list[Prediction]:
        """Return all predictions, the reports with their counts."""
        return [
            replace(row, meta={**row.meta, "green": self.graded[row.id].to_dict()}) if row.id in self.graded else row
            for row in self.rows
        ]

    @property
    def read(self) -> int:
        """Replies whose counts could be read; an empty report, for which none is asked, does not count."""
        return sum(counts is not EMPTY and counts.score is not None for counts in self.graded.values())

    def unread(self) -> Counter[str]:
        """Return how many replies could not be read, by reason."""
        return Counter(counts.reason for counts in self.graded.values() if counts.reason)

    def estimate(self, server: ServedModel) -> tuple[Spent, ChatRequest | None]:
        """Return what all requests may use at most, and one of them."""
        requests = [request for row in self.reports if (request := self.request(row)) is not None]
        total = sum((server.estimate(request) for request in requests), Spent())
        return total, next(iter(requests), None)
