"""What was asked comes from the record beside the predictions; a config that says otherwise is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medtune.errors import ConfigError, DataError
from medtune.evaluation.asked import Asked, what_was_asked
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import PROTOCOLS


def rows(*tasks: str) -> list[Prediction]:
    """One row of each task; ``~task`` is on a swapped image."""
    return [Prediction(task, task.lstrip("~"), "", "", (), {"swapped": task[0] == "~"}) for task in tasks]


def made(folder: Path, name: str = "predictions", answers: Sequence[Prediction] = (), **told: Any) -> Any:
    """A prediction file with the record of what predict was told; no record for nothing told."""
    path = folder / f"{name}.jsonl"
    if told:
        path.with_suffix(".meta.json").write_text(json.dumps({"config": told, "weights": {}}))
    return path, answers


TOLD = {"protocols": ["open", "yes_no"], "swapped": ["open"], "limit": 9, "seed": 4}


def test_the_record_fills_what_the_config_leaves_out(tmp_path: Path) -> None:
    files = [made(tmp_path, answers=rows("open"), **TOLD)]
    assert what_was_asked(Asked(), files) == Asked(["open", "yes_no"], ["open"], 9, 4, [])
    same = Asked(["yes_no", "open"], ["open"], 9, 4, [])
    assert what_was_asked(same, files) == same


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (Asked(protocols=["open"]), r"protocols: \['open'\] is asked for, but .* was made with \['open', 'yes_no'\]"),
        (Asked(protocols=["open", "yes_no", "description"]), "protocols: .* leave protocols out"),
        (Asked(swapped=[]), r"swapped: \[\] is asked for, but .* was made with \['open'\]"),
        (Asked(limit=8), "limit: 8 is asked for, but .* was made with 9"),
        (Asked(limit=10), "limit: 10 is asked for, but .* was made with 9"),
        (Asked(seed=0), "seed: 0 is asked for, but .* was made with 4 .*or set seed=null"),
    ],
)
def test_a_contradiction_names_both_values(tmp_path: Path, written: Asked, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        what_was_asked(written, [made(tmp_path, **TOLD)])


def test_less_may_be_asked_for_where_the_rest_is_ignored_and_more_where_it_counts_as_wrong(tmp_path: Path) -> None:
    files = [made(tmp_path, **TOLD)]
    less = Asked(["open"], [], 3, 4, [])
    more = Asked(["open", "yes_no", "description"], ["open", "yes_no"], 20, 4, [])
    assert what_was_asked(less, files, on_extra="ignore") == less
    assert what_was_asked(more, files, on_missing="wrong") == more
    with pytest.raises(ConfigError, match="protocols"):
        what_was_asked(less, files, on_missing="wrong")
    with pytest.raises(ConfigError, match="protocols"):
        what_was_asked(more, files, on_extra="ignore")


def test_all_questions_are_more_than_some(tmp_path: Path) -> None:
    files = [made(tmp_path, **{**TOLD, "limit": None})]
    assert what_was_asked(Asked(limit=3), files, on_extra="ignore").limit == 3
    with pytest.raises(ConfigError, match="limit: 3 is asked for, but .* was made with None"):
        what_was_asked(Asked(limit=3), files, on_missing="wrong")


def test_a_seed_that_drew_nothing_may_differ(tmp_path: Path) -> None:
    files = [made(tmp_path, protocols=["open"], swapped=[], limit=None, seed=4)]
    assert what_was_asked(Asked(seed=7), files).seed == 7


def test_without_a_record_the_file_says_what_it_answers(tmp_path: Path) -> None:
    files = [made(tmp_path, answers=rows("classification", "~open", "open", "multiple_choice"))]
    assert what_was_asked(Asked(), files) == Asked(["multiple_choice", "open", "classification"], ["open"], None, 0, [])
    assert what_was_asked(Asked(["open"], [], 5, 3), files) == Asked(["open"], [], 5, 3, [])


def test_an_empty_file_without_a_record_was_asked_everything(tmp_path: Path) -> None:
    assert what_was_asked(Asked(), [made(tmp_path)]).protocols == list(PROTOCOLS)


def test_what_an_old_record_does_not_tell_comes_from_the_file(tmp_path: Path) -> None:
    files = [made(tmp_path, answers=rows("open", "~open"), seed=2)]
    assert what_was_asked(Asked(), files) == Asked(["open"], ["open"], None, 2, [])


def test_several_files_are_joined(tmp_path: Path) -> None:
    one = made(tmp_path, "one", protocols=["open"], swapped=["open"], limit=9, seed=4)
    two = made(tmp_path, "two", protocols=["yes_no"], swapped=[], limit=9, seed=4)
    three = made(tmp_path, "three", rows("description"))
    found = what_was_asked(Asked(), [one, two, three])
    assert found == Asked(["open", "yes_no", "description"], ["open"], 9, 4, [])
    other = made(tmp_path, "other", **{**TOLD, "seed": 5})
    with pytest.raises(ConfigError, match=r"seed: .*one.jsonl was made with 4 and .*other.jsonl with 5"):
        what_was_asked(Asked(), [one, other])


@pytest.mark.parametrize("text", ["{", "[]", '{"weights": 1}', '{"config": 3}'])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "predictions.meta.json").write_text(text)
    with pytest.raises(DataError, match="predictions.meta.json: not a record that predict wrote"):
        what_was_asked(Asked(), [made(tmp_path)])
