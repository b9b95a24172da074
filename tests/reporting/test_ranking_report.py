"""Response ranking on the page: three made-up models, one of which was not asked."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from medtune.evaluation.protocols.response_likelihood import ResponseLikelihood
from medtune.reporting import plots
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run
from medtune.reporting.sections import protocol_sections
from tests.evaluation.ranked import NAME, write_run

SHOWN = ResponseLikelihood.display.densities
KEYS = [column.key for column in SHOWN.columns]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    classified = {"protocols": ["classification"], "swapped": []}
    return [
        write_run(root / "vanilla", "<b>vanilla", 0.3),
        write_run(root / "tsm", "TSM", 0.0, classified),
        write_run(root / "vitask", "VITask", 2.0),
    ]


def test_the_page_has_densities_and_numbers_of_the_runs_that_were_asked(runs, tmp_path):
    page = write_report(runs, tmp_path / "r.html").read_text()
    section = page[page.index("<h2>Response ranking</h2>") : page.index("<h2>Protocols side by side</h2>")]
    assert section.count("VITask</th>") == 2 and "TSM" not in section and "<b>vanilla" not in page
    assert all(column.title in section for column in SHOWN.columns) and "Densities of the right response" in section
    overall = json.loads((runs[2] / "results.json").read_text())["protocols"][NAME]["overall"]
    assert f"<b>{100 * overall['auc_macro']['value']:.1f}</b>" in section
    assert f"<b>{overall['margin_macro']['value']:+.2f}</b>" in section
    assert "Response ranking: AUC" in page[page.index("How each number is computed") :]
    with (tmp_path / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "margin_macro"]
    assert {row["unit"] for row in rows} == {"nats per token"} and len(rows) == 2


def test_green_lies_clear_of_no_ranking_and_a_margin_is_in_nats(runs):
    by_run, by_set = protocol_sections([read_run(run) for run in runs])
    assert [row.label for row in by_run.table.rows] == ["<b>vanilla", "VITask"]
    tuned = dict(zip(KEYS, by_run.table.rows[1].cells, strict=True))
    assert tuned["auc"].tone == "good" and tuned["overlap"].tone == "" and tuned["overlap"].span == ""
    assert re.fullmatch(r"\+[12]\.\d\d to \+[23]\.\d\d", tuned["margin"].span)
    assert by_run.table.rows[1].colour == plots.colour(2)
    assert [row.label for row in by_set.table.rows] == ["breast", "retina"] and by_set.first == "Set"
    assert by_set.table.rows[0].cells[1].note.startswith("overlap ") and by_set.table.rows[0].cells[0].n == "n=40"


def test_without_likelihoods_there_is_no_section(runs):
    assert protocol_sections([read_run(runs[1])]) == []


def test_the_chart_has_a_panel_for_each_run_and_is_the_same_twice(runs):
    flat, steep = [0.05] * 20, [0.0] * 19 + [1.0]
    densities = {f"run {n}": (steep, flat) for n in range(5)}
    places = {name: place for place, name in enumerate(densities)}
    svg = plots.density_chart(densities, places)
    assert svg == plots.density_chart(densities, places)
    ids = [node.get("id", "") for node in ElementTree.fromstring(svg).iter()]
    assert sum(one.startswith("axes_") for one in ids) == 5
    assert plots.colour(4) in svg and "own image" in svg
