"""Selection by scores: overall and from groups, what is written and why, and rows that are no use."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtune.curation.selection import places_in_groups, ranks_of, taken_rows
from medtune.errors import ConfigError, DataError
from tests.curation.selector_data import (
    conversation,
    rows_of,
    selection,
    selector,
    selector_pairs,
    training,
    write_lines,
    write_preferences,
)


def by_hand(scores: list[float], total: int, groups: list[int] | None = None) -> set[int]:
    """The best rows; with groups, one row of each group in turn, best first, for totals that divide evenly."""
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    if groups is None:
        return set(order[:total])
    piles = [[row for row in order if groups[row] == group] for group in sorted(set(groups))]
    taken: set[int] = set()
    while len(taken) < total:
        for pile in piles:
            taken |= set(pile[:1])
            del pile[:1]
    return taken


def test_the_best_rows_are_taken_and_of_equal_scores_the_earlier_one() -> None:
    scores = np.array([1.0, 3.0, 2.0, 3.0, 2.0])
    assert np.flatnonzero(taken_rows(scores, 3)).tolist() == [1, 2, 3] == sorted(by_hand(scores.tolist(), 3))
    assert ranks_of(scores).tolist() == [5, 1, 3, 2, 4]


def test_groups_give_the_same_number_of_their_best_rows_and_a_small_group_all() -> None:
    scores = np.array([9.0, 8.0, 7.0, 6.0, 1.0, 0.5, 0.2, 0.1, 5.0])
    groups = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    assert np.flatnonzero(taken_rows(scores, 3, groups)).tolist() == [0, 4, 8]
    assert np.flatnonzero(taken_rows(scores, 5, groups)).tolist() == [0, 1, 4, 5, 8], "the third group has one row"
    assert places_in_groups(scores, groups).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert taken_rows(scores, 9, groups).all()


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(0, 2**16),
)
def test_as_many_as_asked_are_taken_and_no_better_row_of_a_group_is_left(
    rows: list[tuple[int, int]], seed: int
) -> None:
    scores = np.array([float(score) for score, _ in rows])
    groups = np.unique([group for _, group in rows], return_inverse=True)[1]
    total = seed % len(rows) + 1
    taken = taken_rows(scores, total, groups, seed)
    assert taken.sum() == total
    given_ = Counter(groups[taken].tolist())
    sizes = Counter(groups.tolist())
    for group in sizes:
        own = groups == group
        if taken[own].any() and not taken[own].all():
            assert scores[own & taken].min() >= scores[own & ~taken].max()
        most = max(given_.values())
        assert given_[group] >= most - 1 or given_[group] == sizes[group], "even, but for what a group does not have"


def test_k_larger_than_the_data_and_a_score_that_is_no_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 rows are to be taken, and 3 have a score"):
        taken_rows(np.zeros(3), 4)
    with pytest.raises(DataError, match="score of row 2 is not a finite number"):
        taken_rows(np.array([0.0, np.nan, 1.0]), 1)


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """Ten conversations with scores and groups in tables."""
    data = write_lines(tmp_path / "rows.jsonl", [conversation(number) for number in range(10)])
    (tmp_path / "scores.csv").write_text("id,score\n" + "".join(f"v{n},{n % 5}.5\n" for n in range(10)))
    (tmp_path / "groups.csv").write_text("id,group\n" + "".join(f"v{n},{n // 5}\n" for n in range(10)))
    return [f"data={data}", f"scores={tmp_path / 'scores.csv'}", f"output_dir={tmp_path / 'out'}"]


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "out/scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_written_as_they_were_with_a_table_that_says_why(table: list[str], tmp_path: Path) -> None:
    assert selection(*table, "choice.percent=40") == 0
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert (tmp_path / "out/selected.jsonl").read_text().splitlines() == [lines[n] for n in (3, 4, 8, 9)]
    rows = {row["id"]: row for row in read(tmp_path)}
    assert (rows["v4"]["rank"], rows["v4"]["score"], rows["v4"]["taken"], rows["v4"]["group"]) == ("1", "4.5", "1", "")
    assert rows["v0"]["taken"] == "0" and rows["v0"]["rank"] == "9"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {"rows": 10, "scored": 10, "unscored": 0, "taken": 4, "refused_rows": 0}
    assert manifest["rule"] == "the best 40% of 10 scored rows" and manifest["lowest_score_taken"] == 3.5
    before = (tmp_path / "out/selected.jsonl").stat().st_mtime_ns
    assert selection(*table, "choice.percent=40") == 0
    assert (tmp_path / "out/selected.jsonl").stat().st_mtime_ns == before, "a second start changes nothing"


def test_groups_of_a_table_and_a_number_of_rows(table: list[str], tmp_path: Path) -> None:
    words = [*table, f"clusters={{table: {tmp_path / 'groups.csv'}}}", "choice={percent: null, count: 4}"]
    assert selection(*words) == 0
    assert [row["id"] for row in rows_of(tmp_path / "out/selected.jsonl")] == ["v3", "v4", "v8", "v9"]
    rows = {row["id"]: row for row in read(tmp_path)}
    assert (rows["v8"]["group"], rows["v8"]["rank_in_group"]) == ("1", "2")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["groups"] == {"0": {"rows": 5, "taken": 2}, "1": {"rows": 5, "taken": 2}}
    assert "as evenly as possible from 2 groups" in manifest["rule"]


def test_the_page_shows_best_and_worst_rows_with_images_and_escapes_texts(table: list[str], tmp_path: Path) -> None:
    from PIL import Image

    rows = [conversation(number) for number in range(10)]
    rows[4]["conversations"][1]["value"] = "<script>alert(1)</script>"
    write_lines(tmp_path / "rows.jsonl", rows)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images/4.png")
    assert selection(*table, f"image_root={tmp_path / 'images'}", "samples=2") == 0
    page = (tmp_path / "out/selection.html").read_text()
    assert "Best rows" in page and "Worst rows" in page and "<script>alert" not in page
    assert "score 4.500: v4" in page and "score 0.500: v5" in page and "score 2.500" not in page
    assert page.count("data:image/png") == 1 and page.count("could not be opened") == 3
    assert selection(*table, "samples=0") == 0
    assert "Answer 0 of" not in (tmp_path / "out/selection.html").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["choice={percent: null, count: 11}"], "choice.count is 11, and"),
        (["choice={percent: 10, count: 1}"], "give percent or count, one of them"),
        (["choice.percent=0"], "above 0 and at most 100"),
        (["choice.percent=101"], "above 0 and at most 100"),
        (["choice.turns=last"], "choice.turns"),
        (["scores=null"], "give weights, a trained selection model, or scores"),
        (["clusters={count: 3}"], "scores alone give no features for k-means"),
        (["scores=absent.csv"], "there is no such file"),
        (["data=absent.jsonl"], "there is no such file"),
    ],
)
def test_wrong_keys_are_said(
    table: list[str], change: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert selection(*table, *change) == 2
    assert said in capsys.readouterr().err


def test_missing_and_double_ids_are_refused_or_left_out(
    table: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict] = [conversation(number) for number in range(4)]
    nameless = {key: value for key, value in rows[0].items() if key != "id"}
    write_lines(tmp_path / "rows.jsonl", [*rows, nameless, rows[1]])
    assert selection(*table, "on_error=raise") == 2
    assert "rows.jsonl, line 5: the row has no 'id'" in capsys.readouterr().err
    assert selection(*table, "on_error=skip") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["refused_rows"] == 2 and manifest["counts"]["rows"] == 4
    assert sorted(manifest["skipped"]) == ["rows.jsonl, line 5", "rows.jsonl, line 6"]
    write_lines(tmp_path / "rows.jsonl", [conversation(11)])
    assert selection(*table) == 2
    assert "has no row of the id 'v11'" in capsys.readouterr().err
    (tmp_path / "scores.csv").write_text("id,score\nv11,1\nv11,2\n")
    assert selection(*table) == 2
    assert "the id 'v11' is there twice" in capsys.readouterr().err


def test_a_row_without_a_score_is_not_taken_and_counted(table: list[str], tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("id,score\n" + "".join(f"v{n},{n if n else ''}\n" for n in range(10)))
    assert selection(*table, "choice.percent=100") == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["unscored"] == 1 and manifest["counts"]["taken"] == 9
    assert next(row for row in read(tmp_path) if row["id"] == "v0") == {
        "id": "v0", "score": "", "rank": "", "group": "", "rank_in_group": "", "taken": "0"
    }  # fmt: skip


def stored(folder: Path) -> str:
    path, ids = folder / "features.npy", folder / "ids.txt"
    return f"features={{_component_: medtune.curation.features.StoredFeatures, path: {path}, ids: {ids}}}"


def test_a_trained_model_selects_what_people_and_the_model_prefer_uniformly_from_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_preferences(tmp_path)
    assert selector_pairs(*words) == 0 and selector(*training(tmp_path)) == 0
    chosen = [
        f"data={tmp_path / 'conversations.jsonl'}", "scores=null", f"weights={tmp_path / 'run/weights'}",
        f"output_dir={tmp_path / 'out'}", stored(tmp_path),
    ]  # fmt: skip
    quality = np.load(tmp_path / "features.npy")[80:, 0].reshape(40, 2)
    for turns, value in (("mean", quality.mean(1)), ("first", quality[:, 0]), ("least", quality.min(1))):
        assert selection(*chosen, f"choice.turns={turns}") == 0
        taken = np.array([row["taken"] == "1" for row in read(tmp_path)])
        scores = np.array([float(row["score"]) for row in read(tmp_path)])
        assert taken.sum() == 20 and value[taken].mean() > value[~taken].mean() + 0.5
        assert np.corrcoef(scores, value)[0, 1] > 0.7
    assert selection(*chosen, "clusters={count: 4}") == 0
    groups = json.loads((tmp_path / "out/manifest.json").read_text())["groups"]
    assert {one["taken"] for one in groups.values()} == {5} and len(groups) == 4
    capsys.readouterr()
    assert selection(*chosen, "clusters={count: 41}") == 2
    assert "clusters.count is 41, and 40 rows have a score" in capsys.readouterr().err


def test_features_of_another_encoder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert selector_pairs(*write_preferences(tmp_path)) == 0 and selector(*training(tmp_path)) == 0
    np.save(tmp_path / "features.npy", np.load(tmp_path / "features.npy") + 1)
    chosen = [f"data={tmp_path / 'conversations.jsonl'}", "scores=null", f"weights={tmp_path / 'run/weights'}"]
    out = f"output_dir={tmp_path / 'out'}"
    assert selection(*chosen, out, stored(tmp_path)) == 2
    assert "features are not those that the selection model was trained on" in capsys.readouterr().err
    assert selection(*chosen, out) == 2
    assert "set features as in selector_pairs" in capsys.readouterr().err
