"""The cells and lines of the papers' tables."""

from tests.benchmark.scripts import script

tables = script("paper_tables")


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
