"""One process's share of a generation: every figure is asked about once, and every reply is logged at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from medtune.clients.budget import Budget, Prices, Spent
from medtune.clients.concurrency import in_order
from medtune.clients.errors import RequestRefusedError
from medtune.clients.messages import ChatReply, ChatRequest
from medtune.clients.served import KeptReply, RecordedClient, ServedModel
from medtune.curation.figures import Figure
from medtune.curation.prompts import Requests
from medtune.data.images import ImageRoot
from medtune.errors import ConfigError, DataError
from medtune.evaluation.prediction import Prediction

TASK = "curate"
"""Name of the step in the log."""


@dataclass(frozen=True)
class Pictures:
    """Opens the images of figures.

    Attributes:
        root: Where they lie; None if no prompt shows them.
        name: Of the file of figures, for errors.
    """

    root: ImageRoot | None
    name: str

    def open(self, figure: Figure) -> Image.Image:
        """Return a figure's image in RGB.

        Raises:
            ConfigError: There is no image root.
            DataError: The image is gone or damaged.
        """
        if self.root is None:
            raise ConfigError("this prompt shows the images; set image_root to their folder or .tar file")
        return self.root.load(figure.image, f"{self.name} (id {figure.id!r})")


def logged(figure: Figure, reply: KeptReply | ChatReply | None, **more: Any) -> Prediction:
    """Return the row of the log for a reply; None stands for a request that the server rejected.

    Args:
        figure: What was asked about.
        reply: The reply.
        more: Further facts for the row.
    """
    meta: dict[str, Any] = {"state": "rejected", **more}
    text = None if reply is None else reply.text
    if reply is not None:
        meta |= {"state": "declined" if text is None else "answered", "finish_reason": reply.finish_reason}
    if isinstance(reply, KeptReply):
        meta["asked"] = reply.asked
    return Prediction(figure.id, TASK, "", text or "", (), meta)


class Generation:
    """Asks about figures.

    Args:
        requests: Makes the requests.
        pictures: Opens the images.
        refuse: Called with id and error of a figure whose image cannot be used; may raise.
    """

    def __init__(self, requests: Requests, pictures: Pictures, refuse: Callable[[str, DataError], None]) -> None:
        self.requests, self.pictures, self.refuse = requests, pictures, refuse

    def request(self, figure: Figure) -> ChatRequest:
        """Return the request for a figure, with its image."""
        return self.requests.of(figure, lambda: self.pictures.open(figure))

    def blank_request(self, figure: Figure) -> ChatRequest:
        """Return the request for a figure with an empty image in place of its own, for estimates."""
        return self.requests.of(figure, lambda: Image.new("RGB", (1, 1)))

    def run(
        self,
        figures: Iterable[Figure],
        client: RecordedClient,
        concurrency: int,
        write: Callable[[Prediction], None],
        progress: Callable[[int], None],
    ) -> None:
        """Ask about every figure and write each reply.

        Args:
            figures: Those that the log does not hold.
            client: Client of the generator.
            concurrency: Requests in flight.
            write: Appends a row to the log.
            progress: Called with 1 after each figure.

        Raises:
            MedtuneError: Whatever stops the run; every reply that came is in the cache.
        """
        for figure, future in in_order(lambda item: self._ask(item, client), figures, concurrency, client.stop):
            error = future.exception()
            if isinstance(error, DataError) and not isinstance(error, ConfigError):
                self.refuse(figure.id, error)
            else:
                write(future.result())
            progress(1)

    def _ask(self, figure: Figure, client: RecordedClient) -> Prediction:
        request = self.request(figure)
        try:
            return logged(figure, client.ask(request, self.requests.writing.version))
        except RequestRefusedError as error:
            return logged(figure, None, status=error.status)

    def estimate(self, figures: Iterable[Figure], server: ServedModel) -> Spent:
        """Return what the requests may use at most."""
        return sum((server.estimate(self.blank_request(figure)) for figure in figures), Spent())


def share_of_budget(budget: Budget, spent: Spent, prices: Prices, world: int) -> Budget:
    """Return what one of several processes may spend, so that all of them together keep the budget.

    Args:
        budget: Of the run.
        spent: What the run's earlier starts have spent; it counts for every process.
        prices: What the server charges.
        world: Number of processes.
    """
    if world == 1:
        return budget

    def part(limit: float, used: float) -> float:
        return used + max(0.0, limit - used) / world if limit > used else limit

    tokens, cost = spent.prompt_tokens + spent.completion_tokens, spent.cost(prices)
    return Budget(
        None if budget.max_cost is None else part(budget.max_cost, cost),
        None if budget.max_tokens is None else int(part(budget.max_tokens, tokens)),
        None if budget.max_requests is None else int(part(budget.max_requests, spent.requests)),
    )


def shares(figures: Sequence[Figure], rank: int, world: int) -> list[Figure]:
    """Return one process's figures."""
    return list(figures[rank::world])
