"""Many requests to a model in one resumable run: processes that share the work, the budget and the log of replies."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtune.clients.budget import Budget, Spent
from medtune.clients.served import RecordedClient, ServedModel
from medtune.curation.generation import share_of_budget
from medtune.generation.sharding import Progress, SharedLog
from medtune.judges.judging import run_id


@dataclass(frozen=True)
class Asking:
    """What is asked, of whom, and what it may cost.

    Attributes:
        server: The model.
        folder: Of the run.
        cache: File of replies; None for ``replies.jsonl`` in the folder.
        budget: Of the run, all starts and processes together.
        prompts: Versions of the prompts.
        title: What the progress bar is called.
        unit: What it counts.
        say: Shows a message to the user.
    """

    server: ServedModel
    folder: Path
    cache: str | None
    budget: Budget
    prompts: Sequence[str]
    title: str
    unit: str
    say: Callable[[str], None]

    def run(
        self, log: SharedLog, total: int, left: int, ask: Callable[[RecordedClient, Callable[[int], None]], None]
    ) -> Spent:
        """Ask with every process, and return what all starts of the run have spent.

        Args:
            log: Log of the replies.
            total: Number of requests of the run.
            left: Number of those without a reply.
            ask: Makes this process's share of the requests, and calls its second argument with 1 after each.
        """
        run = log.world.on_rank0(lambda: run_id(self.folder))
        cache = Path(self.cache) if self.cache else self.folder / "replies.jsonl"
        progress = Progress(log.path, log.world, total, total - left, title=self.title, unit=self.unit)
        with log.world.on_all_ranks(lambda: RecordedClient(self.server, cache, run, self.budget, self.say)) as client:
            before = client.ledger.spent
            client.ledger.budget = share_of_budget(self.budget, before, self.server.prices, log.world.world)
            log.world.gather(None)  # every process has read what earlier starts have spent before any of them asks
            if log.world.rank == 0:
                client.tell_versions(list(self.prompts))
            progress()
            try:
                ask(client, progress)
                spent = log.gather(client.ledger.spent - before, meanwhile=progress)
            finally:
                progress.close()
            return sum(spent, before)


def answered_before(path: Path) -> set[str]:
    """Return the ids in a log without changing it; a torn last line is left out."""
    found = set()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found.add(str(json.loads(line)["id"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
