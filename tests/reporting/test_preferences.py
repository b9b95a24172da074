"""Preference pairs in a report: counts of the judge, pairs with images side by side, nothing of patients unasked."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from medtune.cli.main import main
from medtune.errors import DataError
from medtune.reporting.gallery import image_opener
from medtune.reporting.judge_charts import judge_chart, win_rate_chart
from medtune.reporting.preferences import judging_sections, preference_sections
from medtune.reporting.report import render_sections
from tests.judges.candidate_files import judge, manifest_of, rows_of, served, write_candidates
from tests.judges.judge_server import serve
from tests.judges.test_comparison import compared, write_answers
from tests.recipe_modules import load_recipe

PRICES = "server.prices={input: 1000, output: 1000}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished judging of twelve candidates; one answer has HTML in it."""
    folder = tmp_path_factory.mktemp("judged")
    path = write_candidates(folder, 12)
    path.write_text(path.read_text().replace("Short 3.", "Sh <b>3</b>."))
    with serve(say=_mixed) as server:
        assert load_recipe("judge").main(served(folder, server.url, PRICES, "samples=4")) == 0
    return folder


def _mixed(question: str, first: str, second: str) -> str:
    if question == "Question 0?":
        return "8 6"  # the first place wins, in both orders
    if question == "Question 5?":
        return "I like both."
    return "9 7.5" if first.startswith("Sh") else "6 8"


def test_the_table_says_what_the_judge_did(folder: Path) -> None:
    (section,) = preference_sections(folder / "out")
    assert section.table is not None
    found = {title: cell for title, cell in zip(section.table.columns, section.table.rows[0].cells, strict=True)}
    assert {title: cell.value for title, cell in found.items()} == {
        "judged": "12", "pairs": "10", "ties": "1", "unread": "1", "position bias, %": "9.1", "asked": "24",
        "from cache": "0", "tokens": "2,640", "cost, USD": "2.64",
    }  # fmt: skip
    assert found["position bias, %"].span.startswith("1.6 to") and found["position bias, %"].n == "n=11"
    assert "prose 1" in section.help and "pair-v1@" in section.help and section.examples == ()


def test_pairs_stand_side_by_side_with_their_images_and_scores(folder: Path) -> None:
    _, shown, _, _ = preference_sections(folder / "out", 4, image_opener(folder / "images"), seed=1)
    assert len(shown.examples) == 4
    pairs = {f"Question {row['id'][1:]}?": row for row in rows_of(folder / "out/pairs.jsonl")}
    for example in shown.examples:
        row = pairs[example.title]
        assert len(example.pictures) == 1 and example.pictures[0].startswith("data:image/png;base64,")
        assert [option.text for option in example.options] == [row["chosen"], row["rejected"]]
        assert [option.tone for option in example.options] == ["good", "bad"]
        assert example.options[0].note == "score 8.5" and example.options[1].note == "score 6.75"
    titles = [
        [one.title for one in preference_sections(folder / "out", 4, None, seed)[1].examples] for seed in range(4)
    ]
    assert titles[1] == [one.title for one in shown.examples] and len({tuple(chosen) for chosen in titles}) > 1
    every = preference_sections(folder / "out", 99, None)[1].examples
    assert [example.title for example in every] == list(pairs) and every[0].trouble == "no image root was given"


def test_each_pair_is_as_likely_to_be_shown(folder: Path) -> None:
    counts: dict[str, int] = {}
    for seed in range(100):
        for example in preference_sections(folder / "out", 3, None, seed)[1].examples:
            counts[example.title] = counts.get(example.title, 0) + 1
    assert len(counts) == 10 and all(14 < n < 48 for n in counts.values()), counts  # 30 expected


def test_the_page_is_whole_escaped_and_written_only_when_asked_for(folder: Path, tmp_path: Path) -> None:
    page = (folder / "out/pairs.html").read_text()
    assert page.count('<div class="option good">') == 4 + 2 + 2 and page.count("<img src=") == 1 + 8
    assert "http-equiv" in page and not re.search(r'(?:src|href)="(?!data:)', page)
    every = render_sections(preference_sections(folder / "out", 99, None), title="All <pairs>")
    assert "Sh &lt;b&gt;3&lt;/b&gt;." in every and "<b>3</b>" not in every and "All &lt;pairs&gt;" in every
    assert "Headline" not in every and "no image root was given" in every
    write_candidates(tmp_path, 2)
    with serve() as server:
        assert load_recipe("judge").main(served(tmp_path, server.url)) == 0
    assert not (tmp_path / "out/pairs.html").exists()


