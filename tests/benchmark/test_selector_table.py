"""Preferences of known truth: what is exchanged and counted, and the intervals of the table."""

import json
import random
from pathlib import Path

import pytest

from tests.benchmark.scripts import script

data, table = script("selector_data"), script("selector_table")
REPORT = "big cell size, round cell shape, granularity, small granule type, Neutrophil"
KNOWN = {
    "cell size": ["big cell size", "small cell size"],
    "cell shape": ["irregular cell shape", "round cell shape"],
    "granule type": ["coarse granule type", "small granule type"],
    "label": ["Basophil", "Neutrophil"],
}


def test_as_many_attributes_are_exchanged_as_asked_and_each_for_another_of_its_kind() -> None:
    for count in range(5):
        answer = data.exchanged(REPORT, count, KNOWN, random.Random(count))
        pairs = list(zip(data.phrases_of(REPORT), data.phrases_of(answer), strict=True))
        changed = [(one, other) for one, other in pairs if one != other]
        assert len(changed) == count and all(data.kind_of(one) == data.kind_of(other) for one, other in changed)
        assert data.right_share(answer, REPORT) == pytest.approx(1 - count / 4), "granularity has no alternative"


def test_a_rating_model_that_sees_less_counts_less() -> None:
    answer = REPORT.replace("Neutrophil", "Basophil").replace("round", "irregular")
    assert data.right_share(answer, REPORT) == 0.5
    assert data.right_share(answer, REPORT, ("cell size", "cell shape")) == 0.5
    assert data.right_share(answer, REPORT, ("cell size",)) == 1.0
    assert data.alternatives([REPORT, answer]) == {
        "cell shape": ["irregular cell shape", "round cell shape"], "label": ["Basophil", "Neutrophil"]
    }  # fmt: skip


def test_differences_are_paired_by_image_and_a_tie_is_half(tmp_path: Path) -> None:
    (tmp_path / "pair_scores.csv").write_text("id,source,preferred,rejected\na,human,2,1\nb,human,1,1\nc,human,0,1\n")
    found = table.in_order(tmp_path)
    assert found == {"a": 1.0, "b": 0.5, "c": 0.0}
    one = {0: found, 1: {"a": 1.0, "b": 1.0, "c": 1.0}}
    other = {0: {"a": 0.0, "b": 0.5, "c": 0.0}, 1: {"a": 1.0, "b": 0.0, "c": 0.0}}
    gain = table.differences(one, other)
    assert gain["value"] == pytest.approx(0.5) and gain["by_seed"] == {"0": 1 / 3, "1": 2 / 3}
    low, high = gain["seed_interval"]
    assert low < 0 < high and gain["images"] == 3


def test_the_committed_result_has_what_the_documents_quote() -> None:
    path = Path(table.__file__).parent / "results" / "selector.json"
    result = json.loads(path.read_text())
    for name in ("mixed", "human_only", "model_only", "literal_loss"):
        one = result[f"accuracy_{name}"]
        assert len(one["by_seed"]) == 3 and one["interval"][0] <= one["value"] <= one["interval"][1]
    text = (Path(table.__file__).parents[1] / "docs" / "evidence.md").read_text()
    assert f"| both, w = 30 | {100 * result['accuracy_mixed']['value']:.1f} [" in text
    assert "the selector learned from" in table.markdown(result)
