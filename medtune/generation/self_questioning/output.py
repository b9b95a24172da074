"""Candidates and manifest of a finished log, and the plan that a dry run prints."""

import json
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medtune import __version__
from medtune.data.source import SampleSource
from medtune.data.writing import json_bytes, measured, write_files
from medtune.evaluation.prediction import iterate_predictions
from medtune.generation.self_questioning.pictures import Chosen, Picture
from medtune.generation.self_questioning.prompts import Prompts, every_id
from medtune.generation.self_questioning.run import written
from medtune.generation.self_questioning.settings import Settings
from medtune.generation.self_questioning.sift import REASONS, Sifted, Texts

CANDIDATES, MANIFEST = "candidates.jsonl", "manifest.json"


def write_candidates(
    log: Path, chosen: Chosen, settings: Settings, identity: dict[str, Any], skipped: dict[str, str]
) -> dict[str, Any]:
    """Write ``candidates.jsonl`` and ``manifest.json`` beside a log; the same log gives the same bytes.

    Args:
        log: The finished log, in the order of the pictures.
        chosen: The pictures, and counts of the source.
        settings: How the texts were written.
        identity: What decided the texts; weights and data by their contents.
        skipped: Reason by name of the row or id of the text that could not be used.

    Returns:
        The manifest.
    """
    sifted = Sifted()

    def lines() -> Iterator[bytes]:
        sifted.clear()  # the log is read more than once, so that the candidates need not be in memory
        for picture, texts in by_picture(log, chosen.pictures, settings):
            for row in sifted.candidates(picture, texts, settings):
                yield (json.dumps(row, ensure_ascii=False) + "\n").encode()

    content = measured(lines)
    manifest = {
        "counts": {**chosen.counts, **dict(sifted.counts)},
        "dropped": {reason: sifted.dropped[reason] for reason in REASONS if sifted.dropped[reason]},
        "skipped": [{"id": name, "reason": skipped[name]} for name in sorted(skipped)],
        "identity": identity,
        "outputs": {CANDIDATES: content.digest},
        "versions": {"medtune": __version__, "python": platform.python_version()},
    }
    write_files(log.parent, {CANDIDATES: content, MANIFEST: json_bytes(manifest)}, overwrite=True)
    return manifest


def by_picture(log: Path, pictures: Sequence[Picture], settings: Settings) -> Iterator[tuple[Picture, Texts]]:
    """Each picture with its texts, of a log in the order of the pictures; other rows of the log come last."""
    rows = iterate_predictions(log)
    row = next(rows, None)
    for picture in pictures:
        ids = set(every_id(picture, settings))
        texts = {}
        while row is not None and row.id in ids:
            texts[row.id] = written(row)
            row = next(rows, None)
        yield picture, texts


def plan_lines(source: SampleSource, chosen: Chosen, settings: Settings) -> Iterator[str]:
    """The amount of work and the prompts, with the policy's words as placeholders and no word of the data."""
    counts, picture, prompts = chosen.counts, chosen.pictures[0], Prompts(source, settings)
    yield f"{counts['rows']} rows show {counts['images']} images; {counts['chosen']} are asked about"
    yield (
        f"at most {counts['chosen'] * settings.texts_per_image} texts: for each image one description, "
        f"{settings.ask.count} questions and {len(settings.answer.seeds)} answers to each"
    )
    examples = (
        prompts.describe(picture),
        prompts.ask(picture, "{description}")[0],
        prompts.answer(picture, 0, "{question}")[0],
    )
    for step, request in zip(("describe", "ask", "answer"), examples, strict=True):
        turns = " | ".join(f"{message.role}: {message.content}".strip() for message in request.sample.messages)
        yield f"{step:8} <image> {turns}, at most {request.max_new_tokens} tokens, {request.sampling or 'greedy'}"
