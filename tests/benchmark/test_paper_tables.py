"""The cells and lines of the papers' tables."""

from pathlib import Path

import pytest

from tests.benchmark.scripts import script

tables = script("paper_tables")
scripts = {name: script(name) for name in ("instfree_table", "me_vlip_table", "stllava_table", "vitask_table")}


@pytest.mark.parametrize("name", sorted(scripts))
def test_overrides_may_stand_before_and_behind_options(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Both reach the sweep: its folder, the second of them, is the one in which nothing is found."""
    nothing = tmp_path / "nothing"
    words = ["processes=1", "--collect-only", "--out", str(tmp_path / "table.json"), f"output_dir={nothing}"]
    assert scripts[name].main(words) == 2
    assert str(nothing) in capsys.readouterr().err and not (tmp_path / "table.json").exists()


def test_a_heading_has_a_rule_below_each_cell_and_an_empty_cell_stays() -> None:
    assert tables.heading(["model", "seeds"]) == ["| model | seeds |", "|---|---|"]
    assert tables.line(["base", "", "3"]) == "| base |  | 3 |"


def test_a_mean_is_percent_with_its_deviation_where_there_is_one() -> None:
    assert tables.over_seeds({"mean": 0.6166, "deviation": 0.0372}) == "61.7 ± 3.7"
    assert tables.over_seeds({"mean": 0.6166, "deviation": None}) == "61.7"
    assert tables.over_seeds(None) == tables.percent(None) == ""
    assert tables.percent(68.4, 0.61, unit=1.0) == "68.4 ± 0.6"


def test_an_estimate_has_its_interval_and_a_difference_its_signs() -> None:
    number = {"value": 0.021, "interval": (-0.004, 0.05)}
    assert tables.estimate(number) == "2.1 [-0.4, 5.0]" and tables.estimate(number, "+") == "+2.1 [-0.4, +5.0]"
    assert tables.estimate({"value": 0.021, "interval": None}, "+") == "+2.1"
