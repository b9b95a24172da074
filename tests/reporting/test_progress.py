"""The question set of a run in the report."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from medtune.reporting.plots import colour
from medtune.reporting.progress import monitored_names, progress_sections, question_curves
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_runs

NAME = "open/accuracy_macro"


def line(step: int, value: float, low: float, high: float) -> dict:
    return {
        "step": step,
        NAME: value,
        "open/unread": 0.1,
        "intervals": {NAME: [low, high]},
        "answers": [{"id": "q1/open", "answer": f"<b>a cell at {step}</b>"}],
    }


@pytest.fixture
def loaded(runs):
    held = read_runs(runs, {}, with_answers=False)
    measured = replace(held[1], metrics=[line(10, 0.2, 0.1, 0.3), {"step": 11, "loss": 1.0}, line(20, 0.6, 0.5, 0.75)])
    falling = replace(held[2], metrics=[line(10, 0.5, 0.4, 0.6), line(20, 0.4, 0.3, 0.5)])
    return [held[0], measured, falling]


def test_a_run_without_questions_has_no_section(loaded):
    assert progress_sections(loaded[:1], answers=True) == []


def test_the_table_has_the_last_value_its_interval_and_the_best(loaded):
    (section,) = progress_sections(loaded, answers=False)
    assert section.table is not None and section.table.columns == [NAME] == monitored_names(loaded)
    first, second = section.table.rows
    assert (first.label, first.cells[0].value, first.cells[0].span) == (loaded[1].name, "0.600", "[0.500, 0.750]")
    assert second.cells[0].value == "0.400" and second.cells[0].note == "highest 0.500 at step 10"


def test_curves_have_a_line_a_run_and_bars(loaded):
    svg = question_curves(loaded, [NAME])
    ElementTree.fromstring(svg)
    assert f"stroke: {colour(1)}" in svg and f"stroke: {colour(2)}" in svg and f"stroke: {colour(0)}" not in svg


def test_answers_stand_on_the_page_only_when_asked_for_and_escaped(loaded, runs, tmp_path):
    sections = progress_sections(loaded, answers=True)
    assert [one.title for one in sections[1:]] == [f"Answers during training: {one.name}" for one in loaded[1:]]
    assert [cell.value for cell in sections[1].table.rows[0].cells] == ["<b>a cell at 10</b>", "<b>a cell at 20</b>"]

    text = "".join(json.dumps(row) + "\n" for row in loaded[1].metrics)
    kept = (runs[1] / "metrics.jsonl").read_text()
    try:
        (runs[1] / "metrics.jsonl").write_text(text)
        quiet = write_report(runs[:2], tmp_path / "quiet" / "report.html").read_text()
        told = write_report(runs[:2], tmp_path / "told" / "report.html", samples=1).read_text()
    finally:
        (runs[1] / "metrics.jsonl").write_text(kept)
    assert "Question set during training" in quiet and "a cell at" not in quiet
    assert "&lt;b&gt;a cell at 10&lt;/b&gt;" in told and "<b>a cell" not in told


def test_metrics_of_the_method_are_no_metrics_of_the_question_set(loaded):
    """A method's name for a metric may have a slash too."""
    rows = [{**line(10, 0.2, 0.1, 0.3), "validation_rewards/accuracies_macro": 0.7}]
    assert monitored_names([replace(loaded[1], metrics=rows)]) == [NAME]
