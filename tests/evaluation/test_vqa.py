"""The protocol ``vqa``: free questions with an answer and no options, from a question file to the report."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from medtune.data.sample import Message, Sample
from medtune.data.writing import jsonl_bytes
from medtune.errors import DataError
from medtune.evaluation.evaluation import evaluate
from medtune.evaluation.llava_med import closed_hit, open_scores
from medtune.evaluation.prediction import Prediction, write_predictions
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries
from medtune.evaluation.result import is_metric
from medtune.recipes.evaluate import main
from medtune.reporting.comparison import compare, compare_over_seeds
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run

ROWS = [  # question type, kind, question, right answer, an answer
    ("PRES", "closed", "Is there a fracture?", "no", "The lungs are normal."),
    ("PRES", "closed", "Is there a mass?", "Yes", "Yes, in the left lung."),
    ("PRES", "closed", "Is there air?", "no", "No"),
    ("POS", "closed", "Left or right?", "left", "Left."),
    ("POS", "open", "Where is the mass?", "left upper lobe", "The left left lung"),
    ("MODALITY", "open", "Which modality?", "chest x-ray", "a chest X ray"),
    ("MODALITY", "closed", "CT or MRI?", "ct", "This is no MRI but a CT scan"),
]


def samples(rows=ROWS) -> list[Sample]:
    return [
        Sample(
            f"q{at}",
            (f"{at}.png",),
            (Message("user", asked),),
            {"attribute": kind, "answer": right, "answer_type": form},
        )
        for at, (kind, form, asked, right, _) in enumerate(rows)
    ]


def answers(questions, texts, **asked) -> list[Prediction]:
    queries = plan_queries(questions, ["vqa"], **asked)
    return [
        Prediction(query.id, "vqa", query.prompt, text, query.references, dict(query.meta))
        for query, text in zip(queries, texts, strict=True)
    ]


def scored(rows=ROWS, **more):
    questions = samples(rows)
    found = evaluate(questions, answers(questions, [row[-1] for row in rows]), {}, name="x", protocols=["vqa"], **more)
    return found, found.results["protocols"]["vqa"]


def values(numbers):
    return {name: (number["value"], number["n"]) for name, number in numbers.items()}


def test_both_definitions_with_the_number_of_questions_of_each():
    _, protocol = scored(resamples=20)
    overall = values(protocol["overall"])
    opened = [open_scores(row[4], row[3]) for row in ROWS if row[1] == "open"]
    for name, of in (("f1", 0), ("precision", 1), ("recall", 2)):
        assert overall[f"open_{name}_micro"] == (pytest.approx(sum(one[of] for one in opened) / 2), 2)
    # "normal" holds "no" for LLaVA-Med and cannot be read strictly; "Left." is right strictly and wrong for them
    assert overall["closed_accuracy_micro"] == (pytest.approx(4 / 5), 5)
    assert overall["closed_accuracy_strict_micro"] == (pytest.approx(3 / 5), 5)
    assert overall["closed_unread_micro"] == (pytest.approx(1 / 5), 5)
    assert sum(closed_hit(row[4], row[3]) for row in ROWS if row[1] == "closed") == 4


def test_each_question_type_has_its_numbers_and_macro_is_their_mean():
    _, protocol = scored(resamples=20)
    types = {name: values(numbers) for name, numbers in protocol["attributes"].items()}
    assert types["PRES"]["closed_accuracy"] == (1.0, 3) and types["PRES"]["closed_accuracy_strict"][0] == 2 / 3
    assert types["PRES"]["open_recall"] == (None, 0)
    assert types["POS"]["closed_accuracy"] == (0.0, 1) and types["POS"]["open_recall"] == (0.5, 1)
    strict = [types[name]["closed_accuracy_strict"][0] for name in ("PRES", "POS", "MODALITY")]
    macro = protocol["overall"]["closed_accuracy_strict_macro"]
    assert macro["value"] == pytest.approx(sum(strict) / 3) and "mean over the 3 attributes" in macro["definition"]
    assert "mean over the 2 attributes" in protocol["overall"]["open_f1_macro"]["definition"]


def test_every_number_is_a_card():
    """Value, unit, direction, n, and a definition of its own that says whose it is."""
    found, protocol = scored(resamples=20)
    assert found.results["vocabulary"]["vqa"] == {"open": 2, "closed": 5}
    numbers = protocol["overall"]
    assert all(is_metric(number) and number["n"] for number in numbers.values())
    assert len({number["definition"] for number in numbers.values()}) == len(numbers) == 12
    assert "LLaVA-Med" in numbers["open_recall_micro"]["definition"] + numbers["closed_accuracy_micro"]["definition"]
    assert "strictly" in numbers["closed_accuracy_strict_micro"]["definition"]


def test_verdicts_hold_no_text_of_an_answer():
    found, _ = scored(resamples=20)
    read = [verdict.predicted for verdict in found.verdicts]
    assert read == [None, "yes", "no", "left", "*", "chest x ray", "*"]


@pytest.mark.parametrize(
    ("right", "answer", "strict", "theirs"),
    [
        ("No", "no, there is none", 1, 1),
        ("no", "I do not know", 0, 1),
        ("yes", "no evidence, but yes", 0, 1),
        ("yes", "", 0, 0),
        ("yes", "There is", 0, 0),
        ("2", "Two", 1, 0),
        ("the liver", "Liver.", 1, 0),
        ("liver", "not the liver", 0, 1),
    ],
)
def test_closed_answers_are_read_twice(right, answer, strict, theirs):
    _, protocol = scored([("A", "closed", "?", right, answer)], resamples=20)
    numbers = protocol["overall"]
    assert numbers["closed_accuracy_strict_micro"]["value"] == strict
    assert numbers["closed_accuracy_micro"]["value"] == theirs


def test_without_a_type_yes_and_no_are_closed():
    questions = [replace(one, meta={"answer": one.meta["answer"]}) for one in samples()]
    found = evaluate(questions, answers(questions, ["no"] * 7), {}, name="x", protocols=["vqa"], resamples=20)
    assert found.results["vocabulary"]["vqa"] == {"open": 4, "closed": 3}
    assert list(found.results["protocols"]["vqa"]["attributes"]) == ["all"]


def test_the_answer_of_a_conversation_is_taken_where_meta_has_none():
    turns = (Message("user", "<image>\nWhat is it?"), Message("assistant", "A liver"))
    (query,) = plan_queries([Sample("a", ("a.png",), turns, {})], ["vqa"])
    assert (query.prompt, query.references, query.meta["answer_type"]) == (
        "<image>\nWhat is it?",
        ("A liver",),
        "open",
    )


def test_chinese_words_are_characters_and_their_closed_answers_are_read_strictly_alone():
    rows = [("A", "open", "什么器官？", "左肺", "右肺。"), ("A", "closed", "正常吗？", "不是", "不是。")]
    questions = [replace(one, meta={**one.meta, "language": "zh"}) for one in samples(rows)]
    found = evaluate(questions, answers(questions, [row[4] for row in rows]), {}, name="x", protocols=["vqa"])
    overall = values(found.results["protocols"]["vqa"]["overall"])
    assert overall["open_recall_micro"] == (0.5, 1)
    assert overall["closed_accuracy_strict_micro"] == (1.0, 1)
    assert overall["closed_accuracy_micro"] == (None, 0)


def test_swapped_images_cost_the_model_that_looks():
    questions = samples(ROWS[:3] * 4)
    queries = plan_queries(questions, ["vqa"], swapped=["vqa"])
    assert len(queries) == 24 and all(query.meta["swapped_with"] != query.meta["sample_id"] for query in queries[12:])
    looks = [query.meta.get("shown_answer") or query.meta["answer"] for query in queries]
    rows = answers(questions, looks, swapped=["vqa"])
    numbers = evaluate(questions, rows, {}, name="x", protocols=["vqa"], swapped=["vqa"], resamples=20).results
    swapped = numbers["protocols"]["vqa"]["swapped"]
    assert swapped["closed_drop_macro"]["value"] == pytest.approx(8 / 12) == swapped["answer_differs"]["value"]
    assert numbers["protocols"]["vqa"]["overall"]["closed_accuracy_strict_micro"]["value"] == 1


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"attribute": "A"}, "meta needs a text 'answer'"),
        ({"answer": "  "}, "meta needs a text 'answer'"),
        ({"answer": 3}, "meta needs a text 'answer'"),
        ({"answer": "a", "answer_type": "CLOSED"}, "must be 'open' or 'closed'"),
        ({"answer": "a", "language": "de"}, "must be 'en' or 'zh'"),
        ({"answer": "a", "attribute": ""}, "meta.attribute"),
    ],
)
def test_a_question_that_cannot_be_scored_is_named(meta, said):
    with pytest.raises(DataError, match=f"question 'q0'.*{said}"):
        plan_queries([replace(samples()[0], meta=meta)], ["vqa"])


def test_other_protocols_name_this_one_for_a_question_without_options():
    with pytest.raises(DataError, match="'q0'.*without options is asked by the protocol 'vqa'"):
        plan_queries(samples(), PROTOCOLS)


# -- from the command line to the page --------------------------------------------------------------------------------


def score(folder, name, rows, texts):
    """Evaluate answers by the recipe."""
    (folder / "test.jsonl").write_bytes(jsonl_bytes(samples(rows)))
    write_predictions(folder / name / "predictions.jsonl", answers(samples(rows), texts))
    told = [f"predictions={folder / name / 'predictions.jsonl'}", f"prepared_dir={folder}", f"output={folder / name}"]
    assert main(["--config", "evaluate/vqa", *told, "bootstrap_draws=20"]) in (0, None)
    return read_run(folder / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("vqa")
    for name, at in (("base", 4), ("tuned", 3)):
        score(root, name, ROWS, [row[at] for row in ROWS])
    return [root / "base", root / "tuned"]


def test_the_table_on_the_terminal_holds_n(runs, capsys):
    told = [f"predictions={runs[0] / 'predictions.jsonl'}", f"prepared_dir={runs[0].parent}", f"output={runs[0]}"]
    main(["--config", "evaluate/vqa", *told, "bootstrap_draws=50"])
    lines = capsys.readouterr().out.splitlines()
    heading = lines[: next(i for i, line in enumerate(lines) if line.startswith("---"))]
    assert "VQA, open recall" in heading[0] and "LLaVA-Med" in " ".join(heading)
    counts = next(line for line in lines if line.startswith("n (answers)"))
    assert counts.split()[2:6] == ["2", "2", "5", "5"]


def test_two_models_are_compared_in_every_definition(runs):
    found = compare(*(read_run(folder) for folder in runs), resamples=50)["vqa"]
    before, after = (json.loads((run / "results.json").read_text())["protocols"]["vqa"]["overall"] for run in runs)
    for name in ("open_f1_macro", "closed_accuracy_strict_macro", "closed_accuracy_macro"):
        assert found[name]["value"] == pytest.approx(after[name]["value"] - before[name]["value"]), name
    assert found["value"] == pytest.approx(after["open_recall_macro"]["value"] - before["open_recall_macro"]["value"])


def test_two_models_on_closed_questions_alone_are_compared(tmp_path):
    closed = [row for row in ROWS if row[1] == "closed"]
    first, second = (score(tmp_path, name, closed, [row[at] for row in closed]) for name, at in (("a", 4), ("b", 3)))
    found = compare(first, second, resamples=20)["vqa"]
    assert found["value"] is None and found["closed_accuracy_strict_macro"]["value"] > 0
    over_seeds = compare_over_seeds({0: first}, {0: second}, resamples=20)["vqa"]
    assert over_seeds["by_seed"] == {}
    difference = over_seeds["closed_accuracy_strict_macro"]
    assert difference["by_seed"]["0"] == pytest.approx(difference["value"])


def test_over_seeds_the_differences_of_the_seeds_are_those_of_the_mean(tmp_path):
    """Of question types of different size, in which the mean over types is not that over questions."""
    rows = [*ROWS, ("POS", "open", "Where?", "right", "left"), ("POS", "open", "Where?", "apex", "base")]
    first, second = (score(tmp_path, name, rows, [row[at] for row in rows]) for name, at in (("a", 4), ("b", 3)))
    found = compare_over_seeds({0: first}, {0: second}, resamples=20)["vqa"]
    assert found["by_seed"]["0"] == pytest.approx(found["value"])
    assert found["value"] != pytest.approx(compare(first, second, resamples=20)["vqa"]["micro"]["value"])


def test_a_report_shows_every_question_type(runs, tmp_path):
    write_report(runs, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in ("VQA, open recall", "Closed, accuracy (LLaVA-Med)", "MODALITY", "n=5", "n=2"):
        assert text in page, text
    with (runs[0] / "numbers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["attribute"] for row in rows} >= {"PRES", "POS", "MODALITY"} and all(row["n"] for row in rows)
