import dataclasses

from medtune.errors import DataError
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run
from medtune.reporting.worst import WORST, worst_cards, worst_task


def _wrong_counts(cards):
    return [sum(answers[0].verdict != "right" for _, _, answers in card.answers) for card in cards]


def test_losses_first_then_the_questions_that_the_most_runs_get_wrong(runs):
    loaded = [read_run(run, with_answers=True) for run in runs]
    cards = worst_cards(loaded, 10, None)
    assert len(cards) == 10
    losses, rest = cards[:5], cards[5:]
    assert all(card.answers[0][2][0].verdict == "right" for card in losses)
    assert all("the first model right" in card.reason for card in losses)
    for part in (losses, rest):
        counts = _wrong_counts(part)
        assert counts == sorted(counts, reverse=True) and counts[-1] >= 1
    hardest = max(
        sum(run.verdicts[one]["correct"] == "0" for run in loaded)
        for one, row in loaded[0].verdicts.items()
        if row["task"] == "open" and row["swapped"] == "0"
    )
    assert _wrong_counts(rest)[0] == hardest
    assert rest[0].reason == f"open question: {hardest} of 4 models wrong"


def test_the_choice_is_the_same_each_time_and_the_seed_breaks_ties(runs):
    loaded = [read_run(run, with_answers=True) for run in runs]
    assert worst_cards(loaded, WORST, None) == worst_cards(loaded, WORST, None)
    shuffled = [dataclasses.replace(run, verdicts=dict(reversed(run.verdicts.items()))) for run in loaded]
    assert worst_cards(shuffled, WORST, None) == worst_cards(loaded, WORST, None)
    assert worst_cards(loaded, WORST, None, seed=5) != worst_cards(loaded, WORST, None)


def test_no_question_comes_twice_and_none_that_all_get_right(runs):
    loaded = [read_run(run, with_answers=True) for run in runs]
    cards = worst_cards(loaded, 10_000, None)
    wrong = {
        row["sample_id"]
        for run in loaded
        for row in run.verdicts.values()
        if row["task"] == "open" and row["swapped"] == "0" and row["correct"] == "0"
    }
    assert 0 < len(cards) == len(wrong) < 84


def test_without_the_open_question_multiple_choice_decides(runs):
    run = read_run(runs[0], with_answers=True)
    letters = {one: row for one, row in run.verdicts.items() if row["task"] == "multiple_choice"}
    only = dataclasses.replace(run, verdicts=letters)
    assert worst_task([only]) == "multiple_choice"
    assert worst_cards([only], 1, None)[0].reason == "multiple choice: 1 of 1 models wrong"
    assert worst_cards([dataclasses.replace(run, verdicts={})], 5, None) == []


def test_they_stand_on_the_page_with_images_only_when_samples_are_asked_for(runs, tmp_path, open_image):
    without = write_report(runs, tmp_path / "a.html", open_image=open_image).read_text()
    assert "Worst cases" not in without and "worst case image" not in without
    text = write_report(runs, tmp_path / "b.html", samples=1, open_image=open_image).read_text()
    assert text.count('alt="worst case image"') == WORST and text.count('alt="sample image"') == 1


def test_names_and_reasons_are_escaped_and_a_broken_image_is_said(runs, tmp_path):
    def broken(path):
        raise DataError("no such image")

    attack = "<script>alert(1)</script>"
    names = {"run0": attack}
    text = write_report(runs[:2], tmp_path / "r.html", names=names, samples=1, open_image=broken).read_text()
    assert "Worst cases" in text and "the image could not be opened" in text
    assert "<script" not in text and "First up to ten that &lt;script&gt;alert(1)" in text
