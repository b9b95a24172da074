"""Preference pairs in a report: counts of the judge, pairs with images side by side, nothing of patients unasked."""

import json
import re
from pathlib import Path

import pytest

from medtune.errors import DataError
from medtune.reporting.gallery import image_opener
from medtune.reporting.preferences import preference_sections
from medtune.reporting.report import render_sections
from tests.judges.candidate_files import manifest_of, rows_of, served, write_candidates
from tests.judges.judge_server import serve
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
    _, shown = preference_sections(folder / "out", 4, image_opener(folder / "images"), seed=1)
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
    for seed in range(300):
        for example in preference_sections(folder / "out", 3, None, seed)[1].examples:
            counts[example.title] = counts.get(example.title, 0) + 1
    assert len(counts) == 10 and all(55 < n < 130 for n in counts.values()), counts  # 90 expected


def test_the_page_is_whole_escaped_and_written_only_when_asked_for(folder: Path, tmp_path: Path) -> None:
    page = (folder / "out/pairs.html").read_text()
    assert page.count('<div class="option good">') == 4 and page.count("<img src=") == 4
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
