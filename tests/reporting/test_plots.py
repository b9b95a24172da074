import copy
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from medtune.reporting.curves import training_curves
from medtune.reporting.plots import accuracy_chart, colour, radar_chart
from medtune.reporting.runs import Run, read_run


@pytest.fixture
def loaded(runs):
    return [read_run(run) for run in runs]


def strokes(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [node.get("style", "") for node in root.iter("{http://www.w3.org/2000/svg}path")]


def test_the_radar_chart_has_a_line_for_each_run_and_two_rings(loaded):
    svg = radar_chart(loaded, "open")
    styles = strokes(svg)
    for place in range(4):
        assert any(f"stroke: {colour(place)}" in style for style in styles)
    assert sum("stroke-dasharray" in style and "#888888" in style for style in styles) >= 2
    assert radar_chart(loaded, "open") == svg


def test_a_radar_needs_three_attributes_and_the_protocol(loaded):
    assert radar_chart(loaded, "description") is None
    results = copy.deepcopy(loaded[0].results)
    attributes = results["protocols"]["open"]["attributes"]
    results["protocols"]["open"]["attributes"] = dict(list(attributes.items())[:2])
    assert radar_chart([Run("x", loaded[0].folder, results)], "open") is None


def test_curves_only_of_runs_that_were_trained(loaded):
    assert training_curves(loaded[:1]) is None
    styles = strokes(training_curves(loaded))
    assert not any(f"stroke: {colour(0)}" in style for style in styles)
    assert all(any(f"stroke: {colour(place)}" in style for style in styles) for place in (1, 2, 3))


def test_a_name_with_dollars_is_no_formula(loaded):
    runs = [Run("$\\frac$ & <b>", one.folder, one.results, metrics=one.metrics) for one in loaded[1:2]]
    for svg in (radar_chart(runs, "open"), accuracy_chart(runs), training_curves(runs)):
        ElementTree.fromstring(svg)


def test_the_global_style_is_untouched(loaded):
    before = dict(matplotlib.rcParams)
    accuracy_chart(loaded)
    assert dict(matplotlib.rcParams) == before


def test_no_protocol_no_chart(loaded):
    empty = Run("x", loaded[0].folder, {**loaded[0].results, "protocols": {}})
    assert accuracy_chart([empty]) is None
