"""Cells, tables, cards and comparisons of results made by hand: every sign, colour and order."""

from pathlib import Path

import pytest

from medtune.evaluation.display import Column, Display, Examples
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import EvaluationProtocol
from medtune.evaluation.protocols.registry import REGISTRY
from medtune.reporting import plots
from medtune.reporting.comparison import compare, compare_over_seeds
from medtune.reporting.confusions import WIDEST, confusion_tables
from medtune.reporting.displays import displays, packaged
from medtune.reporting.gallery import choose_cards, make_card, with_examples
from medtune.reporting.pairs import paired_skips, paired_tables
from medtune.reporting.runs import Run, read_run
from medtune.reporting.seeds import differences_section, seeds_section, sets_section
from medtune.reporting.summary import MISSING, interval, percent, summary_table
from medtune.reporting.views import (
    attribute_tables,
    cell,
    definitions,
    headline,
    own_cell,
    protocol_help,
    protocol_tables,
    swapped_table,
)
from medtune.reporting.worst import worst_cards, worst_task


def number(value, span=None, better=True, unit="fraction", n=4, definition="how"):
    return {
        "value": value, "interval": span, "n": n, "definition": definition, "unit": unit, "higher_is_better": better,
    }  # fmt: skip


def protocol(accuracy, span=(0.4, 0.6), majority=0.5, chance=0.25, swapped=None):
    return {
        "overall": {
            "accuracy_macro": number(accuracy, list(span)), "accuracy_micro": number(accuracy + 0.01),
            "balanced_accuracy_macro": number(0.3), "unread": number(0.1, better=False),
            "majority_macro": number(majority, better=None), "majority_micro": number(majority + 0.02, better=None),
            "chance_macro": number(chance, better=None), "chance_micro": number(chance + 0.02, better=None),
        },
        "attributes": {
            "size": {
                "accuracy": number(accuracy, list(span), n=7), "balanced_accuracy": number(0.35),
                "majority": number(majority, better=None, definition="majority how"), "chance": number(chance),
            }
        },
        "swapped": swapped,
    }  # fmt: skip


def row(name, task="open", gold="a", predicted="a", swapped=0, attribute="size", read=1, image=None, in_format=1):
    return {
        "id": f"{name}/{task}" + ("/swapped" if swapped else ""), "task": task, "sample_id": name,
        "swapped": str(swapped),
        "attribute": attribute, "images": image or f"{name}.png", "gold": gold, "predicted": predicted,
        "read": str(read), "correct": str(int(read and predicted == gold)), "in_format": str(in_format),
    }  # fmt: skip


def run(name="base", protocols=None, rows=(), predictions=(), **results):
    tree = {
        "name": name,
        "protocols": protocols or {"open": protocol(0.5)},
        "retention": {},
        "vocabulary": {},
        **results,
    }
    return Run(
        name, Path(name), tree, {one["id"]: one for one in rows}, predictions={one.id: one for one in predictions}
    )


@pytest.mark.parametrize(
    ("span", "better", "tone"),
    [
        ([0.6, 0.7], True, "good"), ([0.3, 0.4], True, "bad"), ([0.4, 0.6], True, ""),
        ([0.6, 0.7], False, "bad"), ([0.3, 0.4], False, "good"), ([0.4, 0.6], False, ""),
        ([0.6, 0.7], None, ""), (None, True, ""), ([0.5, 0.6], True, ""), ([0.4, 0.5], True, ""),
    ],
)  # fmt: skip
def test_the_colour_of_a_cell(span, better, tone):
    assert cell(number(0.5, span, better), against=0.5).tone == tone
    assert cell(number(0.5, span, better)).tone == ""
    assert own_cell(number(0.5, span, better), Column("x", "X", against=0.5)).tone == tone


def test_an_interval_is_written_from_low_to_high_with_its_sign_and_unit():
    signed = number(0.05, [-0.021, 0.123])
    assert interval(signed, sign=True) == "−2.1 to +12.3" and interval(signed) == "−2.1 to 12.3"
    assert percent(number(-0.05)) == "−5.0" and percent(number(0.054, unit="difference of fractions")) == "5.4"
    nats = number(1.234, [-0.5, 3.0], unit="nats per token")
    assert (percent(nats), interval(nats, sign=True)) == ("1.23", "−0.50 to +3.00")
    written = cell(nats, sign=True)
    assert (written.value, written.span, written.n, written.title) == ("+1.23", "−0.50 to +3.00", "n=4", "how")
    assert cell(None).value == MISSING


