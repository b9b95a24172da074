"""WBCAtt (Tsutsui et al. 2023): 10,298 white blood cells with 11 attributes and their type, as published.

Reports and questions follow InstFree (Kang et al. 2026), section 4.2, with the details of its published code.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medtune.data.multiple_choice import fixed_order, open_question
from medtune.data.reports import attribute_report
from medtune.data.sample import Sample, report_sample
from medtune.data.tables import read_table
from medtune.datasets.drawing import (
    check_limits,
    limited,
    limited_per_attribute,
    option_question,
    per_attribute,
    value_counts,
)
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
"""The value of an attribute that does not apply, such as the colour of granules in a cell without granules."""

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
            raise DataError(f"{where}: its image was annotated before, in {lines[row['path']]}.")
        lines[row["path"]] = where
        cells.append(Cell(row["path"], {name: row[name] for name in ATTRIBUTES}))
    if not cells:
        raise DataError(f"{path} holds no row; give the annotation table as its owners ship it.")
    return cells


def cell_report(cell: Cell) -> str:
    """Return the report of a cell, such as "big cell size, round cell shape, granularity, Neutrophil"."""
    return attribute_report(cell.values, value_only=("label",))


def training_values(cells: Sequence[Cell]) -> dict[str, dict[str, int]]:
    """Count each applicable value of each attribute; the most frequent come first."""
    table = {}
    for name in ATTRIBUTES:
        table[_spoken(name)] = value_counts(cell.values[name] for cell in cells if cell.values[name] != ABSENT)
    return table


def prepare_wbcatt(
    annotations: str,
    questions: Questions = "all",
    seed: int = 0,
    limit_train: int | None = None,
    limit_questions_per_attribute: int | None = None,
) -> Prepared:
    """Convert the three annotation tables to reports and questions.

    Splits: ``train``, ``val_reports`` and ``test_reports`` hold image-report pairs; ``val`` and ``test`` questions.
    The options of a question are all values that its attribute has in training, in alphabetical order, "yes" before
    "no". The most frequent values of the training split are written to ``training_majority``.

    Args:
        annotations: folder of ``pbc_attr_v1_{train,val,test}.csv``.
        questions: ``all`` asks every attribute that applies to an image; ``one`` asks one of them at random, drawn as
            in the published code: one generator seeded once, validation rows first, the first of the shuffled list.
        seed: seed of all draws.
        limit_train: keep this many training reports, drawn at random; the majority is still that of the whole split.
        limit_questions_per_attribute: keep this many questions of each attribute in each split, drawn at random, so
            that the frequencies of the values do not change much.

    Raises:
        ConfigError: for an unknown kind of questions or a limit below 1.
        DataError: if a table is absent or invalid, or an image is in two splits.
    """
    limits = {"limit_train": limit_train, "limit_questions_per_attribute": limit_questions_per_attribute}
    _check_questions(questions)
    check_limits(**limits)
    inputs = {split: Path(annotations).expanduser() / f"pbc_attr_v1_{split}.csv" for split in SPLITS}
    cells = {split: read_cells(path) for split, path in inputs.items()}
    _check_leaks(cells)
    values = training_values(cells["train"])
    splits = {"train": limited(_reports("train", cells["train"]), limit_train, seed, "train")}
    draw = random.Random(seed)
    for split in ("val", "test"):
        splits[f"{split}_reports"] = _reports(split, cells[split])
        asked = list(_questions(split, cells[split], values, draw if questions == "one" else None))
        splits[split] = limited_per_attribute(asked, limit_questions_per_attribute, seed, split)
    return Prepared(
        name="wbcatt",
        splits=splits,
        inputs=inputs,
        options={"questions": questions, "seed": seed, **limits},
        tables={"training_majority": {name: next(iter(counts)) for name, counts in values.items() if counts}},
        summary={"training_values": values, "questions": {s: per_attribute(splits[s]) for s in ("val", "test")}},
    )


def _check_questions(questions: str) -> None:
    if questions not in ("all", "one"):
        raise ConfigError(f"questions: {questions!r} is unknown; use 'all' (complete) or 'one' (official).")


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
    attribute = _spoken(name)
    return option_question(id, cell.image, attribute, open_question(attribute), options, cell.values[name])


def _sample_id(split: str, cell: Cell) -> str:
    return f"{split}/{Path(cell.image).stem}"


def _spoken(name: str) -> str:
    return name.replace("_", " ")
