import dataclasses

from medtune.reporting.comparison import compare
from medtune.reporting.runs import read_run


def test_a_run_against_itself_differs_by_nothing(runs):
    run = read_run(runs[2])
    numbers = compare(run, run, draws=50)
    assert set(numbers) == {"open", "multiple_choice", "letter_likelihood", "yes_no", "retention"}
    assert all(number["value"] == 0.0 and number["interval"] == [0.0, 0.0] for number in numbers.values())


def test_pairing_is_narrower_than_two_intervals(runs):
    base, tuned = read_run(runs[0]), read_run(runs[2])
    half = dict(list(tuned.verdicts.items()))
    for one in list(half)[:20]:
        half[one] = {**half[one], "correct": "0"}
    worse = dataclasses.replace(tuned, verdicts=half)
    low, high = compare(tuned, worse)["open"]["interval"]
    assert high - low < 0.25 and high <= 0
    assert compare(base, tuned)["open"]["n"] == 84


def test_runs_without_verdicts_are_not_compared(runs):
    run = read_run(runs[0])
    assert compare(run, dataclasses.replace(run, verdicts={})) == {}
