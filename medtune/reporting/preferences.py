"""Preference pairs and their judge: what was counted, and pairs with images side by side."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medtune.data.randomness import sample_rng
from medtune.data.sample import IMAGE_TAG
from medtune.errors import DataError
from medtune.reporting.gallery import OpenImage, thumbnail
from medtune.reporting.summary import interval, percent
from medtune.reporting.views import Cell, Example, Option, Row, Section, Table


def preference_sections(
    folder: Path, samples: int = 0, open_image: OpenImage | None = None, seed: int = 0
) -> list[Section]:
    """Return the sections of a folder that the judge recipe wrote.

    Args:
        folder: Folder with ``manifest.json`` and ``pairs.jsonl``.
        samples: Number of pairs to show with images and texts; 0 shows none, and then nothing of a patient.
        open_image: Opens an image by its path in the pairs; None shows no images.
        seed: Seed of the choice of pairs.

    Raises:
        DataError: The folder holds no finished judging.
    """
    manifest = _manifest(folder)
    sections = [Section("The judge", _words(manifest), _table(manifest), first="Judge")]
    if samples > 0:
        rows = _chosen(folder / "pairs.jsonl", samples, seed)
        sections.append(
            Section(
                "Preference pairs",
                "Chosen by a seed, not by their scores. Green is the chosen answer, red the rejected one.",
                examples=[_example(row, open_image) for row in rows],
            )
        )
    return sections


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        complete = manifest["complete"] and {"judge", "counts", "position_bias"} <= manifest.keys()
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise DataError(f"{folder} holds no finished judging; run the judge recipe, the same command goes on.")
    return dict(manifest)


def _words(manifest: Mapping[str, Any]) -> str:
    judge = manifest["judge"]
    asked = f" with the prompt {judge['prompt']}" if "prompt" in judge else ""
    unread = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in manifest["counts"]["unread"].items())
    bias = manifest["position_bias"]
    texts = [f"{manifest.get('model') or judge['name']}{asked}.", f"Unread: {unread or 'none'}."]
    if bias is not None:
        texts.append(f"Position bias: {bias['rate']['definition']}.")
        texts.append(f"First place {bias['first']}, second place {bias['second']}, tied {bias['tied']}.")
    return " ".join(texts)


def _table(manifest: Mapping[str, Any]) -> Table:
    counts, bias, replies = manifest["counts"], manifest["position_bias"], manifest["replies"]
    columns, cells = ["judged", "pairs", "ties", "unread"], []
    for value in (counts["judged"], counts["pairs"], counts["ties"], sum(counts["unread"].values())):
        cells.append(Cell(str(value)))
    if bias is not None:
        columns.append("position bias, %")
        rate = bias["rate"]
        cells.append(Cell(percent(rate), interval(rate), f"n={rate['n']}", title=rate["definition"]))
    agreement = manifest.get("agreement")
    if agreement is not None and agreement["observed"] is not None:
        kappa = "" if agreement["kappa"] is None else f"kappa {agreement['kappa']:.2f}"
        columns.append("agreement, %")
        cells.append(Cell(f"{100 * agreement['observed']:.1f}", n=f"n={agreement['compared']}", note=kappa))
    if replies is not None:
        columns += ["asked", "from cache", "tokens"]
        tokens = replies["prompt_tokens"] + replies["completion_tokens"]
        cells += [Cell(str(replies["asked"])), Cell(str(replies["from_cache"])), Cell(f"{tokens:,}")]
        if replies["cost"] is not None:
            columns.append(f"cost, {replies['currency']}")
            cells.append(Cell(f"{replies['cost']:.2f}"))
    return Table("", columns, [Row(manifest.get("model") or manifest["judge"]["name"], cells)])


def _chosen(path: Path, samples: int, seed: int) -> list[dict[str, Any]]:
    """Draw rows of a file in one pass, in the order of the file (reservoir sampling)."""
    rng, kept = sample_rng(seed, 0, 0, "preference_pairs"), dict[int, dict[str, Any]]()
    slots: list[int] = []
    for number, row in enumerate(_rows(path)):
        place = number if number < samples else rng.randrange(number + 1)
        if place >= samples:
            continue
        if place < len(slots):
            del kept[slots[place]]
            slots[place] = number
        else:
            slots.append(number)
        kept[number] = row
    return [kept[number] for number in sorted(kept)]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _example(row: Mapping[str, Any], open_image: OpenImage | None) -> Example:
    shown = [thumbnail(path, open_image) for path in row["images"]]
    question = row["messages"][-1]["content"].replace(IMAGE_TAG, "").strip()
    first, second = row["scores"]
    return Example(
        question,
        [picture for picture, _ in shown if picture],
        [
            Option("chosen", row["chosen"], f"score {first:.3g}", "good"),
            Option("rejected", row["rejected"], f"score {second:.3g}", "bad"),
        ],
        next((trouble for _, trouble in shown if trouble), ""),
    )
