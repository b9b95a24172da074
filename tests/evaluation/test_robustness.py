"""The robustness card on models of known behaviour: one that looks, one that picks a position, one that is blind."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medtune.data.sample import Message
from medtune.errors import ConfigError
from medtune.evaluation.asked import Asked, what_was_asked
from medtune.evaluation.evaluation import evaluate, metric_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query, Verdict
from medtune.evaluation.protocols.registry import build_protocols, plan_queries
from medtune.evaluation.robustness import PROBES, chosen_probes, probed, robustness_card, robustness_rows
from medtune.reporting.robustness import robustness_sections
from medtune.reporting.runs import Run
from tests.evaluation.classes import CHEST, MAJORITY, class_questions
from tests.evaluation.tools import question

SHAPES = ["oval", "round", "spindle"]
ASKED = ["multiple_choice", "open", "yes_no"]
TRAINED = {"cell shape": "round"}
Model = Callable[[Query], str]


def questions(count: int = 24) -> list:
    return [question(f"q{n}", "cell shape", SHAPES, SHAPES[n % 3], f"{n}.png") for n in range(count)]


SEEN = {f"{n}.png": SHAPES[n % 3] for n in range(24)}


def said(query: Query, value: str) -> str:
    """A value in the form that the query asks for."""
    if query.task == "multiple_choice":
        letters = {option: "ABC"[at] for at, option in enumerate(query.meta["options"])}
        return f"The correct answer is {letters[value]}."
    if query.task == "yes_no":
        return "Yes." if query.meta["asked_value"] == value else "No."
    return f"The cell shape is {value}."


def looking(query: Query) -> str:
    """Answers what the image shows; without an image it declines."""
    return said(query, SEEN[query.sample.images[0]]) if query.sample.images else "There is no image."


def positional(query: Query) -> str:
    """Takes the first option, whatever it says."""
    return "The correct answer is A." if query.task == "multiple_choice" else looking(query)


def blind(query: Query) -> str:
    """Answers from the words of the question alone, in one way for all questions about an attribute."""
    return said(query, "round")


def worded(query: Query) -> str:
    """Reads the image only if the question begins as it did in training."""
    return said(query, SEEN[query.sample.images[0]] if query.prompt.startswith("What is") else "oval")


def card(model: Model, protocols: list[str] = ASKED, probes: object = True) -> dict:
    samples = questions()
    rows = [Prediction(q.id, q.task, q.prompt, model(q), q.references, q.meta)
            for q in plan_queries(samples, protocols, robustness=probes, seed=2)]  # fmt: skip
    options = {"protocols": protocols, "robustness": probes, "seed": 2, "resamples": 50}
    return evaluate(samples, rows, TRAINED, name="model", **options).results["robustness"]


def flips(found: dict, task: str) -> dict[str, float]:
    return {probe: numbers["flip_rate"]["value"] for probe, numbers in found[task].items()}


def test_a_model_that_looks_changes_with_the_image_and_stays_otherwise() -> None:
    found = card(looking)
    assert flips(found, "multiple_choice") == {"swapped": 1.0, "no_image": 1.0, "options": 0.0, "paraphrase": 0.0}
    assert flips(found, "open") == {"swapped": 1.0, "no_image": 1.0, "paraphrase": 0.0}
    assert found["open"]["no_image"]["unread"]["value"] == 1.0 and found["open"]["no_image"]["drop"]["value"] == 1.0
    assert found["open"]["paraphrase"]["drop"]["value"] == 0.0


def test_a_model_that_takes_the_first_option_flips_with_the_order_and_with_nothing_else() -> None:
    found = flips(card(positional, ["multiple_choice"]), "multiple_choice")
    assert found == {"swapped": 0.0, "no_image": 0.0, "options": 1.0, "paraphrase": 0.0}


def test_an_image_blind_model_never_changes_its_answer_and_loses_nothing_without_the_image() -> None:
    found = card(blind)
    for task in ASKED:
        assert set(flips(found, task).values()) == {0.0}, task
        assert found[task]["no_image"]["drop"]["value"] == 0.0
    # A third of the images are round, so the swap costs nothing on the whole either.
    assert found["open"]["swapped"]["flip_rate"]["interval"][1] < 0.2


def test_a_model_that_depends_on_the_wording_flips_with_the_paraphrase() -> None:
    found = card(worded, ["open"], ["paraphrase"])["open"]
    assert found.keys() == {"paraphrase"} and found["paraphrase"]["flip_rate"]["value"] == pytest.approx(2 / 3)
    assert found["paraphrase"]["drop"]["value"] == pytest.approx(2 / 3)


def test_flip_rates_have_intervals_over_images_and_a_direction() -> None:
    numbers = card(looking)["multiple_choice"]
    assert numbers["options"]["flip_rate"]["interval"] == pytest.approx([0.0, 0.138], abs=1e-3)
    assert [numbers[name]["flip_rate"]["higher_is_better"] for name in PROBES] == [True, None, False, False]
    assert numbers["swapped"]["flip_rate"]["n"] == 24, "every other image has another right answer"


def test_the_card_changes_no_other_number_of_an_evaluation() -> None:
    samples = questions()

    def run(robustness: object) -> dict:
        rows = [Prediction(q.id, q.task, q.prompt, worded(q) if q.sample.images else "", q.references, q.meta)
                for q in plan_queries(samples, ASKED, robustness=robustness, swapped=ASKED)]  # fmt: skip
        done = evaluate(samples, rows, TRAINED, name="m", protocols=ASKED, swapped=ASKED, robustness=robustness,
                        resamples=30)  # fmt: skip
        assert {row.probe for row in done.verdicts} == {""}
        return done.results

    plain, probed_too = run(False), run(True)
    assert plain["protocols"] == probed_too["protocols"] and plain["retention"] == probed_too["retention"]
    assert "robustness" not in plain and any(row["group"] == "robustness, options" for row in metric_rows(probed_too))


def test_every_option_gets_another_letter_and_the_right_answer_follows_its_text() -> None:
    for sample in questions():
        (plain,) = plan_queries([sample], ["multiple_choice"])
        moved = next(q for q in plan_queries([sample], ["multiple_choice"], robustness=["options"]) if q.id != plain.id)
        before, after = plain.meta["options"], moved.meta["options"]
        assert sorted(before) == sorted(after) and all(a != b for a, b in zip(before, after, strict=True))
        assert moved.references == (f"The correct answer is {'ABC'[after.index(sample.meta['answer'])]}.",)


def test_a_paraphrase_of_the_data_is_asked_in_place_of_a_made_one() -> None:
    sample = questions(1)[0]
    own = type(sample)(
        sample.id, sample.images, sample.messages, {**sample.meta, "paraphrases": ["Which form has it?"]}
    )
    assert probed(own, "paraphrase", 0).messages[0].content == "Which form has it?"
    made = {probed(one, "paraphrase", 0).messages[0].content for one in questions()}
    assert len(made) == 3 and all("cell shape" in text for text in made)
    free = question("f", "size", SHAPES, "oval", "1.png")
    free = type(free)("f", free.images, (type(free.messages[0])("user", "<image> Name it."),), free.meta)
    assert "Name it." in probed(free, "paraphrase", 0).messages[0].content
    assert probed(free, "no_image", 0).images == () and "<image>" not in probed(free, "no_image", 0).messages[0].content


def test_the_question_that_is_asked_is_changed_and_what_was_said_before_stays() -> None:
    plain = questions(1)[0]
    turns = (Message("user", "<image> Where is it?"), Message("assistant", "Here."), Message("user", "Is it big?"))
    asked = dataclasses.replace(plain, messages=(*turns, Message("assistant", "Yes.")))
    said = probed(asked, "paraphrase", 0).messages
    assert [turn.content for turn in (said[0], said[1], said[3])] == ["Where is it?", "Here.", "Yes."]
    assert said[2].role == "user" and "Is it big?" in said[2].content and said[2].content != "Is it big?"
    blind = probed(asked, "no_image", 0).messages
    assert [turn.content for turn in blind] == ["Where is it?", "Here.", "Is it big?", "Yes."]


def test_options_are_moved_by_more_than_one_place_too() -> None:
    orders = {tuple(probed(one, "options", 0).meta["option_order"]) for one in questions()}
    assert orders == {("round", "spindle", "oval"), ("spindle", "oval", "round")}


def test_paraphrases_of_the_data_that_are_no_texts_are_passed_over() -> None:
    plain = questions(1)[0]
    some, none = (dataclasses.replace(plain, meta={**plain.meta, "paraphrases": given})
                  for given in ([5, " ", "Which form?"], [5, " "]))  # fmt: skip
    assert {probed(some, "paraphrase", seed).messages[0].content for seed in range(9)} == {"Which form?"}
    assert probed(none, "paraphrase", 0).messages == probed(plain, "paraphrase", 0).messages


def test_a_row_without_a_question_is_asked_about_its_attribute() -> None:
    plain = questions(1)[0]
    bare = dataclasses.replace(plain, messages=plain.messages[1:])
    asked = probed(bare, "paraphrase", 0).messages
    assert [turn.role for turn in asked] == ["user", "assistant"]
    assert asked[0] == probed(plain, "paraphrase", 0).messages[0] and "cell shape" in asked[0].content
    assert probed(bare, "no_image", 0).messages == (Message("user", ""), *bare.messages)


def verdict(sample: int, predicted: str | None, probe: str = "", differs: bool = True) -> Verdict:
    """An answer about an image of its own; the gold value of all is oval, and swapped questions show image 0."""
    name, swapped = f"q{sample}", probe == "swapped"
    shown = {"swapped": ("0.png",), "no_image": ()}.get(probe, (f"{sample}.png",))
    return Verdict(
        f"{name}/{probe}", "multiple_choice", name, "cell shape", shown, "oval", predicted, True, swapped,
        shown_differs=swapped and differs, probe="" if swapped else probe,
    )  # fmt: skip


def numbers_of(verdicts: list[Verdict], probe: str) -> dict:
    protocols = build_protocols(["multiple_choice"])
    return robustness_card(verdicts, [probe], protocols, resamples=200)["multiple_choice"][probe]


def test_a_swap_to_an_image_with_the_same_answer_is_no_chance_to_change_it() -> None:
    asked = [verdict(n, "oval") for n in range(4)]
    after = [verdict(n, "round" if n < 2 else "oval", "swapped", differs=n < 3) for n in range(4)]
    numbers = numbers_of([*asked, *after], "swapped")
    assert numbers["flip_rate"].n == 3 and numbers["flip_rate"].value == pytest.approx(2 / 3)
    assert numbers["accuracy"].n == 4 and numbers["accuracy"].value == 0.5


@pytest.mark.parametrize(("probe", "better"), [("swapped", None), ("no_image", None), ("options", True)])
def test_intervals_of_probes_are_over_the_images_of_the_questions(probe: str, better: bool | None) -> None:
    asked = [verdict(n, "oval") for n in range(20)]
    after = [verdict(n, ["oval", "round"][n % 2], probe) for n in range(20)]
    accuracy = numbers_of([*asked, *after], probe)["accuracy"]
    assert accuracy.higher_is_better is better
    assert accuracy.interval is not None and 0.1 < accuracy.interval[1] - accuracy.interval[0] < 0.6


def test_rows_of_the_card_hold_what_was_read_and_whether_it_changed() -> None:
    given = [verdict(0, None), verdict(0, "round", "paraphrase"), verdict(1, "round"), verdict(1, None, "swapped"),
             verdict(2, "round"), verdict(2, "round", "no_image"), verdict(3, "oval", "no_image")]  # fmt: skip
    rows = robustness_rows(given)
    assert [(row["probe"], row["before"], row["after"], row["flipped"]) for row in rows] == [
        ("paraphrase", "", "round", 1), ("swapped", "round", "", 1), ("no_image", "round", "round", 0)
    ]  # fmt: skip


def test_classification_and_multi_label_sets_have_a_card_too() -> None:
    queries = plan_queries(class_questions(), ["classification", "multiple_choice"][:1], robustness=True)
    kinds = {q.meta.get("probe", "swapped" if q.meta["swapped"] else "") for q in queries}
    assert kinds == {"", "swapped", "no_image", "paraphrase"}
    rows = [Prediction(q.id, q.task, q.prompt, q.meta["answer"] if q.sample.images else CHEST[0], q.references, q.meta)
            for q in queries]  # fmt: skip
    done = evaluate(class_questions(), rows, MAJORITY, name="m", protocols=["classification"], robustness=True,
                    resamples=20)  # fmt: skip
    assert done.results["robustness"]["classification"]["paraphrase"]["flip_rate"]["value"] == 0.0


def test_an_unknown_probe_is_refused() -> None:
    assert chosen_probes(True) == PROBES and chosen_probes(["paraphrase", "swapped"]) == ("swapped", "paraphrase")
    with pytest.raises(ConfigError, match="unknown probe 'option'"):
        chosen_probes(["option"])


def test_evaluate_finds_the_card_in_the_record_and_without_a_record_in_the_rows(tmp_path: Path) -> None:
    rows = [Prediction(q.id, q.task, q.prompt, looking(q), q.references, q.meta)
            for q in plan_queries(questions(), ASKED, robustness=True)]  # fmt: skip
    path = tmp_path / "predictions.jsonl"
    found = what_was_asked(Asked(), [(path, rows)])
    assert found.robustness == list(PROBES) and found.swapped == []
    config = {"protocols": ASKED, "swapped": [], "seed": 0, "limit": None, "robustness": ["options"]}
    path.with_suffix(".meta.json").write_text(json.dumps({"config": config}))
    assert what_was_asked(Asked(), [(path, rows)]).robustness == ["options"]
    with pytest.raises(ConfigError, match="robustness"):
        what_was_asked(Asked(robustness=["swapped"]), [(path, rows)])


def test_the_report_shows_a_row_for_each_run_and_protocol() -> None:
    results = [{"name": name, "protocols": {task: {} for task in ASKED}, "retention": {}, "robustness": card(model)}
               for name, model in (("looks", looking), ("first", positional))]  # fmt: skip
    (section,) = robustness_sections([Run(one["name"], Path(), one) for one in results])
    assert [row.label for row in section.table.rows][:2] == ["looks: Open question", "first: Open question"]
    choice = {row.label: row.cells for row in section.table.rows}["first: Multiple choice"]
    assert [one.value for one in choice] == ["0.0", "0.0", "100.0", "0.0"]
    assert choice[2].note.startswith("accuracy ") and choice[2].span
    assert robustness_sections([Run("none", Path(), {"name": "none", "protocols": {}, "retention": {}})]) == []
