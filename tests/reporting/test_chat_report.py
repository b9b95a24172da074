"""Scored answers of a chat in a report: tables and charts by domain and type, answers with the judge's words."""

import json
import re
from pathlib import Path

import pytest

from medtune.cli.main import main
from medtune.evaluation.display import Column, Display, Grouping
from medtune.recipes.evaluate import main as evaluate
from medtune.reporting import groups as module
from medtune.reporting.gallery import image_opener
from medtune.reporting.groups import group_sections
from medtune.reporting.preferences import judging_sections
from medtune.reporting.runs import Run, read_run
from medtune.reporting.side_by_side import side_by_side_sections
from tests.judges.candidate_files import judge
from tests.judges.chat_files import points, scoring, write_answers
from tests.judges.judge_server import serve


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models' answers, scored; question 1 of the first is unread, and one answer of the second has HTML in it."""
    folder = tmp_path_factory.mktemp("chat")
    for name, answers in (("one", {1: "Unread."}), ("two", {0: "Answer <b>9</b>."})):
        write_answers(folder, 8, answers, out=name)

        def say(question: str, first: str, second: str) -> str:
            return "I like both." if "Unread." in (first, second) else points(question, first, second)

        with serve(say=say) as server:
            words = scoring(folder, server.url, f"score={folder / name}.jsonl", out=f"judged_{name}")
            assert judge(*words) == 0
        scored = f"predictions={folder / f'judged_{name}'}/graded.jsonl"
        words = [
            "--config",
            "evaluate/chat",
            scored,
            f"prepared_dir={folder}/prepared",
            f"output={folder / f'run_{name}'}",
        ]
        assert not evaluate(words)
    return folder


def runs_of(folder: Path) -> list[Run]:
    return [read_run(folder / f"run_{name}", with_answers=True) for name in ("one", "two")]


def test_domains_and_types_have_a_table_and_a_chart(chat: Path) -> None:
    domains, types = group_sections(runs_of(chat))
    assert (domains.title, types.title) == ("Chat by domain", "Chat by type of question")
    assert domains.table is not None and types.table is not None
    assert [row.label for row in domains.table.rows] == ["ct scan", "mri", "all questions"]
    assert [row.label for row in types.table.rows] == ["conversation", "detailed description", "all questions"]
    results = json.loads((chat / "run_one/results.json").read_text())["protocols"]["chat"]
    first, second = types.table.rows[1].cells
    expected = results["question_types"]["detailed_description"]
    assert first.value == f"{expected['relative_score']['value']:.2f}" and (first.n, second.n) == ("n=3", "n=4")
    assert first.note == f"points {expected['answer_score']['value']:.2f}, unread % 25.0"
    whole = types.table.rows[-1].cells[0]
    assert whole.value == f"{results['overall']['relative_score_micro']['value']:.2f}" and "unread % 12.5" in whole.note
    said = {text.strip() for text in re.findall(r"<!--(.*?)-->", types.picture)}
    assert {"conversation", "detailed description", "run_one", "run_two", "relative score, %"} <= said


def test_a_run_without_the_protocol_or_a_group_without_a_number_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    number = {"value": 0.5, "unit": "fraction", "higher_is_better": True, "n": 4, "interval": None, "definition": "d"}
    empty = {**number, "value": None, "n": 0}
    shown = Display("P", groupings=(Grouping("sets", "P by set", "Set", "Help.", Column("share", "share")),))
    monkeypatch.setattr(module, "displays", lambda results: list(results) and {"p": shown})
    scored = {"p": {"overall": {"share": number}, "sets": {"a": {"share": number}, "b": {"share": empty}}}}
    other = {"p": {"overall": {"share": number}, "sets": {"b": {"share": number}}}}
    found = [Run("x", Path("x"), {"protocols": scored}), Run("y", Path("y"), {"protocols": {}})]
    (section,) = group_sections(found)
    assert section.table is not None and section.table.columns == ["x"]
    assert [(row.label, row.cells[0].value) for row in section.table.rows] == [
        ("a", "50.0"), ("b", "–"), ("all questions", "50.0"),
    ]  # fmt: skip
    (section,) = group_sections([found[0], Run("z", Path("z"), {"protocols": other})])
    assert section.table is not None and section.table.rows[0].cells[1].value == "–"
    assert group_sections([found[1]]) == []


def test_answers_stand_beside_the_reference_with_scores_and_words(chat: Path) -> None:
    (section,) = side_by_side_sections(runs_of(chat), 1, image_opener(chat / "images"))
    assert len(section.examples) == 2, "both questions on the first image"
    one, other = section.examples
    assert one.title == "Question 0?" and len(one.pictures) == 1
    assert [(option.title, option.text) for option in one.options] == [
        ("reference answer", "Reference 0."), ("run_one", "Answer 0."), ("run_two", "Answer <b>9</b>."),
    ]  # fmt: skip
    assert one.options[1].note.splitlines() == [
        "score 1.5, the reference answer 8.5: 18%",
        "“9 1 Because of 'Question 0?'.”",
        "“2 8 Because of 'Question 0?'.”",
    ]
    assert other.options[1].note.splitlines()[0] == "no score (prose)" and "I like both." in other.options[1].note


def test_the_judges_of_scored_answers_are_in_the_table_without_pairs(chat: Path) -> None:
    folders = {name: chat / f"judged_{name}" for name in ("one", "two")}
    (section,) = judging_sections(folders, samples=5)
    assert section.table is not None and section.table.columns[:4] == ["judged", "scored", "ties", "unread"]
    assert [cell.value for cell in section.table.rows[0].cells[:4]] == ["8", "7", "0", "1"]
    assert "different scores" in section.picture and ">pairs<" not in section.picture


def test_the_page_has_it_all_and_nothing_of_patients_unasked(chat: Path, tmp_path: Path) -> None:
    out = tmp_path / "page/report.html"
    words = ["report", *(str(chat / name) for name in ("run_one", "run_two", "judged_one")), "--out", str(out)]
    assert main(words) == 0
    page = out.read_text()
    for text in (
        "Chat by domain",
        "Chat by type of question",
        "The judge",
        "Ratio of mean scores",
        "Paired comparison",
    ):
        assert text in page, text
    assert re.search(r"(?:Reference|Answer|Question|Caption) \d", page) is None and "Because" not in page
    assert "Accuracy for each attribute" not in page and "relative_of_means" not in page
    assert main([*words, "--samples", "1", "--images", str(chat / "images")]) == 0
    page = out.read_text()
    assert "Reference 0." in page and "Because of &#39;Question 0?&#39;." in page and "<b>9</b>" not in page
