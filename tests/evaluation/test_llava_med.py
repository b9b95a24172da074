"""LLaVA-Med's scores: golden values of its code, and its algorithm written out anew on real and on random text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtune.evaluation.llava_med import closed_hit, normalise_answer, open_scores

GOLDEN = [  # answer, reference: F1, precision, recall
    ("The spleen is enlarged.", "spleen", (0.5, 1 / 3, 1.0)),
    ("the spleen spleen spleen is big", "left spleen", (2 / 3, 0.6, 0.75)),
    ("Right, upper-lobe", "right upper lobe", (1.0, 1.0, 1.0)),
    ("two masses", "2 masses", (1.0, 1.0, 1.0)),
    ("A mass in the 3.5 cm region", "3.5 cm", (4 / 7, 0.4, 1.0)),
    ("x-ray", "xray", (0.0, 0.0, 0.0)),
    ("", "spleen", (0.0, 0.0, 0.0)),
    ("the", "a", (0.0, 0.0, 0.0)),
]
CLOSED = [  # right answer, answer: hit
    ("no", "the lungs are normal", True),
    ("yes", "yes, there is", True),
    ("no", "I do not know", True),
    ("left", "left", False),
    ("ct", "this is a ct scan", False),
    ("ct", "no, this is a ct scan", True),
    ("yes", "no evidence, but yes", True),
    ("Yes", "no", False),
    ("no", "", False),
]


@pytest.mark.parametrize(("answer", "reference", "expected"), GOLDEN)
def test_open_scores_are_those_of_their_code(answer, reference, expected):
    assert tuple(open_scores(answer, reference)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("reference", "answer", "hit"), CLOSED)
def test_a_closed_answer_is_a_matter_of_substrings(reference, answer, hit):
    assert closed_hit(answer, reference) is hit


# -- their algorithm, written out --------------------------------------------------------------------------------------

NUMBERS = {"none": "0"} | {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
APOSTROPHES = {
    "dont": "don't",
    "isnt": "isn't",
    "hed": "he'd",
    "hes": "he's",
    "oclock": "o'clock",
    "twas": "'twas",
    "couldn'tve": "couldn't've",
    "couldnt've": "couldn't've",
    "wed've": "we'd've",
    "somebody'd": "somebodyd",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "let's": "let's",
    "she's": "she's",
    "theres": "there's",
    "wont": "won't",
}


def plain(text):
    """Letter by letter, and each mark looked for anew."""
    text = text.lower()
    for _ in range(2):
        number = any(
            a.isdigit() and c == "," and b.isdigit() for a, c, b in zip(text, text[1:], text[2:], strict=False)
        )
        built = ""
        for letter in text:
            if letter in list("""; / [ ] " { } ( ) = + \\ _ - > < @ ` , ? !""".split()):
                near = re.search(rf"(?: {re.escape(letter)})|(?:{re.escape(letter)} )", text)
                built += "" if near or number else " "
            else:
                built += letter
        kept, stops = "", 0
        for at, letter in enumerate(built):
            if letter == "." and stops < 32 and not built[at + 1 : at + 2].isdigit():
                stops += 1
            else:
                kept += letter
        words = [NUMBERS.get(word, word) for word in kept.lower().split()]
        text = " ".join(APOSTROPHES.get(word, word) for word in words if word not in ("a", "an", "the"))
    return text.split()


def plain_scores(answer, reference):
    """Loops over the words of both in place of counters."""
    said, right = plain(answer), plain(reference)
    tp = fp = fn = 0
    for word in said:
        if word in right:
            tp += 1
        else:
            fp += 1
    for word in right:
        if word not in said:
            fn += 1
    if not said or not right or not tp:
        return (0.0, 0.0, 0.0)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return (2 * precision * recall / (precision + recall), precision, recall)


WORD = st.sampled_from(
    [
        *NUMBERS,
        *APOSTROPHES,
        "a",
        "An",
        "THE",
        "left",
        "Lung",
        "3.5",
        "1,000",
        "2.",
        "x-ray",
        "(T2)",
        "no",
        "yes",
        "no.",
    ]
)
TEXT = st.one_of(
    st.lists(WORD, max_size=12).map(" ".join), st.text("ab 1.,;-/()?!'\"T\n\\", max_size=60), st.just(". " * 40 + "5")
)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
def test_scores_equal_the_algorithm_written_out(answer, reference):
    assert tuple(open_scores(answer, reference)) == plain_scores(answer, reference)


def test_more_full_stops_than_their_code_removes_stay():
    assert normalise_answer("a" + "." * 40 + " b") == "a" + "." * 8 + " b"


def test_each_word_without_one_apostrophe_gets_it_back():
    for wrong, right in APOSTROPHES.items():
        assert normalise_answer(wrong) == right
    assert normalise_answer("lets shes") == "lets shes"  # their table does not hold them


def test_marks_of_a_text_with_a_comma_in_a_number_leave_no_space():
    assert normalise_answer("1,000 well-defined") == "1000 welldefined"
    assert normalise_answer("well-defined") == "well defined" and normalise_answer("well- defined") == "well defined"
