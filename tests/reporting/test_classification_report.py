"""Two made-up models on classification sets, on the page and in the files beside it."""

import csv
import json
import random
from pathlib import Path

import pytest

from medtune.data.labels import Target, label_text
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.protocols.registry import plan_queries
from medtune.reporting.comparison import compare, compare_over_seeds
from medtune.reporting.confusions import confusion_tables
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run
from medtune.reporting.seeds import differences_section
from medtune.reporting.summary import summary_table
from tests.evaluation.classes import BREAST, CHEST, MAJORITY, RETINA, answered, class_question
from tests.evaluation.ranked import save_run


def questions():
    rng = random.Random(0)
    sets = [("breast", "multi_class", BREAST), ("retina", "ordinal", RETINA)]
    found = [class_question(Target(*one, (rng.randrange(len(one[2])),)), n) for one in sets for n in range(30)]
    some = [tuple(sorted(rng.sample(range(3), rng.randrange(3)))) for _ in range(30)]
    return found + [class_question(Target("chest", "multi_label", CHEST, one), n) for n, one in enumerate(some)]


def write_run(folder: Path, name: str, skill: float) -> Path:
    rng, rows = random.Random(name), []
    for query in plan_queries(questions(), ["classification"], swapped=["classification"]):
        meta = query.meta
        guess = label_text(rng.sample(meta["classes"], 1))
        text = meta["answer"] if not meta["swapped"] and rng.random() < skill else rng.choice([guess, "<b>odd</b>"])
        rows.append(answered(query, text, [rng.random() for _ in meta["classes"]]))
    options = {"protocols": ["classification"], "swapped": ["classification"], "resamples": 50}
    done = evaluate(questions(), rows, MAJORITY, name=name, **options)
    return save_run(folder, done.results, done.verdicts, rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root / "base", "base", 0.3), write_run(root / "tuned", "tuned", 0.9)]


def test_the_page(runs, tmp_path, open_image):
    page = write_report(runs, tmp_path / "r.html", samples=3, open_image=lambda path: open_image("a/1.png")).read_text()
    for text in (
        "Classification, macro-F1", "Macro-F1, mean over sets", "Out of vocabulary", "per label", "κ ", "AUC ",
        "chest: effusion", "Set breast", "Radar chart", "Worst cases",
    ):  # fmt: skip
        assert text in page, text
    assert "Instruction retention" not in page and "<b>odd" not in page and "&lt;b&gt;odd" in page
    with (tmp_path / "results.csv").open() as file:
        metrics = {row["metric"] for row in csv.DictReader(file)}
    assert metrics >= {"f1_macro", "label_accuracy", "quadratic_kappa", "auc_macro", "out_of_vocabulary", "majority_f1"}


def test_classes_with_few_images_are_named_beside_macro_f1_on_the_page_and_in_the_terminal(runs, tmp_path):
    page = write_report(runs, tmp_path / "r.html").read_text()
    numbers = read_run(runs[0]).results["protocols"]["classification"]
    caution = numbers["attributes"]["retina"]["f1_macro"]["caution"]
    assert "none (n=" in caution and numbers["attributes"]["retina"]["f1_macro"]["interval"] is None
    assert caution in page and '<small class="caution">' in page
    difference = compare(*(read_run(folder) for folder in runs), resamples=20)["classification"]["f1_macro"]
    assert difference["interval"] is None and "retina: mild (n=" in difference["caution"]
    table = summary_table([read_run(folder).results for folder in runs])
    assert "Classification, macro-F1 rests on few images of " in table


def test_the_difference_in_f1_is_paired(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("medtune.evaluation.metrics.RARE_IMAGES", 0)
    write_report(runs, tmp_path / "r.html")
    results = json.loads((tmp_path / "results.json").read_text())
    difference = results["differences"]["tuned"]["classification"]
    base, tuned = (one["protocols"]["classification"]["overall"]["f1_macro"]["value"] for one in results["runs"])
    assert difference["f1_macro"]["value"] == pytest.approx(tuned - base) and difference["f1_macro"]["interval"][0] > 0
    assert difference["mcnemar"]["p_value"] < 0.001
    assert "Macro-F1, mean over sets: Δ" in (tmp_path / "r.html").read_text()


def test_confusion_is_in_the_order_of_the_classes_and_by_label_where_there_are_several(runs):
    run = read_run(runs[0])
    groups = {group.attribute: group.tables[0].table for group in confusion_tables([run])}
    assert set(groups) == {"breast", "retina", "chest: effusion", "chest: mass", "chest: hernia"}
    assert groups["retina"].gold == groups["retina"].answered == RETINA
    assert groups["chest: mass"].gold == ("present", "absent") and all(table.n == 30 for table in groups.values())
    numbers = run.results["protocols"]["classification"]["attributes"]["breast"]
    right = sum(groups["breast"].counts[place][place] for place in range(2))
    assert right == round(30 * numbers["accuracy"]["value"])
    assert sum(groups["breast"].unread) == round(30 * numbers["out_of_vocabulary"]["value"]) > 0


def test_the_terminals_table(runs):
    text = summary_table([read_run(run).results for run in runs])
    assert "macro-F1" in text and "Retention" not in text and "majority (train)" in text


def test_sets_of_other_classes_are_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    results = json.loads((runs[1] / "results.json").read_text())
    results["vocabulary"]["sets"]["breast"]["classes"].append("cyst")
    (other / "results.json").write_text(json.dumps({**results, "name": "other"}))
    (other / "verdicts.csv").write_text((runs[1] / "verdicts.csv").read_text())
    write_report([runs[0], other], tmp_path / "page/r.html")
    differences = json.loads((tmp_path / "page/results.json").read_text())["differences"]["other"]
    assert differences == {"skipped": {"classification": "the sets have different classes"}}


def test_seeds_are_paired_and_their_images_drawn_together(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("medtune.evaluation.metrics.RARE_IMAGES", 0)

    def seeds(name, skill):
        return {seed: read_run(write_run(tmp_path / f"{name}{seed}", f"{name}{seed}", skill)) for seed in (3, 4, 5)}

    def overall(run, name):
        return run.results["protocols"]["classification"]["overall"][name]["value"]

    base, tuned = seeds("base", 0.3), seeds("tuned", 0.6)
    found = compare_over_seeds(base, {**tuned, 9: tuned[3]})["classification"]
    for number, name in ((found, "accuracy_macro"), (found["f1_macro"], "f1_macro")):
        apart = {str(seed): overall(tuned[seed], name) - overall(base[seed], name) for seed in base}
        assert number["by_seed"] == pytest.approx(apart)
        assert number["value"] == pytest.approx(sum(apart.values()) / 3)
        assert number["n"] == 3 * 90
        low, high = number["interval"]
        assert low < number["value"] < high
    alone = compare(base[3], tuned[3])["classification"]
    assert compare_over_seeds({3: base[3]}, {3: tuned[3]})["classification"]["interval"] == alone["interval"]
    # the same answers three times say nothing new of the images
    thrice = compare_over_seeds(dict.fromkeys(base, base[3]), dict.fromkeys(base, tuned[3]))["classification"]
    assert thrice["interval"] == pytest.approx(alone["interval"])
    assert thrice["f1_macro"]["interval"] == pytest.approx(alone["f1_macro"]["interval"])
    section = differences_section({"tuned": {"classification": found}}, "base")
    assert section.table.columns == ["Classification", "Classification, macro-F1"]
    assert section.table.rows[0].cells[1].value == f"{100 * found['f1_macro']['value']:+.1f}"
    assert differences_section({}, "base") is None