def test_the_headline_is_coloured_against_the_majority_and_has_both_baselines():
    runs = [run(), run("tuned", {"open": protocol(0.45, (0.3, 0.45))})]
    changes = {"tuned": {"open": {**number(-0.05, [-0.1, -0.01]), "f1_macro": number(0.9)}}}
    table = headline(runs, changes)
    assert table.columns == ["Open question"] and [one.label for one in table.rows[:2]] == ["base", "tuned"]
    assert [one.cells[0].tone for one in table.rows[:2]] == ["", "bad"], "0.5 is the majority, 0.25 chance"
    assert table.rows[1].cells[0].note == "Δ −5.0 (−10.0 to −1.0)"
    assert [one.cells[0].value for one in table.rows[2:]] == ["50.0", "25.0"]


def test_the_second_number_of_a_headline_has_a_difference_of_its_own():
    overall = {name: number(0.5) for name in ("accuracy_macro", "f1_macro")}
    runs = [run(one, {"classification": {"overall": overall, "attributes": {}, "swapped": None}}) for one in "ab"]
    changes = {"b": {"classification": {**number(0.1), "f1_macro": number(-0.2)}}}
    notes = [one.note for one in headline(runs, changes).rows[1].cells]
    assert notes == ["Δ +10.0", "Δ −20.0"]


def test_the_tables_by_protocol_and_by_attribute():
    (table,) = protocol_tables([run()])
    assert [one.value for one in table.rows[0].cells] == ["50.0", "51.0", "30.0", "10.0"]
    assert [[one.value for one in line.cells] for line in table.rows[1:]] == [["50.0", "52.0", "", ""],
                                                                             ["25.0", "27.0", "", ""]]  # fmt: skip
    (table,) = attribute_tables([run(protocols={"open": protocol(0.4, (0.3, 0.45))})])
    assert table.columns == ["base", "majority", "chance", "n"]
    first, majority, chance, n = table.rows[0].cells
    assert (first.tone, first.note, first.n) == ("bad", "balanced 35.0", "") and n.value == "7"
    assert (majority.value, majority.title, chance.value, chance.title) == ("50.0", "majority how", "25.0", "")
    assert protocol_help([run()]) == [("Open question", "answered in words, right when the right value is named")]
    assert ("Balanced accuracy", "how") in definitions([run()])


def test_a_swap_that_costs_is_green():
    cost = {"accuracy_macro": number(0.2), "drop_macro": number(0.3, [0.1, 0.5]), "answer_differs": number(0.8)}
    table = swapped_table([run(protocols={"open": protocol(0.5, swapped=cost)})])
    assert [one.value for one in table.rows[0].cells] == ["50.0", "20.0", "+30.0"] and table.note == "80.0"
    assert table.rows[0].cells[2].tone == "good" and table.columns == [
        f"Open question: {one}" for one in ("true", "swapped", "cost")
    ]
    assert swapped_table([run()]) is None


def test_the_terminals_table_counts_what_was_asked():
    runs = [run(), run("b", {"open": protocol(0.5)}), run("c", {"yes_no": protocol(0.5)})]
    runs[1].results["protocols"]["open"]["overall"]["accuracy_macro"]["n"] = 9
    lines = summary_table([one.results for one in runs]).splitlines()
    assert lines[0].split("  ")[0] == "accuracy, %" and lines[-1].split() == ["n", "(answers)", "4", "/", "9", "4"]
    same = summary_table([runs[0].results, runs[0].results]).splitlines()[-1]
    assert same.split() == ["n", "(answers)", "4"]
    assert [line.split()[-2:] for line in lines[-3:-1]] == [["50.0", "50.0"], ["25.0", "25.0"]]


def test_protocols_are_shown_in_their_order_and_one_that_is_not_known_by_its_first_number():
    assert list(packaged()) == [
        "open", "multiple_choice", "letter_likelihood", "yes_no", "description", "classification",
        "response_likelihood", "vqa", "chat", "report_generation", "flare", "prompt", "free_form",
    ]  # fmt: skip
    results = {"protocols": {"alien": {"overall": {"mood": number(1.0)}}, "open": {}}, "retention": {"composite": {}}}
    found = displays([results])
    assert list(found) == ["open", "alien"] and found["alien"].main == "mood"
    told = [{**results, "display": {"alien": Display(title).to_dict()}} for title in ("First", "Second")]
    assert displays(told)["alien"].title == "First"


