"""Rendered cells' attributes: consistent, even, independent, and in WBCAtt's proportions where asked."""

import random
from collections import Counter

import pytest

from medtune.datasets.cells.attributes import (
    ABSENT,
    ATTRIBUTES,
    asked_attributes,
    cell_report,
    options,
    sample_attributes,
)


@pytest.mark.parametrize("natural", [0.0, 0.5, 1.0])
def test_granules_agree_with_one_another(natural: float) -> None:
    rng = random.Random(0)
    for _ in range(500):
        cell = sample_attributes(rng, natural)
        assert list(cell) == list(ATTRIBUTES)
        assert all(value in ATTRIBUTES[name] for name, value in cell.items())
        absent = [cell[name] == ABSENT for name in ("granule type", "granule colour")]
        assert absent == [cell["granularity"] == "no"] * 2
        assert (cell["label"] in ("Lymphocyte", "Monocyte")) == (cell["granularity"] == "no")


def test_independent_cells_are_even() -> None:
    rng = random.Random(1)
    cells = [sample_attributes(rng) for _ in range(4000)]
    for name in ATTRIBUTES:
        asked = Counter(cell[name] for cell in cells if cell[name] != ABSENT)
        share = 1 / len(options(name))
        for value in options(name):
            assert asked[value] / asked.total() == pytest.approx(share, abs=0.16 if name == "granularity" else 0.04)


def test_one_attribute_does_not_tell_another() -> None:
    rng = random.Random(2)
    cells = [sample_attributes(rng) for _ in range(4000)]
    free = [name for name in ATTRIBUTES if name not in ("granularity", "granule type", "granule colour", "label")]
    for given in free:
        for asked in free:
            if given == asked:
                continue
            for value in options(given):
                seen = Counter(cell[asked] for cell in cells if cell[given] == value)
                assert seen.most_common(1)[0][1] / seen.total() < 1 / len(options(asked)) + 0.09, (given, asked)


def test_natural_cells_follow_the_annotations() -> None:
    rng = random.Random(3)
    cells = [sample_attributes(rng, 1.0) for _ in range(4000)]
    labels = Counter(cell["label"] for cell in cells)
    # 1984, 1876, 829, 744 and 736 of the 6169 training images.
    for label, count in zip(ATTRIBUTES["label"], (1984, 1876, 829, 744, 736), strict=True):
        assert labels[label] / 4000 == pytest.approx(count / 6169, abs=0.03)
    low = sum(cell["nuclear cytoplasmic ratio"] == "low" for cell in cells)
    assert low / 4000 == pytest.approx(5424 / 6169, abs=0.03)


def test_options_leave_out_what_is_absent() -> None:
    assert options("granule colour") == ["pink", "purple", "red"]
    assert options("cytoplasm vacuole") == ["yes", "no"]
    bare = sample_attributes(random.Random(0)) | {
        "granularity": "no",
        "granule type": ABSENT,
        "granule colour": ABSENT,
    }
    assert not {"granule type", "granule colour"} & set(asked_attributes(bare))
    assert "granul" not in cell_report(bare)


def test_report_is_written_as_those_of_the_real_images() -> None:
    values = (
        "big",
        "round",
        "segmented-bilobed",
        "low",
        "densely",
        "no",
        "clear",
        "light blue",
        "yes",
        "small",
        "pink",
    )
    cell = dict(zip(ATTRIBUTES, (*values, "Neutrophil"), strict=True))
    assert cell_report(cell) == (
        "big cell size, round cell shape, segmented-bilobed nucleus shape, low nuclear cytoplasmic ratio, "
        "densely chromatin density, clear cytoplasm texture, light blue cytoplasm colour, granularity, "
        "small granule type, pink granule colour, Neutrophil"
    )
