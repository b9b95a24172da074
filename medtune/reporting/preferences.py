"""Preference pairs and their judge: scores, ties, bias and cost, pairs with images side by side, and win rates."""

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medtune.data.randomness import sample_rng
from medtune.data.sample import IMAGE_TAG
from medtune.errors import DataError
from medtune.judges.base import Judgement
from medtune.reporting.gallery import OpenImage, thumbnail
from medtune.reporting.judge_charts import judge_chart
from medtune.reporting.runs import Run
from medtune.reporting.summary import interval, percent
from medtune.reporting.views import Cell, Example, Option, Row, Section, Table
from medtune.reporting.win_rates import compared_sections, win_rate_sections

_KEYS = {"judge", "counts", "position_bias", "replies"}
_ALT = (
    "For each judge: a histogram of the differences of the scores with the ties, the numbers of pairs, ties, unread "
    "and dropped candidates, and the numbers of choices of the first and the second place"
)


def preference_sections(
    folder: Path, samples: int = 0, open_image: OpenImage | None = None, seed: int = 0
) -> list[Section]:
    """Return the sections of a folder that the judge recipe wrote.

    Args:
        folder: Folder with ``manifest.json`` and ``pairs.jsonl``.
        samples: Number of pairs to show with images and texts, and half as many with the largest and the smallest
            differences of the scores; 0 shows none, and then nothing of a patient.
        open_image: Opens an image by its path in the pairs; None shows no images.
        seed: Seed of the choice of pairs.

    Raises:
        DataError: The folder holds no finished judging.
    """
    return judging_sections({"": folder}, samples, open_image, seed)


def judging_sections(
    folders: Mapping[str, Path], samples: int = 0, open_image: OpenImage | None = None, seed: int = 0
) -> list[Section]:
    """Return the sections of several judgings: the judges beside each other, win rates, then the pairs of each.

    Args:
        folders: Name -> folder; a name is empty if there is only one.
        samples: As for :func:`preference_sections`.
        open_image: Opens an image by its path in the pairs; None shows no images.
        seed: Seed of the choice of pairs.

    Raises:
        DataError: A folder holds no finished judging.
    """
    if not folders:
        return []
    manifests = {name: _manifest(folder) for name, folder in folders.items()}
    biases = [one["position_bias"] for one in manifests.values() if one["position_bias"] is not None]
    meant = dict.fromkeys(f"Position bias: {bias['rate']['definition']}." for bias in biases)
    words = " ".join([*(_words(name, manifest) for name, manifest in manifests.items()), *meant])
    rows = [_row(name, manifest) for name, manifest in manifests.items()]
    chart = judge_chart({name: (one, _differences(folders[name], one)) for name, one in manifests.items()})
    sections = [Section("The judge", words, _table(rows), chart, _ALT, first="Judge")]
    sections += win_rate_sections({name or _model(one): one for name, one in manifests.items()})
    for name, folder in folders.items():
        path = folder / "pairs.jsonl"
        if samples <= 0 or manifests[name].get("scored"):  # scored answers are shown with the runs
            continue
        if manifests[name].get("win_rate") is not None:
            sections += compared_sections(name, _chosen(path, samples, seed), _judgements(folder), open_image)
        else:
            sections += _pair_sections(name, path, samples, open_image, seed)
    return sections


def is_judging(folder: Path) -> bool:
    """Return whether the judge recipe wrote a folder, finished or not."""
    return _KEYS <= _read(folder).keys()


def judged_folders(runs: Sequence[Run], folders: Iterable[Path] = ()) -> dict[str, Path]:
    """Return the finished judgings among the steps of some runs, and further folders, by a name to show.

    Args:
        runs: Runs, whose steps lie one folder below them.
        folders: Further folders that the judge recipe wrote.
    """
    found = {
        f"{run.name}: {path.parent.name}": path.parent
        for run in runs
        for path in sorted(run.folder.glob("*/manifest.json"))
        if is_judging(path.parent) and _read(path.parent).get("complete")
    }
    for folder in folders:
        name = folder.resolve().name
        found[name if name not in found else str(folder)] = folder
    return found


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = _read(folder)
    if not (manifest.get("complete") and _KEYS <= manifest.keys()):
        raise DataError(f"{folder} holds no finished judging; run the judge recipe, the same command goes on.")
    return manifest


