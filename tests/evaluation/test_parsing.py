import pytest

from medtune.evaluation.parsing import normalise, parse_letter, parse_value, parse_yes_no

COLOURS = ["blue", "light blue", "purple blue"]
NUCLEI = ["irregular", "segmented-bilobed", "unsegmented-band", "unsegmented-round"]


@pytest.mark.parametrize(
    ("text", "options", "index"),
    [
        ("The correct answer is A.", 2, 0),
        ("The correct answer is [B].", 2, 1),
        ("The correct answer is **b**", 2, 1),
        ("The correct answer is  B .<|eot_id|>", 2, 1),
        ("Well. The correct answer is C", 3, 2),
        ("The correct answer is A. The correct answer is B.", 2, 1),
        ("The correct answer is Z", 26, 25),
        ("The correct answer is C", 2, None),  # no such option
        ("The correct answer is AB", 2, None),
        ("The correct answer is A or B", 2, None),
        ("The correct answer is A. big", 2, None),
        ("The correct answer is", 2, None),
        ("The correct answer is 1", 2, None),
        ("The correct answer is \uff21", 2, None),  # a full-width letter is not a letter of the list
        ("The correct answer is ß", 26, None),  # two letters in capitals
        ("the correct answer is A", 2, None),  # the official parser splits at the exact words
        ("B", 2, None),  # there the prompt's own lead is found, and what follows it is no letter
        ("", 2, None),
    ],
)
def test_letters(text, options, index):
    assert parse_letter(text, options) == index


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes.", "yes"),
        (" no, it is small", "no"),
        ("YES<|eot_id|>", "yes"),
        ("normal", None),
        ("nothing", None),
        ("yes or no", None),
        ("It is.", None),
        ("", None),
        ("Yes, it is not", "yes"),
    ],
)
def test_yes_no(text, answer):
    assert parse_yes_no(text) == answer


@pytest.mark.parametrize(
    ("text", "attribute", "options", "value"),
    [
        ("The cytoplasm colour is light blue.", "cytoplasm colour", COLOURS, "light blue"),
        ("light-blue", "cytoplasm colour", COLOURS, "light blue"),
        ("It is PURPLE  blue", "cytoplasm colour", COLOURS, "purple blue"),
        ("blue", "cytoplasm colour", COLOURS, "blue"),
        ("bluish", "cytoplasm colour", COLOURS, None),
        ("unsegmented-round", "nucleus shape", NUCLEI, "unsegmented-round"),
        ("unsegmented round", "nucleus shape", NUCLEI, "unsegmented-round"),
        ("unsegmented-round", "cell shape", ["irregular", "round"], None),
        ("The cell is round.", "cell shape", ["irregular", "round"], "round"),
        ("The cell size: big", "cell size", ["big", "small"], "big"),
        ("Big, I think.", "cell size", ["big", "small"], "big"),
        ("It is not big but small.", "cell size", ["big", "small"], "small"),
        ("It isn't big.", "cell size", ["big", "small"], None),
        ("The cell size is unknown.", "cell size", ["big", "small"], None),
        ("A small cell: the cell size is big", "cell size", ["big", "small"], "big"),
        ("The label is Neutrophil.", "label", ["Basophil", "Neutrophil"], "Neutrophil"),
        ("No.", "granularity", ["yes", "no"], "no"),
        ("I do not know", "granularity", ["yes", "no"], None),
        ("papule, erythema", "feature", ["papule", "papule, erythema"], "papule, erythema"),
        ("papule", "feature", ["papule", "papule, erythema"], "papule"),
        ("", "cell size", ["big", "small"], None),
        ("…", "cell size", ["big", "small"], None),
        ("ＢＩＧ", "cell size", ["big", "small"], "big"),
    ],
)
def test_values(text, attribute, options, value):
    index = parse_value(text, attribute, options)
    assert (None if index is None else options[index]) == value


def test_a_recited_report_is_read_at_its_own_attribute_only():
    attributes = ["cell shape", "cell size", "granule type"]
    types = ["coarse", "round", "small"]
    assert parse_value("small cell size, round cell shape", "granule type", types, attributes) is None
    report = "small cell size, round cell shape, coarse granule type"
    assert types[parse_value(report, "granule type", types, attributes)] == "coarse"


def test_values_that_differ_in_case_or_hyphen_only_give_the_first():
    assert parse_value("it is well-defined", "margin", ["well defined", "well-defined"]) == 0


def test_normalise_folds_unicode_and_blanks_but_keeps_lines():
    assert normalise("  Ｃell_Size\t is\u00a0BIG \n yes ") == "cell size is big\nyes"


SIZES = ["big", "small", "round"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # A clause that names the attribute comes before one with a copula, wherever it stands.
        ("It is small, big cell size.", "big"),
        ("big cell size. It is small.", "big"),
        # A clause with a copula comes before the first clause without.
        ("small one, it is big.", "big"),
        ("small and so on; that was big", "big"),
        # The first clause counts last, and no later clause without a copula.
        ("small one, big one.", "small"),
        ("well, big one.", None),
        # Within a clause the first value after its last copula counts, or the first value where none follows.
        ("It is small and it is big", "big"),
        ("What was small is now big or round", "big"),
        ("small is what it is", "small"),
        ("a cell size which is small was never big but is round", "round"),
        ("the small one: is it big?", "big"),
        # The attribute's own name holds no value, and another attribute's clause none either.
        ("the cell shape is big", None),
        ("the cell shape is round and the cell size is big", "big"),
    ],
)
def test_the_documented_order(text, value):
    index = parse_value(text, "cell size", SIZES, ["cell size", "cell shape"])
    assert (None if index is None else SIZES[index]) == value


def test_the_letter_just_after_the_last_option_is_none():
    assert parse_letter("The correct answer is D", 3) is None and parse_letter("The correct answer is D", 4) == 3


def test_the_longest_value_is_found_first_and_underscores_are_blanks():
    assert parse_value("It is light_blue", "colour", ["blue", "light", "light blue"]) == 2
    assert parse_value("It is not blue", "colour", ["blue"]) is None
