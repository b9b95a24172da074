"""The benchmark of routed answers in a small form: every way answers as each adapter alone."""

from pathlib import Path

from tests.benchmark.scripts import script

bench = script("routing")
SMALL = (
    "--rounds 1 --questions 8 --batch-size 4 --new-tokens 4 --words 3 --embed-dim 64 --decoder-layers 1 "
    "--vision-layers 1 --image-size 32"
).split()


def test_all_ways_answer_as_each_adapter_alone(tmp_path: Path) -> None:
    found = bench.measure(bench.parse(SMALL), tmp_path)
    assert found["same_answers"] == dict.fromkeys(("load_and_merge", "merge", "switch", "mixed_batch"), 1.0)
    assert found["different_answers"] > 4
    assert (
        1.0 <= found["memory"]["memory_over_base_and_adapters"] < 1.3
    )  # rotary tables weigh much in a model this small
    rates = found["all_rounds"]
    assert found["speedup_vs_merge"] == rates["mixed_batch"][0] / rates["load_and_merge"][0]
    assert found["relative_to_single_adapter"] == rates["mixed_batch"][0] / rates["single_adapter"][0]


def test_the_tasks_take_turns_in_questions_of_one_length() -> None:
    asked = bench.questions(bench.parse(SMALL))
    assert [request.notes["adapter"] for request in asked] == [*bench.TASKS, bench.TASKS[0]]
    assert {len(request.sample.messages[0].content.split()) for request in asked} == {3}
