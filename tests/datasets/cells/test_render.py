"""Rendered pictures: repeatable, quick, and showing what their attributes say."""

import random
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from medtune.datasets.cells.attributes import ATTRIBUTES, Attributes, sample_attributes
from medtune.datasets.cells.preview import contact_sheet
from medtune.datasets.cells.render import render_cell

_VALUES = "small,round,unsegmented-round,low,densely,no,clear,light blue,no,nil,nil,Monocyte"
_CELL = dict(zip(ATTRIBUTES, _VALUES.split(","), strict=True))


def _pictures(cell: Attributes, count: int = 24, size: int = 64) -> NDArray[np.float64]:
    rng = random.Random(0)
    return np.stack([np.asarray(render_cell(cell, rng, size), dtype=np.float64) for _ in range(count)])


def _dark(pictures: NDArray[np.float64]) -> float:
    return float((pictures[..., 1] < 100).mean())


def test_same_generator_same_picture() -> None:
    resamples = [np.asarray(render_cell(_CELL, random.Random(5))) for _ in range(2)]
    assert np.array_equal(*resamples)
    assert not np.array_equal(resamples[0], np.asarray(render_cell(_CELL, random.Random(6))))


def test_numpy_generators_are_taken_too() -> None:
    resamples = [np.asarray(render_cell(_CELL, np.random.default_rng(5))) for _ in range(2)]
    assert np.array_equal(*resamples)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_every_value_can_be_drawn_at_any_size(size: int) -> None:
    rng = random.Random(0)
    drawn: set[tuple[str, str]] = set()
    for _ in range(60):
        cell = sample_attributes(rng)
        picture = render_cell(cell, rng, size)
        assert (picture.mode, picture.size) == ("RGB", (size, size))
        drawn |= set(cell.items())
    assert drawn == {(name, value) for name, values in ATTRIBUTES.items() for value in values}


def test_size_and_ratio_change_the_dark_area() -> None:
    small_low = _dark(_pictures(_CELL))
    small_high = _dark(_pictures(_CELL | {"nuclear cytoplasmic ratio": "high"}))
    big_low = _dark(_pictures(_CELL | {"cell size": "big"}))
    assert small_high > 1.5 * small_low
    assert big_low > 1.5 * small_low


def test_resolution_does_not_change_the_cell() -> None:
    assert _dark(_pictures(_CELL, size=128)) == pytest.approx(_dark(_pictures(_CELL, size=64)), rel=0.15)


@pytest.mark.parametrize(("colour", "channel"), [("blue", 2), ("purple blue", 2), ("light blue", 0)])
def test_cytoplasm_colour_shows(colour: str, channel: int) -> None:
    pictures = _pictures(_CELL | {"cell size": "big", "cytoplasm colour": colour})
    y, x = np.mgrid[:64, :64] - 31.5
    ring = (np.hypot(x, y) > 17) & (np.hypot(x, y) < 19)
    mean = pictures[:, ring].mean(axis=(0, 1))
    assert int(mean.argmax()) == channel


def test_granules_and_texture_show_as_local_contrast() -> None:
    def contrast(cell: Attributes) -> float:
        pictures = _pictures(cell | {"cell size": "big"})[:, 16:48, 16:48]
        return float(np.abs(np.diff(pictures, axis=2)).mean())

    plain = contrast(_CELL)
    assert contrast(_CELL | {"cytoplasm texture": "frosted"}) > 1.2 * plain
    for kind in ("small", "round", "coarse"):
        cell = _CELL | {"granularity": "yes", "granule type": kind, "granule colour": "purple"}
        assert contrast(cell) > 1.15 * plain


def test_colours_are_those_of_the_real_crops() -> None:
    rng = random.Random(0)
    cells = [sample_attributes(rng, 1.0) for _ in range(150)]
    pictures = np.stack([np.asarray(render_cell(cell, rng), dtype=np.float64) for cell in cells])
    # Mean and deviation of 400 real training crops.
    assert pictures.mean(axis=(0, 1, 2)) == pytest.approx((200.3, 164.8, 176.3), abs=10)
    assert pictures.std(axis=(0, 1, 2)) == pytest.approx((58.1, 65.9, 29.3), abs=8)


def test_speed() -> None:
    rng = random.Random(0)
    cells = [sample_attributes(rng) for _ in range(60)]
    started = time.process_time()
    for cell in cells:
        render_cell(cell, rng)
    # About 500 a second on an idle core; the bound leaves room for a slow machine.
    assert 60 / (time.process_time() - started) > 60


def test_contact_sheet_has_a_row_per_cell_type() -> None:
    sheet = contact_sheet(columns=3, seed=1)
    assert sheet.size == (3 * 68 - 4, 5 * 68 - 4)
