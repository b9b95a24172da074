"""Scores in a judge's reply: read in every plain form, or unread by a named reason."""

import pytest

from medtune.judges.parsing import REASONS, ReadScores, read_scores

READ = [
    ("8 7", (8, 7)),
    ("8, 7", (8, 7)),
    ("8 / 7", (8, 7)),
    ("8/7", (8, 7)),
    ("8,7", (8, 7)),
    ("8; 7", (8, 7)),
    ("8.5 7", (8.5, 7)),
    ("8.5, 7.25", (8.5, 7.25)),
    ("8,5 7", (8.5, 7)),
    ("8,5 7,5", (8.5, 7.5)),
    ("8\t7", (8, 7)),
    ("10 1", (10, 1)),
    ("  8 7  \n", (8, 7)),
    ("8 7.", (8, 7)),
    ("**8 7**", (8, 7)),
    ("`8 7`", (8, 7)),
    ("(8, 7)", (8, 7)),
    ("8 7\nThe first answer names 3 findings, the second 12 of 20.", (8, 7)),
    ("\n\n8 7\n\nBecause.", (8, 7)),
    ("８　７", (8, 7)),
    ("8，7", (8, 7)),
    ("8、7", (8, 7)),
    ("٨ ٧", (8, 7)),
    ("८ ७", (8, 7)),
    ("8 7\n第一个回答更好。", (8, 7)),
    ("8/10 7/10", (8, 7)),
    ("8/10, 7/10", (8, 7)),
    ("8 / 10 7 / 10", (8, 7)),
    ("10/10 7/10", (10, 7)),
    ("Scores: 8 7", (8, 7)),
    ("Ratings: 8, 7", (8, 7)),
    ("**Scores:** 8 7", (8, 7)),
    ("Answer 1: 8, Answer 2: 7", (8, 7)),
    ("Answer 1: 8\nAnswer 2: 7", (8, 7)),
    ("answer_1=8; answer_2=7.5", (8, 7.5)),
    ("**Answer 1:** 8/10\n**Answer 2:** 7/10\nBecause.", (8, 7)),
    ("Assistant 1: 8 Assistant 2: 7", (8, 7)),
    ("- Answer 1: 8\n- Answer 2: 7", (8, 7)),
    ("Score of answer 1: 8, score of answer 2: 7", (8, 7)),
    ("[8, 7]", (8, 7)),
    ('{"scores": [8, 7.5]}', (8, 7.5)),
    ('{"answer_1": 8, "answer_2": 7}', (8, 7)),
    ('{"reason": "3 findings", "answer_2": 7, "answer_1": "8"}', (8, 7)),
    ('```json\n{"scores": [8, 7]}\n```', (8, 7)),
    ('{"answer_1": 8, "answer_2": 7}\nThe first is right.', (8, 7)),
    ("<think>I give 3 4 or 5.\n</think>\n8 7", (8, 7)),
]
UNREAD = [
    ("", "empty"),
    ("  \n ", "empty"),
    ("<think>8 7</think>", "empty"),
    ("Both answers are good.", "prose"),
    ("The first answer gets 8 and the second 7.", "prose"),
    ("8 and 7", "prose"),
    ("Die erste Antwort ist besser: 8 zu 7.", "prose"),
    ("La première réponse est meilleure.", "prose"),
    ("Here are the scores:\n8 7", "prose"),
    ("8 7 points", "prose"),
    ("8.5.2 7", "prose"),
    ("***", "prose"),
    ("8 : 7", "prose"),
    ("Answer 2: 7, Answer 1: 8", "prose"),
    ("eight seven", "prose"),
    ("1e1 7", "prose"),
    ("第一个回答 8 分，第二个 7 分。", "other_language"),
    ("Первый: 8, второй: 7", "other_language"),
    ("الأولى أفضل", "other_language"),
    ("最初の回答は良いです", "other_language"),
    ("I'm sorry, I can't help with that.", "refusal"),
    ("I’m sorry, but no.", "refusal"),
    ("I cannot rate medical images.", "refusal"),
    ("As an AI, I do not see images.", "refusal"),
    ("Sorry! 8 7", "refusal"),
    ("I am unable to see the image.", "refusal"),
    ("8", "too_few_numbers"),
    ("Scores: 8", "too_few_numbers"),
    ("[8]", "too_few_numbers"),
    ('{"scores": [8]}', "too_few_numbers"),
    ("8 7 9", "too_many_numbers"),
    ("8, 7, 9", "too_many_numbers"),
    ("[8, 7, 9]", "too_many_numbers"),
    ("8,5, 7,5", "too_many_numbers"),
    ("8/10", "ambiguous"),
    ("8 / 10", "ambiguous"),
    ("8/10 7", "ambiguous"),
    ("8-7", "ambiguous"),
    ("8 - 7", "ambiguous"),
    ("0 7", "out_of_range"),
    ("11 7", "out_of_range"),
    ("-8 7", "out_of_range"),
    ("80 70", "out_of_range"),
    ('{"answer_1": 8, "answer_2": 1e400}', "out_of_range"),
    (f"[{'9' * 400}, 7]", "out_of_range"),
    (f"{'9' * 400} 7", "out_of_range"),
    ("{", "broken_json"),
    ('{"answer_1": 8', "broken_json"),
    ("[8 7]", "broken_json"),
    ('{"first": 8, "second": 7}', "broken_json"),
    ('{"answer_1": true, "answer_2": 7}', "broken_json"),
    ("[NaN, 7]", "broken_json"),
    ("[[8, 7]]", "broken_json"),
    ('{"scores": {"answer_1": 8}}', "broken_json"),
    ("[" * 100_000, "broken_json"),
    ('{"scores": ["good", "bad"]}', "broken_json"),
]


