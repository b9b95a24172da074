"""Numbers of a set of reports: by hand, by scikit-learn and sacrebleu, on resamples, and as paired differences."""

import random

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import f1_score

from medtune.evaluation.reports.findings import FINDINGS, stated_findings
from medtune.evaluation.reports.green import EMPTY, GreenCounts
from medtune.evaluation.reports.scores import (
    COLUMNS,
    Counts,
    counts_row,
    differences,
    finding_numbers,
    report_labels,
    report_measures,
    score_counts,
    score_reports,
)
from medtune.evaluation.reports.text import rouge_l, words

SENTENCES = (
    "The heart is enlarged.",
    "Small pleural effusion.",
    "No pneumothorax.",
    "Bibasilar atelectasis.",
    "The lungs are clear.",
    "Calcified granuloma.",
    "Left pacemaker.",
)


def made_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [tuple(" ".join(rng.sample(SENTENCES, rng.randint(1, 4))) for _ in range(2)) for _ in range(count)]


def table(pairs: list[tuple[str, str]], greens: list[GreenCounts | None] | None = None, groups: str = "") -> Counts:
    greens = greens or [None] * len(pairs)
    rows = [
        counts_row(report_measures(said, right, green), report_labels(right), report_labels(said) if said else None)
        for (said, right), green in zip(pairs, greens, strict=True)
    ]
    return Counts(np.array(rows), list(groups or "a" * len(pairs)), list(range(len(pairs))))


def test_numbers_by_hand() -> None:
    pairs = [
        ("The heart is enlarged.", "The heart is enlarged. Small pleural effusion."),
        ("Bibasilar atelectasis.", "The lungs are clear."),
        ("", "Left pacemaker."),
    ]
    numbers = {name: number.value for name, number in score_reports(pairs, resamples=5).items()}
    # Findings: cardiomegaly found, effusion and device missed, atelectasis said without reason: tp 1, fp 1, fn 2.
    assert numbers["findings_f1"] == pytest.approx(2 / (2 + 1 + 2))
    assert numbers["findings_mean_f1"] == pytest.approx((1 + 0 + 0 + 0) / 4)
    assert numbers["findings_exact"] == 0.0
    # ROUGE-L: 4 words of 4 and of 7; nothing; nothing.
    assert numbers["rouge_l"] == pytest.approx((2 * 4 / (4 + 7)) / 3)
    # Of 6 words said 4 are right; 13 words were to be said.
    assert numbers["bleu_1"] == pytest.approx(np.exp(1 - 13 / 6) * 4 / 6)
    assert not any(name.startswith("green") for name in numbers)


def test_two_normal_reports_agree_exactly_and_have_no_f1() -> None:
    numbers = score_reports([("The lungs are clear.", "No pneumothorax.")] * 2, resamples=5)
    assert numbers["findings_exact"].value == 1.0
    assert numbers["findings_f1"].value is None and numbers["findings_mean_f1"].value is None


def test_findings_and_bleu_equal_the_reference_packages() -> None:
    pairs = made_pairs(60)
    numbers = score_reports(pairs, resamples=5)
    marked = [
        [[name in stated_findings(text) for name in FINDINGS] for text in side] for side in zip(*pairs, strict=True)
    ]
    used = [at for at in range(len(FINDINGS)) if any(row[at] for side in marked for row in side)]
    said, right = (np.array(side)[:, used] for side in marked)
    assert numbers["findings_f1"].value == pytest.approx(f1_score(right, said, average="micro"))
    assert numbers["findings_mean_f1"].value == pytest.approx(f1_score(right, said, average="macro"))
    plain = [[" ".join(words(pair[side])) for pair in pairs] for side in (0, 1)]
    for order in range(1, 5):
        metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        assert numbers[f"bleu_{order}"].value == pytest.approx(metric.corpus_score(plain[0], [plain[1]]).score / 100)


def test_intervals_are_those_of_slow_resampling() -> None:
    pairs = made_pairs(25)
    found = score_reports(pairs, resamples=200, seed=3)
    rng = np.random.default_rng(3)
    scores: dict[str, list[float]] = {"rouge_l": [], "findings_f1": [], "bleu_2": []}
    # The clusters stand in the order of their names as text: "0", "1", "10", ...
    order = sorted(range(25), key=repr)
    for start in range(0, 200, 100):
        for weights in rng.multinomial(25, np.full(25, 1 / 25), size=100):
            drawn = [pairs[at] for at, times in zip(order, weights, strict=True) for _ in range(times)]
            for name, number in score_reports(drawn, resamples=1).items():
                if name in scores:
                    scores[name].append(number.value)
        assert start in (0, 100)
    for name, values in scores.items():
        assert found[name].interval == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12), name


def test_green_is_the_mean_over_reports_that_were_read() -> None:
    read = GreenCounts((1, 0, 0, 0, 0, 0), 3, "", 0.75)
    unread = GreenCounts(None, None, "section_missing", 0.0)
    numbers = score_counts(table(made_pairs(4), [read, unread, EMPTY, None]), resamples=20)
    assert (numbers["green"].value, numbers["green"].n) == (pytest.approx((0.75 + 0.0) / 2), 2)
    assert (numbers["green_official"].value, numbers["green_official"].n) == (pytest.approx((0.75 + 0 + 0) / 3), 3)
    assert numbers["green_unread"].value == pytest.approx(1 / 3) and numbers["rouge_l"].n == 4


def test_a_mean_over_groups_gives_each_group_the_same_weight() -> None:
    pairs = [(SENTENCES[0], SENTENCES[0])] * 3 + [(SENTENCES[1], SENTENCES[0])]
    both = [score_counts(table(pairs, groups="aaab"), over_groups=over, resamples=5) for over in (False, True)]
    other = rouge_l(words(SENTENCES[1]), words(SENTENCES[0]))
    assert both[0]["rouge_l"].value == pytest.approx((3 + other) / 4)
    assert both[1]["rouge_l"].value == pytest.approx((1 + other) / 2)
    assert both[1]["findings_f1"].value == pytest.approx((1.0 + 0.0) / 2)


def test_rare_findings_give_a_caution_in_place_of_an_interval() -> None:
    number = score_reports(made_pairs(20), resamples=20)["findings_mean_f1"]
    assert number.interval is None and "rests on few images of" in number.caution
    each = finding_numbers(table(made_pairs(200)), resamples=20)
    assert each["cardiomegaly"]["f1"].interval is not None and each["cardiomegaly"]["f1"].n > 15
    assert "pneumonia" not in each and set(each["device"]) == {"f1", "precision", "recall"}


def test_a_difference_is_paired() -> None:
    pairs = made_pairs(40)
    better = [(right if at % 2 else said, right) for at, (said, right) in enumerate(pairs)]
    names = ["rouge_l", "bleu_4", "findings_f1", "green"]
    found = differences(table(pairs), table(better), "base", names=names, resamples=200)
    assert set(found) == {"rouge_l", "bleu_4", "findings_f1"}
    first, second = (score_reports(one, resamples=5) for one in (pairs, better))
    for name, number in found.items():
        assert number.value == pytest.approx(second[name].value - first[name].value)
        assert number.interval is not None and number.interval[0] > 0
    same = differences(table(pairs), table(pairs), "base", names=["rouge_l"], resamples=50)
    assert (same["rouge_l"].value, same["rouge_l"].interval) == (0.0, None)


def test_no_reports_give_no_numbers() -> None:
    numbers = score_reports([])
    assert {number.value for number in numbers.values()} == {None} and len(COLUMNS) == len(set(COLUMNS))