def test_a_difference_is_the_run_minus_the_base_on_true_images():
    base = run("base", rows=[row("1"), row("2", predicted="b"), row("3", predicted="b", attribute="type"),
                             row("1", swapped=1, predicted="b")])  # fmt: skip
    better = run("better", rows=[row("1"), row("2"), row("3", predicted="b", attribute="type"), row("1", swapped=1)])
    found = compare(base, better, resamples=20)["open"]
    assert found["value"] == pytest.approx(0.25) and found["micro"]["value"] == pytest.approx(1 / 3)
    assert (found["mcnemar"]["only_first"], found["mcnemar"]["only_second"], found["n"]) == (0, 1, 3)
    over = compare_over_seeds({0: base}, {0: better}, resamples=20)["open"]
    assert over["value"] == found["value"] and over["by_seed"] == {"0": 0.0}, "as the results say"
    assert compare(base, base, resamples=20)["open"]["mcnemar"]["p_value"] == 1.0
    (table,) = paired_tables([base, better], {"better": {"open": found}})
    assert [one.value for one in table.rows[0].cells] == ["+25.0", "+33.3", "0", "1", "1.000"]
    assert table.columns[2:] == ["only base right", "only this model right", "McNemar p"]
    clear = {**found, **number(0.2, [0.1, 0.3]), "micro": number(-0.2, [-0.3, -0.1])}
    tones = [one.tone for one in paired_tables([base, better], {"better": {"open": clear}})[0].rows[0].cells]
    assert tones == ["good", "bad", "", "", ""]


def test_over_seeds_the_difference_by_seed_is_that_of_the_results():
    base = {seed: run(f"base{seed}", {"open": protocol(0.25)}, [row("1", predicted="b")]) for seed in (0, 1)}
    runs = {seed: run(f"run{seed}", {"open": protocol(0.5 + seed / 4)}, [row("1")]) for seed in (0, 1)}
    found = compare_over_seeds(base, runs, resamples=20)["open"]
    assert found["by_seed"] == {"0": 0.25, "1": 0.5} and found["value"] == 1.0
    assert "minus that of base0, mean over 2 seeds" in found["definition"]


def test_another_image_makes_no_pair_and_a_lost_component_leaves_out_retention():
    base = run("base", rows=[row("1"), row("1", task="yes_no")])
    moved = run("moved", rows=[row("1", image="other.png"), row("1", task="yes_no", in_format=0)])
    both = {"open": protocol(0.5), "yes_no": protocol(0.5)}
    base.results["protocols"], moved.results["protocols"] = both, both
    found = compare(base, moved, resamples=20)
    assert found["skipped"] == {
        "open": "1 of 1 questions have another right answer or image",
        "retention": "its component 'open' was asked on different questions",
    }
    assert "retention" not in found and paired_skips({"moved": found})[0].startswith("moved, open question: not")
    formless = run("formless", both, [row("1"), row("1", task="yes_no", in_format=0)])
    assert compare(base, formless, resamples=20)["retention"]["value"] == pytest.approx(-0.5)


def test_confusion_counts_true_images_and_unread_answers():
    held = [row("1"), row("2", predicted="", read=0), row("3", gold="b"), row("1", swapped=1, predicted="b")]
    (group,) = confusion_tables([run(rows=held)])
    table = group.tables[0].table
    assert table.gold == table.answered == ("a", "b") and table.counts == ((1, 0), (1, 0)) and table.unread == (1, 0)
    widest = [row(str(at), gold=f"v{at:02}", predicted="v00") for at in range(WIDEST)]
    (group,) = confusion_tables([run(rows=widest)])
    assert group.wide == 0 and len(group.tables[0].table.gold) == WIDEST
    sets = {"chest": {"task": "multi_label", "classes": ["x", "y"]}}
    several = [row("1", "classification", "x; y", "x", attribute="chest"),
               row("2", "classification", "x", "", attribute="chest", read=0)]  # fmt: skip
    made = run(protocols={"classification": protocol(0.5)}, rows=several, vocabulary={"sets": sets})
    first, second = (one.tables[0].table for one in confusion_tables([made]))
    assert first.counts == ((1, 0), (0, 0)) and first.unread == (1, 0)
    assert second.counts == ((0, 1), (0, 0)) and second.unread == (0, 1)
    both = {"open": protocol(0.5), "classification": protocol(0.5)}
    told = {"breast": {"task": "multi_class", "classes": ["b", "a", "never"]}}
    rows = [row("1", task, attribute="breast") for task in both]
    opened, classified = confusion_tables([run(protocols=both, rows=rows, vocabulary={"sets": told})])
    assert opened.tables[0].table.gold == ("a",) and classified.tables[0].table.gold == ("b", "a", "never")