@pytest.mark.parametrize(("text", "scores"), READ)
def test_scores_are_read(text: str, scores: tuple[float, float]) -> None:
    assert read_scores(text, 2, 1, 10) == ReadScores(scores)


@pytest.mark.parametrize(("text", "reason"), UNREAD)
def test_what_is_no_pair_of_scores_is_unread_by_name(text: str, reason: str) -> None:
    assert read_scores(text, 2, 1, 10) == ReadScores(None, reason)
    assert reason in REASONS


def test_a_reply_that_was_declined_or_cut_off() -> None:
    assert read_scores(None, 2, 1, 10).reason == "refusal"
    assert read_scores("8 7", 2, 1, 10, "content_filter").reason == "refusal"
    assert read_scores("8 7\nBecause the", 2, 1, 10, "length").scores == (8, 7)
    for text in ("", "The first", "8", '{"answer_1": 8'):
        assert read_scores(text, 2, 1, 10, "length").reason == "cut_off"
    assert read_scores("8 7 9", 2, 1, 10, "length").reason == "too_many_numbers"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8", 8), ("8/10", 8), ("8.5\nBecause.", 8.5), ("Score: 8", 8), ('{"score": 8}', 8), ('{"scores": [8]}', 8),
        ("0", 0), ("8 7", "too_many_numbers"), ("11", "out_of_range"), ("Good.", "prose"), ("", "empty"),
    ],
)  # fmt: skip
def test_a_rating_is_one_score_on_its_own_scale(text: str, found: float | str) -> None:
    read = read_scores(text, 1, 0, 10)
    assert (read.scores == (found,)) if isinstance(found, int | float) else (read.reason == found)


def test_no_text_of_any_kind_breaks_the_reading() -> None:
    """Texts of the characters that the forms are made of: each is read or unread, and what is read is on the scale."""
    import random

    rng = random.Random(0)
    pieces = [*"87., /-\n[]{}:*`xé八\u2028\x00", '"', "10", "answer_1", "<think>"]
    for _ in range(20_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(1, 12)))
        read = read_scores(text, 2, 1, 10)
        assert (read.scores is None) == (read.reason in REASONS), text
        assert read.scores is None or (len(read.scores) == 2 and all(1 <= score <= 10 for score in read.scores)), text
