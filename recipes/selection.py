"""Select the best part of instruction data by the scores of a selection model, overall or uniformly from groups.

tune run medtune/recipes/selection.py --config selection/biomed_clip data=runs/curate/conversations.jsonl \
  image_root=images choice.percent=50

Writes ``selected.jsonl`` (rows as they are in ``data``), ``scores.csv`` (score, rank, group, and whether a row was
taken), ``manifest.json`` and ``selection.html`` with the best and the worst rows (BioMed-VITAL, Sec. 3.2 and 4.2).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medtune.config import Component, instantiate, recipe
from medtune.curation.groups import grouped
from medtune.curation.scoring import Scoring, scored
from medtune.curation.selection import (
    Choice,
    Rows,
    find_rows,
    numbers_of,
    places_in_groups,
    ranks_of,
    taken_rows,
)
from medtune.data.folders import claim as claim_folder
from medtune.data.writing import Content, file_sha256, json_bytes, measured, write_files
from medtune.errors import ConfigError, DataError
from medtune.evaluation.provenance import commit, versions
from medtune.generation.answering import Skipped
from medtune.models.selector.sides import BORDERS, FEATURES
from medtune.training.runtime import Runtime

WRITES = ("selected.jsonl", "scores.csv", "manifest.json", "selection.html", BORDERS, FEATURES)
"""All files that a run writes into its folder."""
LISTED = 20
Table = NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """Groups of rows from which the best are taken uniformly.

    Attributes:
        count: number K of groups, made by k-means of the rows' features; the paper does not give it.
        table: CSV with ``id`` and ``group`` in place of k-means, such as ``groups.csv`` of the recipe curate.
        seed: of k-means.

    Raises:
        ValueError: Both or none are given, or the number is below 1.
    """

    count: int | None = None
    table: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.count is None) == (self.table is None) or (self.count is not None and self.count < 1):
            raise ValueError("clusters: give count (at least 1) or table, one of them")


@dataclass
class SelectionConfig:
    """Every key of a selection."""

    output_dir: str = field(metadata={"help": "folder of selected.jsonl, scores.csv and manifest.json"})
    data: str = field(metadata={"help": "JSON Lines of conversations"})
    choice: Choice = field(metadata={"help": "percent or count, turns (mean, first or least), seed"})
    weights: str | None = field(default=None, metadata={"help": "weights folder of a selector run"})
    scores: str | None = field(default=None, metadata={"help": "CSV with id and score in place of a model"})
    clusters: Clusters | None = field(default=None, metadata={"help": "take uniformly from groups: count or table"})
    features: Component | None = field(default=None, metadata={"help": "the encoders that the pairs were made with"})
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images"})
    context: bool = field(
        default=True, metadata={"help": "caption and mentions follow the answer; of stored features the pairs decide"}
    )
    batch_size: int = field(default=64, metadata={"help": "questions that are scored at once"})
    samples: int = field(default=20, metadata={"help": "best and worst rows on the page, with images; 0 shows none"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "rows and images that cannot be used; skip leaves them out and counts them"}
    )

    def __post_init__(self) -> None:
        """Refuse a run without scores, or with two kinds."""
        if (self.weights is None) == (self.scores is None):
            raise ValueError("give weights, a trained selection model, or scores, a table; one of them")
        if self.clusters is not None and self.clusters.count is not None and self.scores is not None:
            raise ValueError("scores alone give no features for k-means; give clusters.table")
        if self.batch_size < 1 or self.samples < 0:
            raise ValueError("batch_size must be at least 1, samples not negative")


@recipe(SelectionConfig)
def main(config: SelectionConfig) -> int:
    """Score the rows and select."""
    with Runtime.answering("selection", remote=False) as runtime:
        return select(config, runtime)


def select(config: SelectionConfig, runtime: Runtime) -> int:
    """Score together; process 0 selects and writes."""
    folder = Path(config.output_dir)
    skipped = Skipped(config.on_error == "skip")
    rows = runtime.on_rank0(lambda: find_rows(config.data, skipped.add, whole=config.weights is not None))
    if config.choice.count is not None and config.choice.count > len(rows):
        raise ConfigError(f"choice.count is {config.choice.count}, and {config.data} has {len(rows)} rows; lower it")
    runtime.on_rank0(lambda: claim_folder(folder, "selection", WRITES, _is_ours))
    if config.scores is not None:
        scores, table = numbers_of(config.scores, "score", rows.ids), None
    else:
        scores, table = scored(scoring_of(config), rows, runtime, skipped)
    if not runtime.is_main:
        return 0
    usable = np.flatnonzero(np.isfinite(scores))
    if not len(usable):
        raise DataError(f"no row of {config.data} has a score; see 'skipped' and the images")
    groups = group_of(config, rows, usable, table)
    taken = taken_rows(scores[usable], config.choice.total(len(usable)), groups, config.choice.seed)
    write(config, folder, rows, scores, usable, groups, taken, skipped)
    return 0


def group_of(
    config: SelectionConfig, rows: Rows, usable: NDArray[np.integer], table: NDArray[np.float32] | None
) -> NDArray[np.int64] | None:
    """Return the group of each usable row, numbered from 0; None without groups."""
    if config.clusters is None:
        return None
    if config.clusters.count is not None:
        assert table is not None
        if config.clusters.count > len(usable):
            raise ConfigError(
                f"clusters.count is {config.clusters.count}, and {len(usable)} rows have a score; lower it"
            )
        return grouped(table[usable], config.clusters.count, config.clusters.seed)
    assert config.clusters.table is not None
    values = numbers_of(config.clusters.table, "group", rows.ids)[usable]
    if not np.isfinite(values).all():
        raise DataError(f"{config.clusters.table}: a group is missing; give each row one.")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def scoring_of(config: SelectionConfig) -> Scoring:
    """Return what the rows are scored with."""
    assert config.weights is not None
    return Scoring(
        Path(config.output_dir),
        config.weights,
        None if config.features is None else instantiate(config.features),
        config.image_root,
        config.context,
        config.choice,
        config.batch_size,
        config.on_error == "skip",
        config.clusters is not None and config.clusters.count is not None,
        say,
    )


def write(
    config: SelectionConfig,
    folder: Path,
    rows: Rows,
    scores: Table,
    usable: NDArray[np.integer],
    groups: NDArray[np.int64] | None,
    taken: NDArray[np.bool_],
    skipped: Skipped,
) -> None:
    """Write the chosen rows, the table of all rows, the page and the manifest."""
    own = scores[usable]
    ranks = ranks_of(own)
    places = None if groups is None else places_in_groups(own, groups)
    chosen = usable[taken]
    lowest = float(own[taken].min())

    def lines() -> Iterator[bytes]:
        yield b"id,score,rank,group,rank_in_group,taken\n"
        at = dict(zip(usable.tolist(), range(len(usable)), strict=True))
        for row, name in enumerate(rows.ids):
            place = at.get(row)
            quoted = _quoted(name)
            if place is None:
                yield f"{quoted},,,,,0\n".encode()
                continue
            group = "," if groups is None or places is None else f"{groups[place]},{places[place] + 1}"
            yield f"{quoted},{float(own[place])!r},{ranks[place]},{group},{int(taken[place])}\n".encode()

    rule = _rule(config, len(usable), len(chosen), groups)
    manifest = {
        "rule": rule,
        "counts": {
            "rows": len(rows),
            "scored": len(usable),
            "unscored": len(rows) - len(usable),
            "taken": len(chosen),
            "refused_rows": sum(1 for name in skipped.reasons if ", line " in name),
        },
        "lowest_score_taken": lowest,
        "groups": None
        if groups is None
        else {
            str(group): {"rows": int((groups == group).sum()), "taken": int((groups[taken] == group).sum())}
            for group in range(int(groups.max()) + 1)
        },
        "skipped": dict(list(sorted(skipped.reasons.items()))[:LISTED]),
        "choice": {"percent": config.choice.percent, "count": config.choice.count, "turns": config.choice.turns},
        "model": None if config.weights is None else file_sha256(Path(config.weights) / "model.safetensors"),
        "data_sha256": file_sha256(rows.path),
        "versions": versions(),
        "commit": commit(),
    }
    page = page_of(config, manifest, rows, own, ranks, usable, groups, taken)
    files: dict[str, bytes | Content] = {
        "selected.jsonl": measured(lambda: rows.raw(chosen.tolist())),
        "scores.csv": measured(lines),
        "selection.html": page.encode(),
        "manifest.json": json_bytes(manifest),
    }
    write_files(folder, files, overwrite=True)
    print(f"{len(chosen)} of {len(rows)} rows taken, {len(rows) - len(usable)} without a score; {rule}; see {folder}")


def page_of(
    config: SelectionConfig,
    manifest: dict[str, Any],
    rows: Rows,
    scores: Table,
    ranks: NDArray[np.int64],
    usable: NDArray[np.integer],
    groups: NDArray[np.int64] | None,
    taken: NDArray[np.bool_],
) -> str:
    """Return the page; best and worst rows are shown if their conversations can be read."""
    from medtune.curation.selector_report import choice_sections
    from medtune.reporting.gallery import image_opener
    from medtune.reporting.report import render_sections

    def shown(place: int) -> dict[str, Any] | None:
        try:
            records = rows.records(int(usable[place]))
        except DataError:
            return None
        return {
            "id": rows.ids[usable[place]],
            "image": records[0].image,
            "score": float(scores[place]),
            "rank": int(ranks[place]),
            "group": None if groups is None else int(groups[place]),
            "taken": bool(taken[place]),
            "turns": [(record.question, record.answer) for record in records],
        }

    order = np.argsort(ranks)
    most = min(config.samples, len(order) // 2)
    best, worst = order[:most].tolist(), order[::-1][:most].tolist()
    top, low = ([row for row in map(shown, places) if row is not None] for places in (best, worst))
    opener = None if config.image_root is None else image_opener(config.image_root)
    sections = choice_sections(manifest, scores, manifest["lowest_score_taken"], top, low, opener)
    return render_sections(sections, title=f"Selection from {rows.path.name}")


def _rule(config: SelectionConfig, rows: int, taken: int, groups: NDArray[np.int64] | None) -> str:
    how = f"the best {config.choice.percent:g}%" if config.choice.percent is not None else f"the best {taken}"
    kind = {"mean": "the mean of its turns", "first": "its first turn", "least": "its worst turn"}[config.choice.turns]
    of = "" if config.scores is not None else f"; a conversation's score is that of {kind}"
    if groups is None:
        return f"{how} of {rows} scored rows{of}"
    return (
        f"{how} of {rows} scored rows, as evenly as possible from {int(groups.max()) + 1} groups, the best of each{of}"
    )


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"') else text


def _is_ours(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "selected.jsonl").is_file()


def say(text: str) -> None:
    """Print a message for the user."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
