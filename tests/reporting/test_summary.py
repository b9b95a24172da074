import json

import pytest

from medtune.evaluation.protocols.flare import _HEADLINE
from medtune.reporting.summary import MISSING, interval, percent, ranking_note, summary_table


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
    assert [line.split("  ")[0] for line in lines if line[0] not in "- "] == [
        "accuracy, %", "untuned", "FT", "InstFree", "InstFree w/ RS", "majority (train)", "chance", "n (answers)",
    ]  # fmt: skip
    for title in ("Open question", "Multiple choice", "Letter likelihood", "Yes / no", "Retention", "Swap costs"):
        assert title in lines[0]
    value = results[2]["protocols"]["open"]["overall"]["accuracy_macro"]["value"]
    assert f"{100 * value:.1f} [" in next(line for line in lines if line.startswith("InstFree  "))
    assert max(map(len, lines)) <= 140


def test_a_run_that_was_not_asked_everything(results):
    del results[1]["protocols"]["yes_no"]
    results[1]["retention"] = {}
    for one in results:
        for protocol in one["protocols"].values():
            protocol["swapped"] = None
    table = summary_table(results)
    assert "–" in table.splitlines()[3]
    assert "Swap costs" not in table


def flare_run(name, **values):
    """A run with FLARE's numbers, of which only the given ones have a value: (value, interval, n)."""
    overall = {}
    for metric in _HEADLINE:
        value, span, n = values.get(metric, (None, None, 0))
        unit, up = ("error", False) if metric.endswith("mae") else ("fraction", True)
        overall[metric] = {**number(value, span), "n": n, "unit": unit, "higher_is_better": up}
    protocol = {"overall": overall, "attributes": {}, "swapped": None}
    return {"name": name, "protocols": {"flare": protocol}, "retention": {}}


def routing_demo(best=(0.3, [0.15, 0.45], 40)):
    accuracy, counting = "accuracy_macro", "counting_mae"
    return [
        flare_run("Base", **{accuracy: (0.15, [0.05, 0.275], 40), counting: (9.06, [6.03, 12.12], 40)}),
        flare_run("TS, counting", **{counting: (1.25, [0.97, 1.52], 40)}),
        flare_run("TS by oracle task", **{accuracy: (0.3, [0.15, 0.45], 40), counting: (1.25, [0.97, 1.52], 40)}),
        flare_run("Routed", **{accuracy: best, counting: (1.25, [0.97, 1.52], 39)}),
    ]


def test_empty_columns_are_named_below_and_baselines_left_out_and_the_table_is_narrow():
    table, _, without = summary_table(routing_demo()).partition("\nWithout a value: ")
    assert "FLARE, Detection" in without and "Counting" not in without
    lines = [*table.splitlines(), *without.splitlines()]
    assert max(map(len, lines)) < 120
    lines = table.splitlines()
    heading = " ".join(lines[:3])
    assert "Counting" in heading and "Detection" not in heading and "Reports" not in heading
    assert not [line for line in lines if line.startswith(("majority", "chance"))]
    assert lines[-1].split("  ")[0] == "n (answers)" and lines[-1].split() == ["n", "(answers)", "40", "39", "/", "40"]
    assert f"{MISSING} " in next(line for line in lines if line.startswith("TS, counting"))


def test_a_wide_table_goes_on_below_with_the_names_again():
    numbers = {metric: (0.5, [0.25, 0.75], 40) for metric in _HEADLINE}
    lines = summary_table([flare_run("a model with a rather long name", **numbers)]).splitlines()
    assert max(map(len, lines)) <= 140 and lines.count("") == 1
    assert len([line for line in lines if line.startswith("a model with a rather long name ")]) == 2
    assert sum(line.count("50.0 [25.0..75.0]") + line.count("0.50 [0.25..0.75]") for line in lines) == len(_HEADLINE)


def test_a_set_that_ranks_no_model_is_told():
    said = ranking_note(routing_demo())
    assert said is not None and said.endswith(": this set (n = 39 / 40) is too small to rank the methods.")
    assert ranking_note(routing_demo(best=(0.9, [0.8, 0.96], 40))) is None
    assert ranking_note(routing_demo()[:1]) is None
    worse, better = flare_run("a", counting_mae=(5.0, [4.0, 6.0], 9)), flare_run("b", counting_mae=(2.0, [1.0, 3.0], 9))
    assert ranking_note([worse, better]) is None, "a smaller error is better"