def test_an_unfinished_judging_is_no_report(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished judging"):
        preference_sections(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest_of(folder), "complete": False}))
    with pytest.raises(DataError, match="the same command goes on"):
        preference_sections(tmp_path)


def test_the_pairs_with_the_largest_and_the_smallest_differences_are_shown(folder: Path) -> None:
    """Question 5 is unread and question 0 a tie; the shown scores give differences of 1.75 for all others."""
    path, kept = folder / "out/pairs.jsonl", (folder / "out/pairs.jsonl").read_text()
    rows = [{**row, "scores": [10.0, 10.0 - number]} for number, row in enumerate(rows_of(path), start=1)]
    try:
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[5:], *rows[:5]]))
        _, _, most, least = preference_sections(folder / "out", 3, None)
    finally:
        path.write_text(kept)
    assert most.title == "Pairs with the largest differences" and least.title == "Pairs with the smallest differences"
    assert [one.options[1].note for one in most.examples] == ["score 0", "score 1"]
    assert [one.options[1].note for one in least.examples] == ["score 9", "score 8"]


def _texts(svg: str) -> set[str]:
    """What a plot says; matplotlib writes each text into a comment before its letters."""
    ElementTree.fromstring(svg)
    return {text.strip() for text in re.findall(r"<!--(.*?)-->", svg)}


def test_the_plot_says_what_became_of_the_candidates_and_which_place_won(folder: Path) -> None:
    said = _texts(preference_sections(folder / "out")[0].picture)
    assert {"what became of 12 candidates", "pairs", "10", "1 tied", "unread: prose", "first place"} <= said
    assert "same answer in both orders" in said
    manifest = manifest_of(folder)
    manifest["counts"] = {**manifest["counts"], "dropped": {"empty_answer": 3}, "pairs": 0}
    said = _texts(judge_chart({"a": (manifest, []), "b": ({**manifest, "position_bias": None}, [])}))
    assert {"empty answer (not asked)", "3", "a", "b"} <= said
    once = {**manifest_of(folder), "judge": {"name": "model", "orders": "given"}}
    said = _texts(judge_chart({"": (once, [1.0])}))
    assert "second place" in said and "same answer in both orders" not in said


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Two models' answers to four questions, of which the second model wins three."""
    write_candidates(tmp_path, 4)
    write_answers(tmp_path / "one.jsonl", {0: "A long answer.", 1: "A long answer.", 2: "A long answer.", 3: "No."})
    write_answers(tmp_path / "two.jsonl", {0: "<i>S</i>.", 1: "Short.", 2: "Short.", 3: "A long answer."})
    with serve() as server:
        assert judge(*compared(tmp_path, server.url)) == 0
    return tmp_path


def test_a_win_rate_has_its_interval_and_a_plot(comparison: Path) -> None:
    sections = preference_sections(comparison / "out")
    assert [one.title for one in sections] == ["The judge", "Win rate"]
    assert sections[1].table is not None
    cells = sections[1].table.rows[0].cells
    assert [one.value for one in cells] == ["75.0", "3", "0", "0", "1", "0"]
    assert " to " in cells[0].span and cells[0].n == "n=4" and "one.jsonl and " in sections[1].help
    won = manifest_of(comparison)["win_rate"]
    assert {"wins", "losses", "3", "1"} <= _texts(win_rate_chart({"rule": won}))
    nothing = {**won, "rate": {**won["rate"], "value": None, "interval": None, "n": 0}}
    (comparison / "out/manifest.json").write_text(json.dumps({**manifest_of(comparison), "win_rate": nothing}))
    _, without = preference_sections(comparison / "out")
    assert without.picture == "" and without.table is not None and without.table.rows[0].cells[0].value == "–"


