"""WBCAtt (Tsutsui et al. 2023): 10,298 white blood cells with 11 attributes and their type, as its owners ship it.

Reports and questions follow InstFree (Kang et al. 2026), section 4.2, with the details of its published code.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medtune.data.multiple_choice import fixed_order, open_question
from medtune.data.reports import attribute_report
from medtune.data.sample import Message, Sample, report_sample
from medtune.data.tables import read_table
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError

ATTRIBUTES = (
    "cell_size",
    "cell_shape",
    "nucleus_shape",
    "nuclear_cytoplasmic_ratio",
    "chromatin_density",
    "cytoplasm_vacuole",
    "cytoplasm_texture",
    "cytoplasm_colour",
    "granularity",
    "granule_type",
    "granule_colour",
    "label",
)
SPLITS = ("train", "val", "test")
ABSENT = "nil"
"""Written where an attribute does not apply, such as the colour of granules that are not there."""

Questions = Literal["all", "one"]


@dataclass(frozen=True)
class Cell:
    """One annotated image: its path below the image root, and its value for each of :data:`ATTRIBUTES`."""

    image: str
    values: dict[str, str]

    def applicable(self) -> list[str]:
        """Return the attributes that apply to this cell, in the published order."""
        return [name for name in ATTRIBUTES if self.values[name] != ABSENT]


def read_cells(path: Path) -> list[Cell]:
    """Read one annotation table.

    Raises:
        DataError: for a missing column, an empty cell, or an image that is annotated twice.
    """
    cells: list[Cell] = []
    lines: dict[str, str] = {}
    for where, row in read_table(path, ["path", *ATTRIBUTES]):
        for column in ("path", *ATTRIBUTES):
            if not row[column]:
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        if row["path"] in lines:
            raise DataError(f"{where}: the image {row['path']} was annotated before, in {lines[row['path']]}.")
        lines[row["path"]] = where
        cells.append(Cell(row["path"], {name: row[name] for name in ATTRIBUTES}))
    if not cells:
        raise DataError(f"{path} holds no row; give the annotation table as its owners ship it.")
    return cells


def cell_report(cell: Cell) -> str:
    """Return the report of a cell, such as "big cell size, round cell shape, granularity, Neutrophil"."""
    return attribute_report(cell.values, value_only=("label",))


def training_values(cells: Sequence[Cell]) -> dict[str, dict[str, int]]:
    """Return how often each applicable value of each attribute occurs, the most frequent first."""
    table = {}
    for name in ATTRIBUTES:
        counts = Counter(cell.values[name] for cell in cells if cell.values[name] != ABSENT)
        table[_spoken(name)] = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return table


def prepare_wbcatt(
    annotations: str,
    questions: Questions = "all",
    seed: int = 0,
    limit_train: int | None = None,
    limit_questions_per_attribute: int | None = None,
) -> Prepared:
    """Turn the three annotation tables into reports and questions.

    Splits: ``train``, ``val_reports`` and ``test_reports`` hold image-report pairs, ``val`` and ``test`` questions.
    The options of a question are all values that its attribute has in training, in alphabetical order, "yes" before
    "no". What the training split holds most often is written beside them as ``training_majority``.

    Args:
        annotations: folder of ``pbc_attr_v1_{train,val,test}.csv``.
        questions: ``all`` asks every attribute that applies to an image; ``one`` asks one of them at random, drawn as
            in the published code: one generator seeded once, validation rows first, the first of the shuffled list.
        seed: of all draws.
        limit_train: keep this many training reports, drawn at random; the majority is of the whole split anyway.
        limit_questions_per_attribute: keep this many questions of each attribute in each split, drawn at random, so
            that the values stay as frequent as they are.

    Raises:
        ConfigError: for an unknown kind of questions or a limit below 1.
        DataError: if a table is absent or wrong, or an image stands in two splits.
    """
    _check_options(questions, limit_train, limit_questions_per_attribute)
    inputs = {split: Path(annotations).expanduser() / f"pbc_attr_v1_{split}.csv" for split in SPLITS}
    cells = {split: read_cells(path) for split, path in inputs.items()}
    _check_leaks(cells)
    values = training_values(cells["train"])
    splits = {"train": _limited(_reports("train", cells["train"]), limit_train, seed, "train")}
    draw = random.Random(seed)
    for split in ("val", "test"):
        splits[f"{split}_reports"] = _reports(split, cells[split])
        asked = list(_questions(split, cells[split], values, draw if questions == "one" else None))
        splits[split] = _limited_per_attribute(asked, limit_questions_per_attribute, seed, split)
    limits = {"limit_train": limit_train, "limit_questions_per_attribute": limit_questions_per_attribute}
    return Prepared(
        name="wbcatt",
        splits=splits,
        inputs=inputs,
        options={"questions": questions, "seed": seed, **limits},
        tables={"training_majority": {name: next(iter(counts)) for name, counts in values.items() if counts}},
        summary={"training_values": values, "questions": {s: _per_attribute(splits[s]) for s in ("val", "test")}},
    )


def _check_options(questions: str, *limits: int | None) -> None:
    if questions not in ("all", "one"):
        raise ConfigError(f"questions: {questions!r} is unknown; use 'all' (complete) or 'one' (official).")
    if any(limit is not None and limit < 1 for limit in limits):
        raise ConfigError("limit_train and limit_questions_per_attribute must be at least 1, or null for no limit.")


def _check_leaks(cells: dict[str, list[Cell]]) -> None:
    home: dict[str, str] = {}
    for split, rows in cells.items():
        for cell in rows:
            if home.setdefault(cell.image, split) != split:
                raise DataError(
                    f"The image {cell.image} is in both {home[cell.image]} and {split}; keep it in one of them."
                )


def _reports(split: str, cells: Sequence[Cell]) -> list[Sample]:
    return [report_sample(_sample_id(split, cell), (cell.image,), cell_report(cell)) for cell in cells]


def _questions(
    split: str, cells: Sequence[Cell], values: dict[str, dict[str, int]], draw: random.Random | None
) -> Iterator[Sample]:
    for cell in cells:
        names = cell.applicable()
        if draw is not None:
            draw.shuffle(names)
            names = names[:1]
        for name in names:
            yield _question(f"{_sample_id(split, cell)}/{name}", cell, name, fixed_order(list(values[_spoken(name)])))


def _question(id: str, cell: Cell, name: str, options: list[str]) -> Sample:
    attribute, answer = _spoken(name), cell.values[name]
    if answer not in options:
        raise DataError(f"{id}: the value {answer!r} of {attribute!r} does not occur in training; correct the table.")
    messages = (Message("user", open_question(attribute)), Message("assistant", answer))
    return Sample(id, (cell.image,), messages, {"attribute": attribute, "options": options, "answer": answer})


def _limited(samples: list[Sample], limit: int | None, seed: int, stream: str) -> list[Sample]:
    """Keep a random choice of samples, in their old order."""
    if limit is None or limit >= len(samples):
        return samples
    kept = random.Random(f"{seed}/{stream}").sample(range(len(samples)), limit)
    return [samples[index] for index in sorted(kept)]


def _limited_per_attribute(samples: list[Sample], limit: int | None, seed: int, split: str) -> list[Sample]:
    groups: dict[str, list[Sample]] = {_spoken(name): [] for name in ATTRIBUTES}
    for sample in samples:
        groups[sample.meta["attribute"]].append(sample)
    kept = {s.id for name, group in groups.items() for s in _limited(group, limit, seed, f"{split}/{name}")}
    return [sample for sample in samples if sample.id in kept]


def _per_attribute(samples: Sequence[Sample]) -> dict[str, int]:
    return dict(Counter(sample.meta["attribute"] for sample in samples))


def _sample_id(split: str, cell: Cell) -> str:
    return f"{split}/{Path(cell.image).stem}"


def _spoken(name: str) -> str:
    return name.replace("_", " ")
