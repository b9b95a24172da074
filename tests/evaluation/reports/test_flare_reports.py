"""Reports among FLARE's tasks: the same numbers as alone, GREEN beside them, and models beside each other."""

import json
from pathlib import Path

import pytest

from medtune.data.sample import Message, Sample
from medtune.evaluation.evaluation import evaluate, verdict_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.reports.green import read_green
from medtune.evaluation.reports.scores import score_reports
from medtune.reporting.comparison import compare
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run
from tests.evaluation.ranked import save_run
from tests.evaluation.reports.test_protocol import GREEN, RIGHT, STRONG, WEAK


def samples() -> list[Sample]:
    rows = [("report_generation", "IU_XRay", right) for right in RIGHT]
    rows += [("counting", "cells", str(number)) for number in (3, 7, 12)]
    return [
        Sample(f"q{at}", (f"{at}.png",), (Message("user", "?"),), {"task": task, "dataset": name, "answer": answer})
        for at, (task, name, answer) in enumerate(rows)
    ]


def scored(reports: list[str], counts: list[str], graded: bool = True, name: str = "x"):
    rows = []
    for query, text in zip(plan_queries(samples(), ["flare"]), [*reports, *counts], strict=True):
        is_report = query.meta["flare_task"] == "report_generation"
        more = {"green": read_green(GREEN).to_dict()} if graded and is_report else {}
        rows.append(Prediction(query.id, "flare", query.prompt, text, query.references, {**query.meta, **more}))
    return evaluate(samples(), rows, {}, name=name, protocols=["flare"], resamples=20), rows


def test_reports_have_the_numbers_of_the_reports_alone() -> None:
    done, _ = scored(WEAK, ["3", "x", "11"], graded=False)
    flare = done.results["protocols"]["flare"]
    for name, number in score_reports(list(zip(WEAK, RIGHT, strict=True)), resamples=5).items():
        assert flare["overall"][f"report_{name}"]["value"] == pytest.approx(number.value), name
    assert flare["attributes"]["IU_XRay/report_generation"]["main"]["value"] == pytest.approx(
        flare["overall"]["report_rouge_l"]["value"]
    )
    assert flare["attributes"]["IU_XRay/report_generation"]["unread"]["value"] == 0.25
    assert flare["overall"]["report_green"]["value"] is None
    assert done.results["vocabulary"]["flare"]["asked_not_scored"] == {}
    written = json.dumps([done.results, verdict_rows(done.verdicts)])
    assert "Zzyzx" not in written and "cardiomegaly; pleural effusion" in written


def test_green_is_read_from_the_graded_answers() -> None:
    done, _ = scored(WEAK, ["3", "7", "12"])
    assert done.results["protocols"]["flare"]["overall"]["report_green"]["value"] == 0.75


def test_the_page_has_models_beside_each_other_and_scatter_plots(tmp_path: Path) -> None:
    runs = []
    for name, reports, counts in (("base", WEAK, ["30", "x", "1"]), ("tuned", STRONG, ["3", "8", "11"])):
        done, rows = scored(reports, counts, name=name)
        results = {**done.results, "provenance": {"versions": {}, "seed": 0, "config": {}, "config_hash": "ab"}}
        runs.append(save_run(tmp_path / name, results, done.verdicts, rows))
    found = compare(read_run(runs[0]), read_run(runs[1]), resamples=20)["flare"]
    assert found["report_rouge_l"]["value"] > 0 and found["report_findings_f1"]["value"] > 0
    page = write_report(runs, tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for title in (
        "FLARE: models beside each other",
        "Predicted against right values: cells/counting",
        "GREEN beside ROUGE-L",
        "Reports, ROUGE-L",
    ):
        assert title in page
    assert "boxes on sample images" not in page and "Zzyzx" not in page
