"""The protocol ``report_generation``: from question file to results, differences and the page."""

import csv
import io
import json
from pathlib import Path

import pytest

from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.evaluation.evaluation import evaluate, metric_rows, to_csv, verdict_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.protocols.report_generation import ReportGeneration
from medtune.evaluation.reports.green import read_green
from medtune.evaluation.reports.scores import score_reports
from medtune.reporting.comparison import compare
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run
from tests.evaluation.ranked import save_run

NAME = "report_generation"
SECRET = "Zzyzx was seen on Tuesday."
RIGHT = [
    "The heart is enlarged. Small pleural effusion.",
    "The lungs are clear.",
    "Left pacemaker. No pneumothorax.",
    "Bibasilar atelectasis. " + SECRET,
]
WEAK = ["The heart is normal.", "The lungs are clear.", "", "Calcified granuloma."]
STRONG = [RIGHT[0], "The lungs are clear.", "Pacemaker in place.", "Bibasilar atelectasis."]
GREEN = "[Clinically Significant Errors]:\n(b) Missing: 1. x\n\n[Matched Findings]:\n3. a; b; c"


def questions(groups: str = "aabb") -> list[Sample]:
    return [
        Sample(
            f"r{at}",
            (f"{at}a.png", f"{at}b.png"),
            (Message("user", "<image><image>Write the report."), Message("assistant", right)),
            {"dataset": group},
        )
        for at, (right, group) in enumerate(zip(RIGHT, groups, strict=True))
    ]


def answered(texts: list[str], replies: list[str | None] | None = None) -> list[Prediction]:
    queries = plan_queries(questions(), [NAME])
    return [
        Prediction(query.id, NAME, query.prompt, text, query.references, {**query.meta, **graded})
        for query, text, reply in zip(queries, texts, replies or [None] * len(texts), strict=True)
        for graded in [{} if reply is None else {"green": read_green(reply).to_dict()}]
    ]


def scored(texts: list[str], replies: list[str | None] | None = None, name: str = "x"):
    return evaluate(questions(), answered(texts, replies), {}, name=name, protocols=[NAME], resamples=30)


def test_a_question_is_asked_as_it_is_with_every_image() -> None:
    (query,) = plan_queries(questions()[:1], [NAME])
    assert query.prompt == "<image><image>Write the report." and len(query.sample.images) == 2
    assert query.references == (RIGHT[0],) and query.meta["attribute"] == "a"
    with pytest.raises(DataError, match="'r0': a report needs an image and a user turn"):
        plan_queries([Sample("r0", (), questions()[0].messages, {})], [NAME])
    with pytest.raises(DataError, match="'r0': meta.attribute, the group"):
        plan_queries([Sample("r0", ("a",), questions()[0].messages, {"dataset": 3})], [NAME])


def test_the_numbers_are_those_of_the_pairs() -> None:
    done = scored(WEAK)
    numbers = done.results["protocols"][NAME]
    alone = score_reports(list(zip(WEAK, RIGHT, strict=True)))
    for name, number in alone.items():
        assert numbers["overall"][f"{name}_micro"]["value"] == pytest.approx(number.value), name
    by_group = [numbers["attributes"][name]["rouge_l"]["value"] for name in "ab"]
    assert numbers["overall"]["rouge_l_macro"]["value"] == pytest.approx(sum(by_group) / 2)
    assert numbers["overall"]["unread"]["value"] == 0.25
    assert "green_micro" not in numbers["overall"]
    assert numbers["findings"]["cardiomegaly"]["recall"]["value"] == 0.0


def test_tables_have_the_findings_and_no_text_of_a_report() -> None:
    done = scored(WEAK)
    rows = verdict_rows(done.verdicts)
    assert [(row["gold"], row["predicted"], row["read"]) for row in rows] == [
        ("cardiomegaly; pleural effusion", "no finding", 1),
        ("no finding", "no finding", 1),
        ("device", "", 0),
        ("atelectasis", "granuloma", 1),
    ]
    written = to_csv(rows) + to_csv(metric_rows(done.results)) + json.dumps(done.results)
    assert "Zzyzx" not in written
    numbers = list(csv.DictReader(io.StringIO(to_csv(metric_rows(done.results)))))
    one = [
        row for row in numbers if row["group"] == "findings" and row["attribute"] == "device" and row["metric"] == "f1"
    ]
    assert len(one) == 1 and float(one[0]["value"]) == 0.0