def _words(name: str, manifest: Mapping[str, Any]) -> str:
    judge = manifest["judge"]
    asked = f" with the prompt {judge['prompt']}" if "prompt" in judge else ""
    unread = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in manifest["counts"]["unread"].items())
    bias = manifest["position_bias"]
    texts = [f"{name}, " * bool(name) + f"{_model(manifest)}{asked}.", f"Unread: {unread or 'none'}."]
    if bias is not None:
        texts.append(f"First place {bias['first']}, second place {bias['second']}, tied {bias['tied']}.")
    return " ".join(texts)


def _model(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("model") or manifest["judge"]["name"])


def _row(name: str, manifest: Mapping[str, Any]) -> tuple[str, dict[str, Cell]]:
    """Return a judge's name and its cells by the title of their column."""
    counts, bias, replies = manifest["counts"], manifest["position_bias"], manifest["replies"]
    unread = sum(counts["unread"].values())
    parts = {"scored": counts["judged"] - unread} if manifest.get("scored") else {"pairs": counts["pairs"]}
    numbers = {"judged": counts["judged"], **parts, "ties": counts["ties"], "unread": unread}
    cells = {title: Cell(str(value)) for title, value in numbers.items()}
    if bias is not None:
        rate = bias["rate"]
        cells["position bias, %"] = Cell(percent(rate), interval(rate), f"n={rate['n']}", title=rate["definition"])
    agreement = manifest.get("agreement")
    if agreement is not None and agreement["observed"] is not None:
        kappa = "" if agreement["kappa"] is None else f"kappa {agreement['kappa']:.2f}"
        cells["agreement, %"] = Cell(f"{100 * agreement['observed']:.1f}", n=f"n={agreement['compared']}", note=kappa)
    if replies is not None:
        tokens = replies["prompt_tokens"] + replies["completion_tokens"]
        cells |= {"asked": Cell(str(replies["asked"])), "from cache": Cell(str(replies["from_cache"]))}
        cells["tokens"] = Cell(f"{tokens:,}")
        if replies["cost"] is not None:
            cells[f"cost, {replies['currency']}"] = Cell(f"{replies['cost']:.2f}")
    return name or _model(manifest), cells


def _table(rows: Sequence[tuple[str, Mapping[str, Cell]]]) -> Table:
    columns = list(dict.fromkeys(title for _, cells in rows for title in cells))
    return Table("", columns, [Row(name, [cells.get(title, Cell("")) for title in columns]) for name, cells in rows])


def _pair_sections(name: str, path: Path, samples: int, open_image: OpenImage | None, seed: int) -> list[Section]:
    half, of = (samples + 1) // 2, f": {name}" if name else ""
    colours = "Green is the chosen answer, red the rejected one."
    chosen = {
        "Preference pairs": (f"Chosen by a seed, not by their scores. {colours}", _chosen(path, samples, seed)),
        "Pairs with the largest differences": (
            f"The judge's scores lie furthest apart. {colours}",
            heapq.nlargest(half, _rows(path), key=_difference),
        ),
        "Pairs with the smallest differences": (
            f"The judge is least sure; ties make no pair unless the config says so. {colours}",
            heapq.nsmallest(half, _rows(path), key=_difference),
        ),
    }
    return [
        Section(title + of, text, examples=[_example(row, open_image) for row in rows])
        for title, (text, rows) in chosen.items()
    ]


def _difference(row: Mapping[str, Any]) -> float:
    first, second = row["scores"]
    return float(first) - float(second)


def _differences(folder: Path, manifest: Mapping[str, Any]) -> list[float]:
    """Return the differences of the two scores of the pairs; those of all judgements if answers were scored."""
    if not manifest.get("scored"):
        return [_difference(row) for row in _rows(folder / "pairs.jsonl")]
    return [abs(one.scores[0] - one.scores[1]) for one in _judgements(folder).values() if one.scores is not None]


def _judgements(folder: Path) -> dict[str, Judgement]:
    path = folder / "judgements.jsonl"
    try:
        return {judgement.id: judgement for judgement in map(Judgement.from_dict, _rows(path))}
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} cannot be read; run the judge recipe again, it asks nothing twice.") from None


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
    try:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError):
        raise DataError(f"{path} cannot be read; run the judge recipe again, it asks nothing twice.") from None


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
