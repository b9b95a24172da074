"""Pairs from people's choices and from a model's ratings: what makes one, what makes none and is counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from medtune.curation.preference_pairs import (
    held_out,
    human_pairs,
    model_pairs,
    pair_dataset,
    read_judged,
    read_ratings,
)
from medtune.curation.records import records_of
from medtune.errors import DataError
from tests.curation.selector_data import (
    annotation,
    conversation,
    rows_of,
    selector_pairs,
    write_lines,
    write_preferences,
)


def test_the_answer_that_most_annotators_choose_is_preferred_and_equal_ones_give_no_pair(tmp_path: Path) -> None:
    rows = [
        annotation(0),
        annotation(1, "second"),
        annotation(2, "both"),
        annotation(3, "neither"),
        *(annotation(4, choice, annotator=who) for who, choice in (("a", "first"), ("b", "second"))),
        *(annotation(5, choice, annotator=who) for who, choice in (("a", "second"), ("b", "second"), ("c", "both"))),
        annotation(6, answers=["same", "same "]),
    ]
    pairs, counts = human_pairs(write_lines(tmp_path / "h.jsonl", rows))
    assert [(pair.id, pair.preferred.answer, pair.rejected.answer) for pair in pairs] == [
        ("c0", "good 0", "bad 0"),
        ("c1", "bad 1", "good 1"),
        ("c5", "bad 5", "good 5"),
    ]
    assert counts == {"chosen": 3, "equal": 3, "identical_answers": 1}


def test_equal_ratings_give_no_pair_and_every_pair_has_the_higher_rating_first() -> None:
    records = [record for number in range(20) for record in records_of(conversation(number), "x")]
    ratings = {record.id: float(place % 3) for place, record in enumerate(records)}
    pairs, counts = model_pairs(records, ratings, 100, 0.0, seed=1)
    assert len(pairs) == 100 == counts["drawn"] and counts["equal"] > 10 and counts["rated"] == 40
    assert all(ratings[pair.preferred.id] > ratings[pair.rejected.id] for pair in pairs)
    assert len({frozenset((pair.preferred.id, pair.rejected.id)) for pair in pairs}) == 100
    assert pairs == model_pairs(records, ratings, 100, 0.0, seed=1)[0]
    assert pairs != model_pairs(records, ratings, 100, 0.0, seed=2)[0]
    far, _ = model_pairs(records, ratings, 30, 1.0, seed=1)
    assert all(ratings[pair.preferred.id] - ratings[pair.rejected.id] == 2 for pair in far)


def test_ratings_that_are_all_equal_and_more_pairs_than_there_are_say_what_to_do() -> None:
    records = [record for number in range(3) for record in records_of(conversation(number), "x")]
    with pytest.raises(DataError, match="equal ratings are no preference"):
        model_pairs(records, {record.id: 7.0 for record in records}, 5, 0.0, seed=0)
    with pytest.raises(DataError, match="only 5 different pairs of 6 rated samples"):
        model_pairs(records, {record.id: float(record is records[0]) for record in records}, 6, 0.0, seed=0)


def test_an_image_is_held_out_by_its_path_and_the_seed_alone() -> None:
    names = [f"{number}.png" for number in range(2000)]
    out = [name for name in names if held_out(name, 0.2, 0)]
    assert 0.17 < len(out) / 2000 < 0.23 and out == [name for name in names if held_out(name, 0.2, 0)]
    assert out != [name for name in names if held_out(name, 0.2, 1)]
    assert not any(held_out(name, 0.0, 0) for name in names)


def test_training_and_validation_share_no_image_and_the_model_rates_none_of_the_held_out_ones(tmp_path: Path) -> None:
    assert selector_pairs(*write_preferences(tmp_path), "validation_share=0.4") == 0
    train, val = (rows_of(tmp_path / f"pairs/{name}.jsonl") for name in ("train", "val"))
    images = [{row[side]["image"] for row in rows for side in ("preferred", "rejected")} for rows in (train, val)]
    assert images[0] and images[1] and not images[0] & images[1]
    assert {row["source"] for row in val} == {"human"}
    counts = json.loads((tmp_path / "pairs/manifest.json").read_text())["counts"]
    assert counts["train"]["human"] + counts["val"] == 40 and counts["train"]["model"] == 200
    source = pair_dataset(str(tmp_path / "pairs/train.jsonl"))
    sample = source[0]
    assert [message.content for message in sample.messages] == [
        train[0]["preferred"]["question"], train[0]["preferred"]["answer"]
    ]  # fmt: skip
    table = np.load(tmp_path / "features.npy")
    names = (tmp_path / "ids.txt").read_text().split("\n")
    from medtune.models.selector.sides import StoredSides

    transform = StoredSides(str(tmp_path / "pairs"))
    for row in train[:5] + train[-5:] + val[:5]:
        for side in ("preferred", "rejected"):
            own = transform.inputs(row[side], lambda: None)["features"].numpy()
            assert np.array_equal(own, table[names.index(row[side]["id"])])


def test_choices_of_an_own_file_are_the_validation_and_their_images_are_kept_out_of_the_training(
    tmp_path: Path,
) -> None:
    words = write_preferences(tmp_path)
    write_lines(tmp_path / "test.jsonl", [annotation(number) for number in range(30, 40)])
    write_lines(tmp_path / "human.jsonl", [annotation(number) for number in range(30)])
    assert selector_pairs(*words, f"validation=[{tmp_path / 'test.jsonl'}]") == 0
    train, val = (rows_of(tmp_path / f"pairs/{name}.jsonl") for name in ("train", "val"))
    assert [row["id"] for row in val] == [f"c{number}" for number in range(30, 40)]
    assert not {f"{number}.png" for number in range(30, 40)} & {row["preferred"]["image"] for row in train}
    assert json.loads((tmp_path / "pairs/manifest.json").read_text())["counts"]["images of the validation"] == {
        "rated": 20, "human": 0
    }  # fmt: skip


def test_a_run_of_one_source_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_preferences(tmp_path, human=0)
    assert selector_pairs(*words) == 0
    assert {row["source"] for row in rows_of(tmp_path / "pairs/val.jsonl")} == {"model"}
    assert "0 human and 200 model pairs" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    assert selector_pairs(*write_preferences(tmp_path / "other", rated=0), "model_pairs=0") == 0
    assert {row["source"] for row in rows_of(tmp_path / "other/pairs/train.jsonl")} == {"human"}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (["human=[]", "records=[]", "ratings=[]"], "there is no preference"),
        (["records=[]"], "ratings and records go together"),
        (["validation_share=1.0"], "validation_share is from 0 to below 1"),
        (["model_pairs=100000"], "lower it, or rate more samples"),
        (["parts=[1,2]"], "parts: "),
        (["features.path=absent.npy"], "absent.npy"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], what: str
) -> None:
    assert selector_pairs(*write_preferences(tmp_path), *change) == 2
    assert what in capsys.readouterr().err


def test_missing_and_double_ids_of_ratings_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_preferences(tmp_path)
    ratings = rows_of(tmp_path / "ratings.jsonl")
    write_lines(tmp_path / "ratings.jsonl", [*ratings, {"id": "v999/turn_1", "rating": 3}])
    assert selector_pairs(*words) == 2
    assert "1 ratings are of samples that records do not hold (the first: 'v999/turn_1')" in capsys.readouterr().err
    write_lines(tmp_path / "ratings.jsonl", [*ratings, ratings[0]])
    assert selector_pairs(*words) == 2
    assert "the id 'v0/turn_1' has been rated before" in capsys.readouterr().err
    write_lines(tmp_path / "ratings.jsonl", [{"id": "v0/turn_1", "rating": None}, {"id": "v0/turn_2", "rating": 2.5}])
    assert read_ratings(tmp_path / "ratings.jsonl") == {"v0/turn_2": 2.5}


def test_one_id_of_two_different_samples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_preferences(tmp_path)
    write_lines(tmp_path / "more.jsonl", [annotation(0, answers=["other", "answers"])])
    assert selector_pairs(*words, f"human=[{tmp_path / 'human.jsonl'},{tmp_path / 'more.jsonl'}]") == 2
    assert "two files of choices have the id 'c0'" in capsys.readouterr().err


def test_a_judges_scores_are_those_of_the_recipe_judge_or_of_rate(tmp_path: Path) -> None:
    judged = write_lines(tmp_path / "j.jsonl", [{"id": "c0", "scores": [3, 8]}, {"id": "c1", "scores": None}])
    assert read_judged(judged) == {"c0": (3.0, 8.0)}
    rated = [{"id": "c0/answer_1", "rating": 3}, {"id": "c0/answer_2", "rating": 8}, {"id": "c1/answer_1", "rating": 1}]
    assert read_judged(write_lines(tmp_path / "r.jsonl", rated)) == {"c0": (3.0, 8.0)}
    pairs, _ = human_pairs(write_lines(tmp_path / "h.jsonl", [annotation(0, "second")]), {"c0": (3.0, 8.0)})
    assert pairs[0].judge == (8.0, 3.0), "preferred first"


def test_images_that_are_gone_stop_the_run_or_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from medtune.curation.feature_store import keep_features
    from medtune.curation.features import Features
    from medtune.data.images import ImageRoot
    from medtune.training.runtime import Runtime

    class Means(Features):
        looks = True

        def identity(self):
            return {"name": "means"}

        def of(self, figures, images, rows):
            return np.array([[len(one.text), np.asarray(image).mean()] for one, image in zip(figures, images,
                            strict=True)], dtype=np.float32)  # fmt: skip

    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "0.png")
    records = [record for number in range(2) for record in records_of(conversation(number, 1), "x")]
    how = {"context": False, "text_limit": 500, "batch_size": 1, "say": print}
    with pytest.raises(DataError, match=r"1\.png"):
        keep_features(tmp_path / "a", records, Means(), [1, 1], ImageRoot(tmp_path), Runtime.start("cpu"), skip=False,
                      **how)  # fmt: skip
    shards = keep_features(
        tmp_path / "b", records, Means(), [1, 1], ImageRoot(tmp_path), Runtime.start("cpu"), skip=True, **how
    )
    assert shards.item(0)["features"].tolist() == [[float(len(records[0].text(False))), 9.0]]
    with pytest.raises(DataError, match=r"1\.png"):
        shards.item(1)