def answer(name, task="open", text="It is a.", **meta):
    held = {"sample_id": name, "images": [f"{name}.png"], "attribute": "size", "answer": "a", "swapped": False}
    end = "/swapped" if meta.get("swapped") else ""
    return Prediction(f"{name}/{task}{end}", task, f"ask {name}?", text, (), {**held, **meta})


def test_a_card_shows_what_was_asked_on_its_own_image_with_marks():
    said = [answer("1", text="long " * 100, swapped=True, images=["other.png"]), answer("1"), answer("2", text="dunno"),
            answer("3", text="b"), answer("1.png", "description", "A cell is here.", images=["1.png"])]  # fmt: skip
    told = [row("1"), row("2", predicted="", read=0), row("3", predicted="b"),
            row("1.png", "description", read=0, in_format=1)]  # fmt: skip
    results = {"open": number(0.5), "description": number(1.0), "composite": number(0.8)}
    made = run(rows=told, predictions=said, retention=results)
    cards = {card.answers[0][2][0].text: card for card in choose_cards([made], 9, None)}
    assert set(cards) == {"It is a.", "dunno", "b"}
    assert [cards[text].answers[0][2][0].verdict for text in ("It is a.", "dunno", "b")] == ["right", "unread", "wrong"]
    first = cards["It is a."]
    assert first.question == "What is the size?" and first.tasks == ["Open question", "ask 1.png?"]
    assert first.answers[0][2][1].verdict == "right" and cards["b"].tasks == ["Open question"]
    shown = with_examples(displays([made.results]))
    long = make_card([run(predictions=[answer("1", text="x" * 400)])], answer("1"), None, shown)
    assert long.answers[0][2][0].text == "x" * 220 + " …" and long.answers[0][2][0].verdict == ""
    described = run(rows=[row("1.png", "description", read=0, in_format=0)], predictions=said, retention=results)
    assert make_card([described], answer("1"), None, shown).answers[0][2][1].verdict == "wrong"


def test_losses_are_half_at_most_and_the_rest_goes_by_how_many_are_wrong():
    right = {"base": "123", "one": "45", "two": "4"}
    told = {name: [row(at, predicted="a" if at in held else "b") for at in "12345"] for name, held in right.items()}
    told["one"] = [one for one in told["one"] if one["sample_id"] != "3"]
    runs = [run(name, rows=rows, predictions=[answer(at, text=at) for at in "12345"]) for name, rows in told.items()]
    assert worst_task(runs) == "open"
    cards = worst_cards(runs, 4, None)
    found = [(card.answers[0][2][0].text, card.reason) for card in cards]
    assert {one for one, _ in found[:2]} == {"1", "2"}
    assert found[0][1] == "open question: the first model right, 2 of 2 others wrong"
    # 3 was asked of two models only, one of which is wrong, and 4 of three: the rarer question comes first.
    assert [one for one, _ in found[2:]] == ["5", "3"] and found[2][1] == "open question: 2 of 3 models wrong"
    every = [card.answers[0][2][0].text for card in worst_cards(runs, 99, None)]
    assert every[-1] == "4" and sorted(every) == ["1", "2", "3", "4", "5"]
    perfect = [run(rows=[row("1")], predictions=[answer("1")])]
    assert worst_cards(perfect, 5, None) == []


def test_a_protocol_that_says_nothing_of_right_and_wrong_ranks_no_case():
    assert not Examples(mark="in_format").ranks and not Examples(per_image=True).ranks and Examples().ranks
    asked = [run("a", {"yes_no": protocol(0.5)}, [row("1", "yes_no")]), run("b", rows=[row("1")])]
    assert worst_task(asked) == "open", "one run that was asked is enough"
    only = run(protocols={}, rows=[row("1.png", "description", in_format=0)], retention={"description": number(0.0)})
    assert worst_task([only]) is None