def test_green_stands_beside_the_other_numbers_and_what_is_unread_is_counted() -> None:
    overall = scored(WEAK, [GREEN, "Fine.", None, GREEN]).results["protocols"][NAME]["overall"]
    assert overall["green_micro"]["value"] == 0.75 and overall["green_micro"]["n"] == 2
    assert overall["green_official_micro"]["value"] == pytest.approx((0.75 + 0 + 0.75) / 3)
    assert overall["green_unread_micro"]["value"] == pytest.approx(1 / 3)
    assert {"rouge_l_micro", "findings_f1_micro"} <= set(overall)
    broken = [Prediction(row.id, NAME, "", "x", (), {**row.meta, "green": 3}) for row in answered(WEAK)]
    with pytest.raises(DataError, match=f"prediction 'r0/{NAME}': meta.green holds no counts"):
        evaluate(questions(), broken, {}, name="x", protocols=[NAME], resamples=3)


def test_a_swap_costs_what_the_own_image_gave() -> None:
    queries = plan_queries(questions(), [NAME], swapped=[NAME])
    rows = [
        Prediction(query.id, NAME, query.prompt, "Nothing." if query.meta["swapped"] else RIGHT[at % 4], (), query.meta)
        for at, query in enumerate(queries)
    ]
    done = evaluate(questions(), rows, {}, name="x", protocols=[NAME], swapped=[NAME], resamples=30)
    swapped = done.results["protocols"][NAME]["swapped"]
    assert swapped["drop_macro"]["value"] == pytest.approx(1.0) and swapped["rouge_l_macro"]["value"] == 0.0


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    replies = [GREEN, GREEN, GREEN, "Fine."]
    made = []
    for name, texts in (("base", WEAK), ("tuned", STRONG)):
        done = scored(texts, replies, name)
        results = {**done.results, "provenance": {"versions": {}, "seed": 0, "config": {}, "config_hash": "ab"}}
        made.append(save_run(tmp_path / name, results, done.verdicts, answered(texts, replies)))
    return made


def test_two_models_are_compared_report_by_report(runs: list[Path]) -> None:
    first, second = map(read_run, runs)
    found = compare(first, second, resamples=30)[NAME]
    gain = second.results["protocols"][NAME]["overall"]["findings_f1_macro"]["value"]
    gain -= first.results["protocols"][NAME]["overall"]["findings_f1_macro"]["value"]
    assert found["findings_f1_macro"]["value"] == pytest.approx(gain) and gain > 0
    assert found["value"] > 0 and found["green_macro"]["value"] == 0.0


def test_the_page_shows_green_only_beside_rouge_and_findings(runs: list[Path], tmp_path: Path) -> None:
    page = write_report(runs, tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for title in ("Reports, ROUGE-L", "Reports, findings F1", "Reports, GREEN", "BLEU-4", "GREEN beside ROUGE-L"):
        assert title in page
    assert "Zzyzx" not in page
    headline = [column.key for column in ReportGeneration.display.headline]
    assert headline.index("green_macro") > headline.index("rouge_l_macro") and len(headline) == 3


def test_without_green_the_page_has_no_column_for_it(tmp_path: Path) -> None:
    done = scored(WEAK)
    results = {**done.results, "provenance": {"versions": {}, "seed": 0, "config": {}, "config_hash": "ab"}}
    run = save_run(tmp_path / "x", results, done.verdicts, answered(WEAK))
    page = write_report([run], tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "BLEU-4" in page and "GREEN, unread" not in page and "GREEN beside" not in page


def test_the_display_is_plain_data() -> None:
    shown = ReportGeneration.display
    assert Display.from_dict(json.loads(json.dumps(shown.to_dict()))) == shown
