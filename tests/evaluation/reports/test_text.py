"""ROUGE-L and BLEU against the formulas by hand, the slow algorithm and the reference packages."""

import math
import random

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from medtune.evaluation.reports.text import bleu, common_subsequence, overlap, rouge_l, words

TERMS = "the heart is normal in size no pleural effusion or pneumothorax lungs are clear left right small 2 3".split()
PAIRS = [
    ("The heart is normal.", "The heart is enlarged."),
    ("No effusion. Lungs are clear!", "The lungs are clear, no pleural effusion."),
    ("a b c d", "d c b a"),
    ("3.5 cm nodule", "nodule of 3.5 cm"),
]


def random_report(rng: random.Random, least: int = 1) -> str:
    return " ".join(rng.choices(TERMS, k=rng.randint(least, 30)))


def set_counts(pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    split = [(words(said), words(right)) for said, right in pairs]
    counted = [overlap(said, right) for said, right in split]
    lengths = np.array([[len(said), len(right)] for said, right in split], dtype=float)
    matches, totals = (np.array([one[side] for one in counted], dtype=float).sum(0) for side in (0, 1))
    return matches, totals, lengths.sum(0)


def table_length(first: list[str], second: list[str]) -> int:
    """The textbook algorithm."""
    row = [0] * (len(second) + 1)
    for word in first:
        last, row = row, [0]
        for at, other in enumerate(second):
            row.append(last[at] + 1 if word == other else max(row[at], last[at + 1]))
    return row[-1]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "the heart is" is common: 3 of 4 words of each.
    assert rouge_l(words(PAIRS[0][0]), words(PAIRS[0][1])) == 0.75
    # "lungs are clear" is the longest: P = 3/5, R = 3/7.
    precision, recall = 3 / 5, 3 / 7
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(words(PAIRS[1][0]), words(PAIRS[1][1])) == pytest.approx(expected, abs=1e-15)
    assert rouge_l([], ["a"]) == rouge_l(["a"], []) == rouge_l([], []) == 0.0


def test_rouge_l_equals_the_reference_package() -> None:
    rng, scorer = random.Random(0), RougeScorer(["rougeL"])
    for said, right in [*PAIRS, *((random_report(rng), random_report(rng)) for _ in range(200))]:
        assert rouge_l(words(said), words(right)) == pytest.approx(
            scorer.score(right, said)["rougeL"].fmeasure, abs=1e-12
        )


def test_the_length_by_bits_is_that_of_the_textbook_algorithm() -> None:
    rng = random.Random(1)
    for _ in range(200):
        first, second = (rng.choices("abcd", k=rng.randint(0, 90)) for _ in range(2))
        assert common_subsequence(first, second) == table_length(first, second)


def test_bleu_is_the_papers_formula() -> None:
    # Candidate of 5 words, reference of 7: unigrams 5 of 5 (no, effusion, lungs, are, clear), bigrams 2 of 4.
    matches, totals, lengths = set_counts([PAIRS[1]])
    assert (matches.tolist(), totals.tolist(), lengths.tolist()) == ([5, 2, 1, 0], [5, 4, 3, 2], [5, 7])
    penalty = math.exp(1 - 7 / 5)
    by_order = [float(bleu(matches, totals, lengths, order)) for order in (1, 2, 3, 4)]
    expected = [penalty, penalty * math.sqrt(2 / 4), penalty * (2 / 4 * 1 / 3) ** (1 / 3), 0.0]
    assert by_order == pytest.approx(expected, abs=1e-15)


def test_a_repeated_word_counts_as_often_as_in_the_reference() -> None:
    # Papineni et al., Sec. 2.1: "the the the the the the the" has a clipped unigram precision of 2/7.
    matches, totals = overlap(["the"] * 7, words("The cat is on the mat."))
    assert (matches[0], totals[0]) == (2, 7)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_of_a_set_equals_sacrebleu(order: int) -> None:
    rng = random.Random(order)
    metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
    for size in (1, 2, 30):
        pairs = [(random_report(rng), random_report(rng)) for _ in range(size)]
        said, right = ([" ".join(words(pair[side])) for pair in pairs] for side in (0, 1))
        expected = metric.corpus_score(said, [right]).score / 100
        assert float(bleu(*set_counts(pairs), order)) == pytest.approx(expected, abs=1e-12)


def test_many_sets_are_scored_at_once() -> None:
    rng = random.Random(9)
    sets = [set_counts([(random_report(rng), random_report(rng)) for _ in range(8)]) for _ in range(5)]
    together = bleu(*(np.stack(column) for column in zip(*sets, strict=True)), 2)
    assert together.tolist() == [float(bleu(*one, 2)) for one in sets] and (together > 0).any()


def test_empty_candidates_score_nothing() -> None:
    assert float(bleu(*set_counts([("", "the heart")]))) == 0.0
