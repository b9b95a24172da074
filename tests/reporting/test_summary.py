import json

import pytest

from medtune.reporting.summary import interval, percent, summary_table


@pytest.fixture
def results(runs):
    return [json.loads((run / "results.json").read_text()) for run in runs]


def number(value, span=None):
    return {"value": value, "interval": span, "n": 3, "definition": "x", "unit": "fraction", "higher_is_better": True}


def test_numbers_in_words():
    assert percent(number(0.12345)) == "12.3"
    assert percent(number(-0.05), sign=True) == "−5.0"
    assert percent(number(0.05), sign=True) == "+5.0"
    assert percent(None) == percent(number(None)) == "–"
    assert interval(number(0.5, [0.25, 0.75])) == "25.0 to 75.0"
    assert interval(number(0.5)) == interval(None) == ""


def test_a_row_for_each_model_and_the_baselines(results):
    lines = summary_table(results).splitlines()
    assert [line.split("  ")[0] for line in lines if not line.startswith("-")] == [
        "accuracy, %", "untuned", "FT", "InstFree", "InstFree w/ RS", "majority (train)", "chance", "n (answers)",
    ]  # fmt: skip
    for title in ("Open question", "Multiple choice", "Letter likelihood", "Yes / no", "Retention", "Swap costs"):
        assert title in lines[0]
    value = results[2]["protocols"]["open"]["overall"]["accuracy_macro"]["value"]
    assert f"{100 * value:.1f} [" in lines[4]
    assert max(map(len, lines)) <= 160


def test_a_run_that_was_not_asked_everything(results):
    del results[1]["protocols"]["yes_no"]
    results[1]["retention"] = {}
    for one in results:
        for protocol in one["protocols"].values():
            protocol["swapped"] = None
    table = summary_table(results)
    assert "–" in table.splitlines()[3]
    assert "Swap costs" not in table
