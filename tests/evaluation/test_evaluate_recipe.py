import csv
import importlib.util
import json
import sys

import pytest

from medtune.evaluation.prediction import write_predictions
from medtune.evaluation.protocols.registry import PROTOCOLS, plan_queries


@pytest.fixture(scope="module")
def recipe(request):
    path = request.config.rootpath / "recipes" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("evaluate_recipe", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_recipe"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def prepared(tmp_path, questions, majority):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one.to_dict()) + "\n" for one in questions))
    (tmp_path / "training_majority.json").write_text(json.dumps(majority))
    return tmp_path


def run(recipe, prepared, *more: str) -> int:
    return recipe.main(
        [
            "--config",
            "evaluate/default",
            f"predictions={prepared}/predictions.jsonl",
            f"prepared_dir={prepared}",
            f"output={prepared}/scored",
            "bootstrap_draws=50",
            *more,
        ]  # fmt: skip
    )


def test_it_writes_results_with_their_provenance(recipe, prepared, questions, answer, capsys):
    queries = plan_queries(questions, PROTOCOLS, swapped=["multiple_choice", "open"])
    write_predictions(prepared / "predictions.jsonl", [answer(query) for query in queries])
    assert run(recipe, prepared, "name=mini") == 0
    results = json.loads((prepared / "scored" / "results.json").read_text())
    assert results["name"] == "mini"
    assert results["protocols"]["open"]["overall"]["accuracy_macro"]["value"] == 1.0
    assert len(results["provenance"]["sha256"]["predictions"][0]) == 64
    assert results["provenance"]["versions"]["scikit-learn"]
    with (prepared / "scored" / "verdicts.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(queries)
    assert (prepared / "scored" / "numbers.csv").read_text().startswith("run,protocol,group,attribute,metric,value")
    printed = capsys.readouterr().out
    assert "majority (train)" in printed and "100.0" in printed


def test_twice_gives_the_same_bytes(recipe, prepared, questions, answer):
    queries = plan_queries(questions, PROTOCOLS, swapped=["multiple_choice", "open"])
    write_predictions(prepared / "predictions.jsonl", [answer(query) for query in queries])
    run(recipe, prepared)
    first = (prepared / "scored" / "results.json").read_bytes()
    run(recipe, prepared)
    assert (prepared / "scored" / "results.json").read_bytes() == first


def test_answers_may_lie_in_several_files(recipe, prepared, questions, answer):
    rows = [answer(query) for query in plan_queries(questions, ["open"], swapped=["open"])]
    for place, part in enumerate((rows[:5], rows[5:])):
        write_predictions(prepared / f"part{place}.jsonl", part)
    files = f"predictions=[{prepared}/part0.jsonl,{prepared}/part1.jsonl]"
    assert run(recipe, prepared, files, "protocols=[open]", "swapped=[open]") == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("predictions=none.jsonl", "none.jsonl: there is no such prediction file"),
        ("split=tset", "tset.jsonl"),
        ("majority=none.json", "none.json: the majority values"),
        ("protocols=[opne]", "unknown protocol 'opne'"),
        ("on_mising=wrong", "'on_missing'"),
        ("on_missing=skip", "'skip'"),
        ("limit=0", "limit must be at least 1"),
        ("bootstrap_draws=0", "bootstrap_draws must be at least 1"),
    ],
)
def test_bad_input_is_one_line(recipe, prepared, questions, answer, capsys, override, says):
    write_predictions(prepared / "predictions.jsonl", [answer(query) for query in plan_queries(questions, ["open"])])
    assert run(recipe, prepared, "swapped=[]", override) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (prepared / "scored" / "results.json").exists()


def test_what_was_asked_is_read_from_the_record(recipe, prepared, questions, answer, capsys):
    asked = {"protocols": ["open", "yes_no"], "swapped": ["yes_no"], "limit": 6, "seed": 3}
    queries = plan_queries(questions[:6], ["open", "yes_no"], swapped=["yes_no"], seed=3)
    write_predictions(prepared / "predictions.jsonl", [answer(query) for query in queries])
    (prepared / "predictions.meta.json").write_text(json.dumps({"config": asked}))
    assert run(recipe, prepared) == 0
    results = json.loads((prepared / "scored" / "results.json").read_text())
    assert results["counts"]["questions"] == 6
    assert list(results["protocols"]) == ["open", "yes_no"]
    told = results["provenance"]["config"]
    assert {key: told[key] for key in asked} == asked
    assert results["provenance"]["seed"] == 3
    written = [f"{key}={json.dumps(value)}" for key, value in asked.items()]
    assert run(recipe, prepared, *written) == 0
    again = json.loads((prepared / "scored" / "results.json").read_text())
    assert again == results
    capsys.readouterr()
    assert run(recipe, prepared, "limit=5") == 2
    assert "limit: 5 is asked for" in capsys.readouterr().err


def test_questions_can_be_chosen_by_their_meta(recipe, prepared, questions, answer, capsys):
    one = questions[0].meta["attribute"]
    chosen = [question for question in questions if question.meta["attribute"] == one]
    assert 0 < len(chosen) < len(questions)
    queries = plan_queries(chosen, ["open"])
    write_predictions(prepared / "predictions.jsonl", [answer(query) for query in queries])
    asked = ["protocols=[open]", "swapped=[]"]
    assert run(recipe, prepared, *asked) == 2, "the other questions have no answer"
    assert "without an answer" in capsys.readouterr().err
    assert run(recipe, prepared, *asked, f"where.attribute='{one}'") == 0
    results = json.loads((prepared / "scored" / "results.json").read_text())
    assert list(results["protocols"]["open"]["attributes"]) == [one]
    assert results["provenance"]["config"]["where"] == {"attribute": one}
    assert run(recipe, prepared, *asked, "where.attribute=nothing") == 2
    assert "no row has attribute nothing" in capsys.readouterr().err