def spread(mean, seeds=2, **more):
    return {"mean": mean, "deviation": 0.015 if seeds > 1 else None, "seeds": seeds, "values": [mean] * seeds, **more}


def test_sections_over_seeds():
    one = {"A": {"open/accuracy_macro": spread(0.5, 1)}}
    assert seeds_section(one) is None and seeds_section({}) is None
    lone = {"A": {"classification/breast/accuracy": spread(0.5, 1)}}
    assert sets_section(lone) is None and sets_section({"A": {}}) is None
    both = {"A": {"classification/breast/accuracy": spread(0.5), "classification/breast/f1_macro": spread(0.4)}}
    section = sets_section(both)
    assert section.table.columns == ["breast: accuracy", "breast: macro-F1"] and section.table.title == "Sets"
    assert [one.value for one in section.table.rows[0].cells] == ["50.0", "40.0"]
    cells = seeds_section({"A": {"open/accuracy_macro": spread(0.5)}, "B": {}}).table.rows
    assert (cells[0].cells[0].span, cells[0].cells[0].n, cells[1].cells[0].value) == ("± 1.5", "2 seeds", MISSING)
    differences = {"A": {"open": number(0.2, [0.1, 0.3])}, "B": {"open": number(-0.2, [-0.3, -0.1])}}
    table = differences_section(differences, "base").table
    assert [(one.cells[0].value, one.cells[0].tone) for one in table.rows] == [("+20.0", "good"), ("−20.0", "bad")]


def test_a_run_is_named_as_the_caller_says_and_half_a_line_of_metrics_is_left_out(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": "medtune-results-1", "name": "own", "protocols": {}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_run(tmp_path, "given").name == "given" and read_run(tmp_path).name == "own"
    assert read_run(tmp_path).metrics == [{"step": 1}]


def test_the_axes_of_a_chart_are_percent_for_shares_alone(monkeypatch):
    class Millimetres(EvaluationProtocol):
        name = "mm"
        display = Display("Distance", (Column("error_macro", "Error in mm"),), rank=1)

    monkeypatch.setitem(REGISTRY, "mm", Millimetres)
    both = {"mm": {"overall": {"error_macro": number(3.25, [2.0, 4.0], False, "mm")}}, "open": protocol(0.5)}
    figures = []
    monkeypatch.setattr(plots, "svg_text", lambda figure: figures.append(figure) or "<svg/>")
    plots.accuracy_chart([run(protocols=both)])
    first, second = figures[0].axes
    assert first.get_title() == "Distance, mm" and second.get_title() == "Open question"
    ends, dot = first.get_lines()
    assert list(ends.get_xdata()) == [2.0, 4.0] and list(dot.get_xdata()) == [3.25]
    assert list(second.get_lines()[1].get_xdata()) == [50.0] and second.get_xlim() == (0, 100)
    levels = [list(line.get_xdata())[0] for line in second.get_lines()[2:]]
    assert levels == [50.0, 25.0], "majority, then chance"
    three = protocol(0.5)
    three["attributes"] = {name: three["attributes"]["size"] for name in ("a", "b", "c")}
    plots.radar_chart([run(protocols={"open": three})], "open")
    axes = figures[1].axes[0]
    rings = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert rings == {"majority (train)": [50.0] * 4, "chance": [25.0] * 4, "base": [50.0] * 4}
    assert axes.get_ylim() == (0, 100)


def test_densities_are_own_then_other():
    from medtune.reporting.sections import protocol_sections

    sets = {"s": {key: number(0.6) for key in ("auc", "overlap")}}
    scored = {"overall": {"auc_macro": number(0.6, [0.55, 0.7])}, "attributes": sets, "swapped": None,
              "densities": {"s": {"own": [0.0, 1.0], "other": [1.0, 0.0]}}}  # fmt: skip
    drawn = {}
    made = run(protocols={"response_likelihood": scored})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "density_chart", lambda densities, places: drawn.update(densities) or "<svg/>")
        first, second = protocol_sections([made])
    assert drawn == {"base": ([0.0, 1.0], [1.0, 0.0])}
    assert first.table.rows[0].cells[0].tone == "good", "above one half with the whole interval"
    assert second.table.rows[0].cells[0].note == "overlap 60.0"