def test_compared_answers_stand_side_by_side_with_the_judges_words_on_request_alone(comparison: Path) -> None:
    *_, shown = preference_sections(comparison / "out", 9, image_opener(comparison / "images"))
    assert (
        shown.title == "Compared answers" and len(shown.examples) == 4 and all(one.pictures for one in shown.examples)
    )
    first, last = shown.examples[0], shown.examples[-1]
    assert [(one.title, one.text, one.tone) for one in first.options] == [
        ("first model", "A long answer.", "bad"), ("second model", "<i>S</i>.", "good"),
    ]  # fmt: skip
    assert [one.tone for one in last.options] == ["good", "bad"] and last.options[1].text == "A long answer."
    assert first.note.count("“") == 2 and first.note.startswith("“8.6 9.1”")
    page = render_sections(preference_sections(comparison / "out", 9), title="x")
    assert "&lt;i&gt;S&lt;/i&gt;." in page and "<i>S</i>" not in page


def test_win_rates_of_types_of_questions_have_tables_of_their_own(comparison: Path) -> None:
    manifest = manifest_of(comparison)
    won = manifest["win_rate"]
    nothing = {**won, "rate": {**won["rate"], "value": None, "interval": None, "n": 0}}
    groups = {"answer_type": {"closed": {**won, "wins": 1}, "open": nothing}, "attribute": {"PRES": won, "ABN": won}}
    (comparison / "out/manifest.json").write_text(json.dumps({**manifest, "win_rate": {**won, "groups": groups}}))
    _, _, by_type, by_attribute = preference_sections(comparison / "out")
    assert (by_type.title, by_attribute.title) == ("Win rate by answer type", "Win rate by attribute")
    assert by_type.table is not None and by_type.picture == "" and by_attribute.picture
    assert [(row.label, row.cells[0].value, row.cells[1].value) for row in by_type.table.rows] == [
        ("closed", "75.0", "1"), ("open", "–", "3"),
    ]  # fmt: skip


def test_the_report_takes_folders_of_judges(folder: Path, comparison: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "page" / "report.html"
    words = ["report", str(folder / "out"), str(comparison / "out"), "--out", str(out)]
    assert main(words) == 0
    page = out.read_text()
    assert "<h2>The judge</h2>" in page and "<h2>Win rate</h2>" in page and "Preference pairs" not in page
    assert page.count("Position bias: ") == 1 and page.count("image/svg+xml") == 2 and "Headline" not in page
    assert main([*words, "--samples", "2", "--images", str(folder / "images")]) == 0
    page = out.read_text()
    assert "<h2>Pairs with the largest differences: out</h2>" in page and "data:image/png" in page


def test_steps_of_a_run_are_on_its_page(folder: Path, comparison: Path, runs: list[Path], tmp_path: Path) -> None:
    """As a sweep writes them: judge, comparison and training lie one folder below the run."""
    run = tmp_path / "sweep" / "tuned"
    shutil.copytree(runs[0], run)
    shutil.copytree(folder / "out", run / "judge")
    shutil.copytree(comparison / "out", run / "win_rate")
    broken = run / "unfinished"
    broken.mkdir()
    (broken / "manifest.json").write_text(json.dumps({**manifest_of(folder), "complete": False}))
    (run / "dpo").mkdir()
    lines = [{"step": step, "loss": 0.7, "rewards/margins": 0.1 * step} for step in range(1, 5)]
    (run / "dpo/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "page" / "report.html"
    assert main(["report", str(run), "--out", str(out)]) == 0
    page = out.read_text()
    for text in ("untuned: judge", "untuned: win_rate", "Training: dpo", "Metrics of the method: dpo", "Headline"):
        assert text in page, text
    assert "unfinished" not in page
    (row,) = json.loads((out.parent / "results.json").read_text())["training"]
    assert (row["run"], row["step"], row["steps"]) == ("untuned", "dpo", 4)


def test_pairs_that_cannot_be_read_are_an_error_with_the_file(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "out/manifest.json", tmp_path)
    with pytest.raises(DataError, match=r"pairs.jsonl cannot be read"):
        preference_sections(tmp_path)
    assert judging_sections({}) == []
