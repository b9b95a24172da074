"""OpenAI's batch files: requests as JSON Lines that are answered within a day at half the price, and their results.

A file holds at most 50,000 requests and 200 MB (https://platform.openai.com/docs/guides/batch). The id of a request
begins with a mark of the run's settings, so that results of other prompts are not taken for this run's.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.clients.budget import Spent
from medtune.clients.messages import ChatRequest, NoText, encoded, read_reply
from medtune.clients.openai import request_body
from medtune.clients.served import ServedModel
from medtune.curation.figures import Figure
from medtune.curation.generation import logged
from medtune.data.writing import replaced
from medtune.errors import DataError
from medtune.evaluation.prediction import Prediction

FOLDER = "batch"
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
REFUSED = (400, 413, 422)
"""Statuses of requests that would be refused again; others, such as an expired one, can be asked once more."""


def mark_of(identity: Mapping[str, Any]) -> str:
    """Return twelve digits that stand for the settings of a run."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]


def batch_line(request: ChatRequest, server: ServedModel, mark: str) -> bytes:
    """Return a request as a line of a batch file."""
    extra = {**server.options, **request.extra}
    body, more = request_body(server.model, encoded(request.messages), request.sampling, request.max_tokens, extra)
    row = {
        "custom_id": f"{mark}-{request.id}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {**body, **more},
    }
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_batches(
    folder: Path, lines: Iterable[bytes], most_requests: int = MOST_REQUESTS, most_bytes: int = MOST_BYTES
) -> list[tuple[Path, int]]:
    """Write requests into files ``requests-0001.jsonl``..., each small enough; older ones are removed first.

    Returns:
        Each file with its number of requests.

    Raises:
        DataError: The folder cannot be written to.
    """
    found: list[tuple[Path, int]] = []
    rest = iter(lines)
    line = next(rest, None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("requests-*.jsonl"):
            old.unlink()
        while line is not None:
            path, count, size = folder / f"requests-{len(found) + 1:04d}.jsonl", 0, 0
            with replaced(path) as aside, aside.open("wb") as file:
                while line is not None and (not count or (count < most_requests and size + len(line) <= most_bytes)):
                    file.write(line)
                    count, size = count + 1, size + len(line)
                    line = next(rest, None)
            found.append((path, count))
    except OSError as error:
        raise DataError(f"Cannot write into {folder}: {error.strerror}; make room and run it again.") from None
    return found


@dataclass
class Results:
    """What result files hold.

    Attributes:
        counts: Rows that were taken, known before, rejected for good, and failed ones by kind; failed ones may be asked
            again.
        spent: Tokens of the replies that were taken, as the server counted them.
    """

    counts: Counter[str] = field(default_factory=Counter)
    spent: Spent = field(default_factory=Spent)


def read_results(
    paths: Sequence[str | Path],
    figures: Mapping[str, Figure],
    mark: str,
    known: set[str],
    write: Callable[[Prediction], None],
) -> Results:
    """Read result files of a batch, and the error files that come with them.

    Args:
        paths: The files.
        figures: The figures of the run by id.
        mark: Of the run's settings; see :func:`mark_of`.
        known: Ids that the log holds; their rows are passed over.
        write: Appends a row to the log.

    Raises:
        DataError: A file is absent, a line is no result, or belongs to a run with other settings.
    """
    results, seen = Results(), set(known)
    for where, row in (found for path in paths for found in _rows(Path(path).expanduser())):
        name = _id_of(row, mark, where)
        if name not in figures:
            raise DataError(f"{where}: custom_id names no figure of this run; give the results of this run's requests.")
        if name in seen:
            results.counts["known"] += 1
            continue
        made = _logged_result(row, figures[name], results)
        if made is not None:
            seen.add(name)
            write(made)
    return results


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _decoded(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}; check the path of the results.") from None


def _decoded(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        raise DataError(f"{where}: this is no result of a batch, which has a 'custom_id'; was the file cut off?")
    return row


def _id_of(row: dict[str, Any], mark: str, where: str) -> str:
    found, _, name = row["custom_id"].partition("-")
    if found != mark:
        raise DataError(
            f"{where}: this result belongs to requests with other settings; use the config that wrote the requests."
        )
    return str(name)


def _logged_result(row: dict[str, Any], figure: Figure, results: Results) -> Prediction | None:
    """Return the row of the log for a result; None for one that failed and may be asked again."""
    response = row.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    if status in REFUSED:
        results.counts["rejected"] += 1
        return logged(figure, None, status=status, batch=True)
    if not isinstance(response, dict) or status != 200:
        results.counts[f"status {status}" if isinstance(status, int) else "not answered"] += 1
        return None
    try:
        reply = read_reply(json.dumps(response.get("body")).encode(), None, figure.id)
        made = logged(figure, reply, batch=True)
    except NoText as error:
        reply = error.reply
        made = logged(figure, None, batch=True)
        made.meta["state"] = "declined"
    except ValueError:
        results.counts["no chat completion"] += 1
        return None
    results.counts["taken"] += 1
    results.spent += Spent(1, reply.prompt_tokens, reply.completion_tokens)
    made.meta["tokens"] = [reply.prompt_tokens, reply.completion_tokens]
    return made
