"""What a finished log becomes: conversations in two formats, candidates for clinicians, and what was kept aside.

All files are made of the log, so that the same log gives the same bytes, and a change of how replies are read asks
nothing anew.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.curation.figures import Figure
from medtune.curation.parsing import ReadConversation, Turn, read_conversation
from medtune.curation.prompts import Writing
from medtune.data.sample import IMAGE_TAG
from medtune.data.writing import Content, measured
from medtune.evaluation.prediction import Prediction, iterate_predictions

CONVERSATIONS, SAMPLES, CANDIDATES, ASIDE = "conversations.jsonl", "samples.jsonl", "candidates.jsonl", "aside.jsonl"
OUTPUTS = (CONVERSATIONS, SAMPLES, CANDIDATES, ASIDE)


def read_reply_of(row: Prediction, writing: Writing) -> ReadConversation:
    """Read one row of the log."""
    state = row.meta.get("state")
    if state != "answered":
        return ReadConversation((), str(state))
    return read_conversation(row.prediction, writing.answers, str(row.meta.get("finish_reason")), writing.min_turns)


def llava_row(figure: Figure, turns: Sequence[Turn]) -> dict[str, Any]:
    """Return a conversation in LLaVA's format, with the figure's texts beside it."""
    said = []
    for place, turn in enumerate(turns):
        question = turn.question if place else f"{IMAGE_TAG}\n{turn.question}"
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": turn.answers[0]}]
    return {**figure.to_dict(), "conversations": said}


def sample_row(figure: Figure, turns: Sequence[Turn]) -> dict[str, Any]:
    """Return a conversation in medtune's format."""
    said = []
    for place, turn in enumerate(turns):
        question = turn.question if place else f"{IMAGE_TAG}\n{turn.question}"
        said += [{"role": "user", "content": question}, {"role": "assistant", "content": turn.answers[0]}]
    return {"id": figure.id, "images": [figure.image], "messages": said, "meta": {"domain": list(figure.domains)}}


def candidate_rows(figure: Figure, turns: Sequence[Turn], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield each question with its two answers, as judges and clinicians read them.

    Args:
        figure: What the questions are about.
        turns: Questions with two answers each.
        counts: Questions whose answers are identical are left out, and counted under ``identical_answers``.
    """
    for number, turn in enumerate(turns, start=1):
        if len({" ".join(answer.split()) for answer in turn.answers}) == 1:
            counts["identical_answers"] += 1
            continue
        yield {
            "id": f"{figure.id}/question_{number}",
            "images": [figure.image],
            "messages": [{"role": "user", "content": f"{IMAGE_TAG}\n{turn.question}"}],
            "answers": list(turn.answers),
            "meta": {
                "source_id": figure.id,
                "domain": list(figure.domains),
                "caption": figure.caption,
                "mentions": list(figure.mentions),
            },
        }


def outputs(log: Path, figures: Mapping[str, Figure], writing: Writing) -> tuple[dict[str, Content], dict[str, Any]]:
    """Return the files of a finished log, and the counts for the manifest.

    Args:
        log: The log, in the order of the figures.
        figures: The figures of the run by id.
        writing: How replies are read.
    """
    reasons: Counter[str] = Counter()
    counts: Counter[str] = Counter()

    def read() -> Iterator[tuple[Figure, Prediction, ReadConversation]]:
        for row in iterate_predictions(log):
            if row.id in figures:
                yield figures[row.id], row, read_reply_of(row, writing)

    def aside() -> Iterator[dict[str, Any]]:
        reasons.clear()
        for figure, row, found in read():
            if found.reason:
                reasons[found.reason] += 1
                yield {"id": figure.id, "reason": found.reason, "text": row.prediction}

    def parsed(make: Callable[[Figure, Sequence[Turn]], Any]) -> Iterator[Any]:
        for figure, _, found in read():
            if found.turns:
                yield make(figure, found.turns)

    def candidates() -> Iterator[dict[str, Any]]:
        counts["identical_answers"] = 0
        for rows in parsed(lambda figure, turns: list(candidate_rows(figure, turns, counts))):
            yield from rows

    made: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {ASIDE: aside}
    if writing.answers == 1:
        made |= {CONVERSATIONS: lambda: parsed(llava_row), SAMPLES: lambda: parsed(sample_row)}
    else:
        made |= {CANDIDATES: candidates}
    files = {name: measured(lambda rows=rows: lines_of(rows())) for name, rows in made.items()}  # type: ignore[misc]
    usage: Counter[str] = Counter()
    for _, _, found in read():
        usage["replies"] += 1
        usage["parsed"] += bool(found.turns)
        usage["questions"] += len(found.turns)
    found_counts = {**{name: usage[name] for name in ("replies", "parsed", "questions")}, **counts}
    return files, {**found_counts, "kept_aside": dict(sorted(reasons.items()))}


def lines_of(rows: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """Yield rows as JSON Lines in UTF-8."""
    for row in rows:
        yield (json.dumps(row, ensure_ascii=False) + "\n").encode()
