import pytest

from medtune.evaluation.wording import is_report, is_report_fragment, natural_description

TERMS = [
    "cell size",
    "big",
    "small",
    "cell shape",
    "round",
    "nucleus shape",
    "unsegmented-round",
    "label",
    "Neutrophil",
]


@pytest.mark.parametrize(
    ("text", "natural"),
    [
        ("This image shows a white blood cell.", True),
        ("I see a big Neutrophil. Its nucleus is round, and it is small!", True),
        ('It is called "a Neutrophil."', True),
        ("The cell shape is round, the cell size is big.", True),
        ("The cell, the nucleus and the granules are stained.", True),
        ("big cell size, round cell shape, unsegmented-round nucleus shape, Neutrophil label", False),
        ("big cell size, round cell shape, Neutrophil.", False),
        ("This image shows big cell size, round cell shape, unsegmented-round nucleus shape, Neutrophil label.", False),
        ("big cell size. round cell shape. Neutrophil label.", False),
        ("The image shows a white blood cell", False),  # no end mark
        ("A white blood cell on glass.", False),  # no finite verb
        ("It is round.", False),  # too short to describe an image
        ("The correct answer is A.", False),
        ("", False),
        ("…", False),
    ],
)
def test_natural_description(text, natural):
    assert natural_description(text, TERMS) is natural


@pytest.mark.parametrize(
    ("text", "report"),
    [
        ("big cell size, round cell shape", True),
        ("round cell shape; BIG cell size.", True),
        ("big", False),
        ("big cell size", False),  # one fragment still answers a question
        ("The cell size is big.", False),
        ("big cell size, which surprised everybody, and the second reader too", False),
    ],
)
def test_is_report(text, report):
    assert is_report(text, TERMS) is report


def test_a_fragment_of_foreign_words_is_no_report():
    assert is_report_fragment("a big cell size", TERMS)
    assert not is_report_fragment("pink granules", TERMS)
    assert not is_report_fragment("and the", TERMS)


def test_half_of_the_pieces_make_no_report_and_more_do():
    others = "the nucleus has lobes, the rest was out of focus"
    assert not is_report(f"big cell size, round cell shape, {others}", TERMS), "two of four"
    assert is_report("big cell size, round cell shape, the rest was out of focus", TERMS), "two of three"


@pytest.mark.parametrize(("text", "natural"), [("It is quite round.", True), ("Cells are round.", False)])
def test_a_description_has_four_words(text, natural):
    assert natural_description(text, TERMS) is natural


def test_a_letter_is_no_description_and_a_fragment_has_no_verb():
    assert not natural_description("I think that the correct answer is A.", TERMS)
    assert not is_report_fragment("is", ["is"]) and not is_report_fragment("big is small", [*TERMS, "is"])
