"""Answers in the forms that models write, read into a value or a named reason."""

import pytest

from medtune.evaluation.flare import reading as r
from medtune.evaluation.flare.box_answers import read_boxes, read_instances
from medtune.evaluation.flare.choices import question_options, read_choice, read_labels, split_labels
from medtune.evaluation.flare.numbers import LARGEST, number_of, read_number

OPTIONS = {"A": "Benign lesion", "B": "Malignant lesion", "C": "No lesion"}
ELEVEN = {letter: f"type {letter.lower()}" for letter in "ABCDEFGHIJK"}
LONG = "Endodontic Treatment, Restorative Treatment, and Complications"


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Which? Options: A) Benign lesion B) Malignant lesion C) No lesion", OPTIONS),
        ("Which? A: Benign lesion, B: Malignant lesion, C: No lesion", OPTIONS),
        ("Which?\nA. Benign lesion\nB. Malignant lesion\nC. No lesion", OPTIONS),
        ("Which? (A) Benign lesion (B) Malignant lesion (C) No lesion", OPTIONS),
        ("Is it there? A: No, B: Yes", {"A": "No", "B": "Yes"}),
        ("Which? A:x B:y", {"A": "x", "B": "y"}),
        ("Which? " + " ".join(f"{key}: {text}" for key, text in ELEVEN.items()), ELEVEN),
        ("Is the mass benign or malignant?", {}),
        ("What does part A: show?", {}),
    ],
)
def test_the_options_of_a_question(question, options):
    assert question_options(question) == options


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        (" b ", "B"),
        ("(C)", "C"),
        ("**A**", "A"),
        ("A.", "A"),
        ("A: Benign lesion", "A"),
        ("A) benign", "A"),
        ("A. Benign lesion.", "A"),
        ("**B. Malignant lesion**", "B"),
        ("A<|im_end|>", "A"),
        ("The answer is A.", "A"),
        ("The answer is A", "A"),
        ("The correct answer is: B", "B"),
        ("Answer: C", "C"),
        ("Option B", "B"),
        ("Final Answer: The final answer is $\\boxed{B}$", "B"),
        (
            "Based on the image, the most likely diagnosis is **B) Malignant lesion**.\n\nIt is dark.\nFinal Answer: B",
            "B",
        ),
        ("It is large, so the answer is B because of its margin", "B"),
        ("Therefore, the classification is:\n\nC: No lesion", "C"),
        ("malignant lesion", "B"),
        ("The image shows a Benign-lesion.", "A"),
        ("There is no malignant lesion, but a benign lesion is seen.", "A"),
    ],
)
def test_a_choice_is_read(answer, letter):
    assert read_choice(answer, OPTIONS) == r.Reading(letter)


@pytest.mark.parametrize("letter", "ABCDEFGHIJK")
def test_each_of_eleven_letters_is_read(letter):
    for answer in (letter, f"{letter}: type {letter.lower()}", f"The answer is {letter}.", f"type {letter.lower()}"):
        assert read_choice(answer, ELEVEN) == r.Reading(letter)
    for answer in (letter, f"The answer is {letter}."):
        assert read_choice(answer, {}) == r.Reading(letter)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", r.EMPTY),
        (" <|im_end|>", r.EMPTY),
        ("D", r.UNKNOWN_OPTION),
        ("The answer is K.", r.UNKNOWN_OPTION),
        ("A: Malignant lesion", r.OTHER_TEXT),
        ("The answer is A. No, the answer is B.", r.SEVERAL_OPTIONS),
        ("A benign lesion or a malignant lesion.", r.SEVERAL_OPTIONS),
        ("I cannot tell.", r.NO_OPTION),
        ("There is no benign lesion.", r.NO_OPTION),
        ("A mass is seen.", r.NO_OPTION),
    ],
)
def test_a_choice_that_cannot_be_read_has_a_reason(answer, reason):
    assert read_choice(answer, OPTIONS) == r.Reading(reason=reason)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Malignant", "malignant"),
        ("the abnormality appears **Malignant**.", "malignant"),
        ("It is benign, not malignant.", "benign"),
        ("The mass may be benign or malignant.", r.SEVERAL_OPTIONS),
        ("Mass", r.NO_OPTION),
    ],
)
def test_without_letters_the_labels_of_the_set_are_read(answer, found):
    expected = r.Reading(reason=found) if found in r.REASONS else r.Reading(found)
    assert read_choice(answer, {}, ["Benign", "Malignant"]) == expected


def test_without_letters_and_labels_a_few_words_or_a_claim_are_read():
    assert read_choice("Luminal B", {}) == r.Reading("luminal b")
    assert read_choice("I see a dark area, so the final answer is $\\boxed{Mass}$", {}) == r.Reading("mass")
    assert read_choice("I cannot tell what this image may show.", {}) == r.Reading(reason=r.NO_OPTION)


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("Nodule", ("nodule",)),
        ("Nodule; Fibrosis; nodule", ("fibrosis", "nodule")),
        ("Nodule, Fibrosis", ("fibrosis", "nodule")),
        ("Nodule, Fibrosis, and Normal", ("fibrosis", "nodule", "normal")),
        ("Nodule\nFibrosis", ("fibrosis", "nodule")),
        ("- Nodule\n- Fibrosis", ("fibrosis", "nodule")),
        ("1. Nodule\n2. Fibrosis", ("fibrosis", "nodule")),
        (LONG, (LONG.lower(),)),
        (f"Dental Caries; {LONG}.", ("dental caries", LONG.lower())),
        (f"Dental Caries, {LONG}", ("dental caries", LONG.lower())),
        (f"dental caries, {LONG.upper()}", ("dental caries", LONG.lower())),
        (
            "The findings are seen:\n\n*  Nodule\n*  Fibrosis\n\nHence, the answer is: Nodule; Fibrosis",
            ("fibrosis", "nodule"),
        ),
        ("None", ()),
        ("No findings.", ()),
    ],
)
def test_labels_are_read(answer, labels):
    assert read_labels(answer) == r.Reading(labels)


def test_a_known_label_that_holds_commas_is_kept_whole():
    known = ["Mass, large", "Nodule"]
    assert read_labels("Nodule, Mass, large", known).value == ("mass, large", "nodule")
    assert read_labels("Nodule, Mass, large").value == ("large", "mass", "nodule")
    assert read_labels("Nodule, Mass, large; Other", known).value == ("mass, large", "nodule", "other")
    assert split_labels("a; b, c") == ["a", "b, c"] and split_labels("a, b, c") == ["a", "b", "c"]
    assert read_labels("none", ["None"]).value == ("none",)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", r.EMPTY),
        (
            "There is no evidence of caries in this image, and the tooth appears to be intact in every respect.",
            r.NO_LABEL,
        ),
        ("I cannot tell.", r.NO_LABEL),
    ],
)
def test_prose_is_no_list_of_labels(answer, reason):
    assert read_labels(answer) == r.Reading(reason=reason)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3,5", 3.5),
        ("1,234", 1234.0),
        ("1,234,567", 1234567.0),
        ("0,123", 0.123),
        ("12,34", 12.34),
        ("1234,567", 1234.567),
        ("1.234", 1.234),
        ("1.234,5", 1234.5),
        ("1,234.5", 1234.5),
        ("1.234.567", 1234567.0),
        ("1\u202f234", 1234.0),
        ("1 234", 1234.0),
        ("-7.5", -7.5),
        ("\u22127,5", -7.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("x", None),
        ("1.2.3", None),
    ],
)
def test_a_written_number(text, value):
    assert number_of(text) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("19", 19.0),
        ("19.", 19.0),
        ("**30%**", 30.0),
        ("33.3000691475987", 33.3000691475987),
        ("1,664 cells", 1664.0),
        ("1 664", 1664.0),
        ("```\n150\n```\n```\n150\n```", 150.0),
        ('1500\n```json\n[{"box_2d": [10, 10, 990, 990]}]\n```', 1500.0),
        ("There are approximately 35 cells in this image.", 35.0),
        ("I count 10 + 9, the answer is 19.", 19.0),
        ("$\\boxed{19}$", 19.0),
        ("There are seven cells.", 7.0),
        ("zero", 0.0),
        ("-0", 0.0),
    ],
)
def test_a_number_is_read(answer, value):
    assert read_number(answer) == r.Reading(value)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", r.EMPTY),
        ("I cannot count them.", r.NO_NUMBER),
        ("10 red and 9 white cells", r.SEVERAL_NUMBERS),
        ("approximately **35-40%**", r.RANGE),
        ("10 to 20", r.RANGE),
        ("1" * 300, r.TOO_LARGE),
        ("25" + "0" * 252, r.TOO_LARGE),
        ("9" * 6000, r.TOO_LARGE),
        ("1e9999", r.TOO_LARGE),
        ("2.5e253", r.TOO_LARGE),
        ("1000001", r.TOO_LARGE),
        ("-3", r.NEGATIVE),
    ],
)
def test_a_number_that_cannot_be_read_has_a_reason(answer, reason):
    assert read_number(answer, count=True) == r.Reading(reason=reason)


def test_numbers_are_bounded_and_only_counts_are_not_negative():
    assert read_number(str(int(LARGEST))).value == LARGEST and read_number("-3").value == -3


BOX = (1.0, 2.0, 3.0, 4.0)
TWO = (BOX, (5.0, 6.0, 7.0, 8.0))


@pytest.mark.parametrize(
    ("answer", "boxes"),
    [
        pytest.param("[1, 2, 3, 4]", (BOX,), id="flat"),
        pytest.param("[[1, 2, 3, 4], [5, 6, 7, 8]]", TWO, id="nested"),
        pytest.param("[[[1, 2, 3, 4], [5, 6, 7, 8]]]", TWO, id="nested twice"),
        pytest.param("[11.0, 2e0, 3, 4]", ((11.0, 2.0, 3.0, 4.0),), id="floats"),
        pytest.param("(1, 2, 3, 4) is none, [(1, 2, 3, 4)] is", (BOX,), id="tuples in a list"),
        pytest.param("```json\n[\n  [1, 2, 3, 4]\n]\n```", (BOX,), id="a code block"),
        pytest.param(
            "```json\n[[1, 2, 3, 4]]\n```\n```json\n[[1, 2, 3, 4]]\n```\n```json\n[[1,", (BOX,), id="a run-on"
        ),
        pytest.param("```json\n[[1,2,3,4]]\n```\n```json\n[[5,6,7,8]]\n```", TWO, id="a block for each box"),
        pytest.param("[1, 2, 3, 4]; [5, 6, 7, 8]", TWO, id="flat ones side by side"),
        pytest.param("[[1, 2, 3, 4], [1, 2, 3, 4]]", (BOX, BOX), id="a box twice in one list"),
        pytest.param("The lesion is at [1, 2, 3, 4].", (BOX,), id="in a sentence"),
        pytest.param('[{"bbox": [1, 2, 3, 4], "label": "lesion"}]', (BOX,), id="objects"),
        pytest.param("[{'bbox': [1, 2, 3, 4]}]", (BOX,), id="single quotes"),
        pytest.param('{"x_min": 1, "y_min": 2, "x_max": 3, "y_max": 4}', (BOX,), id="corners by name"),
        pytest.param('{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}', (BOX,), id="corners in VOC's names"),
        pytest.param('{"x": 1, "y": 2, "w": 2, "h": 2}', (BOX,), id="a corner with width and height"),
        pytest.param('{"x": 1, "y": 2, "width": 2, "height": 2}', (BOX,), id="width and height in full"),
        pytest.param('{"box": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}}', (BOX,), id="an object under a key"),
        pytest.param("[[[1, 2], [3, 4]]]", (BOX,), id="two corners"),
        pytest.param("x_min: 1, y_min: 2, x_max: 3, y_max: 4", (BOX,), id="corners in words"),
        pytest.param('{"1": [[1, 2, 3, 4]], "2": [5, 6, 7, 8]}', TWO, id="by class"),
        pytest.param("[[1, 2, 3, 4], [5, 6, 7, 8], [9, 1", TWO, id="cut off"),
        pytest.param('"[[1, 2, 3, 4]]"', (BOX,), id="JSON within a text"),
        pytest.param("[[3, 4, 1, 2]]", ((3.0, 4.0, 1.0, 2.0),), id="turned around: read, and never found"),
        pytest.param("[]", (), id="an empty list"),
        pytest.param("[[]]", (), id="an empty list in a list"),
        pytest.param("```json\n[]\n```", (), id="an empty list in a code block"),
        pytest.param("No lesions detected.", (), id="in words"),
    ],
)
def test_boxes_are_read(answer, boxes):
    assert read_boxes(answer) == r.Reading(boxes)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", r.EMPTY),
        ("on the left", r.NO_BOXES),
        ("[1, 2, 3]", r.NO_BOXES),
        ("[1, 2, 3, 4, 5]", r.NO_BOXES),
        ('[{"x": 100, "y": 100}]', r.NO_BOXES),
        ('["1", "2", "3", "4"]', r.NO_BOXES),
        ("[true, 2, 3, 4]", r.NO_BOXES),
        ("[NaN, 2, 3, 4]", r.NO_BOXES),
        ("[1e999, 2, 3, 4]", r.NO_BOXES),
        ("[" * 5000, r.NO_BOXES),
        ("{" * 5000 + "1", r.NO_BOXES),
    ],
)
def test_boxes_that_cannot_be_read_have_a_reason(answer, reason):
    assert read_boxes(answer) == r.Reading(reason=reason)


@pytest.mark.parametrize(
    ("answer", "instances"),
    [
        pytest.param('{"1": [[1, 2, 3, 4]], "2": [5, 6, 7, 8]}', {"1": [BOX], "2": [TWO[1]]}, id="by class"),
        pytest.param("{'1': [[1, 2, 3, 4]]}", {"1": [BOX]}, id="single quotes"),
        pytest.param("{1: [[1, 2, 3, 4]]}", {"1": [BOX]}, id="keys that are numbers"),
        pytest.param('[{"label": "1", "bbox": [1, 2, 3, 4]}]', {"1": [BOX]}, id="objects"),
        pytest.param('[{"chromosome": 1, "box": [1, 2, 3, 4]}]', {"1": [BOX]}, id="a class under another key"),
        pytest.param('[{"chromosome_id": "X", "bounding_boxes": [[1, 2, 3, 4]]}]', {"X": [BOX]}, id="several boxes"),
        pytest.param('{"1": [[1, 2, 3, 4]], "2": [[5, 6, 7, 8]], "3": [[9,', {"1": [BOX], "2": [TWO[1]]}, id="cut off"),
        pytest.param('[{"id": "1", "bbox": [1, 2, 3, 4]}, {"id": "2", "bb', {"1": [BOX]}, id="objects, cut off"),
        pytest.param("{}", {}, id="nothing"),
    ],
)
def test_instances_are_read(answer, instances):
    assert read_instances(answer) == r.Reading(instances)


def test_boxes_without_classes_are_no_instances():
    assert read_instances("[[1, 2, 3, 4]]") == r.Reading(reason=r.NO_CLASSES)
    assert read_instances("none of them is clear") == r.Reading(reason=r.NO_BOXES)


@pytest.mark.parametrize("answer", ["%", "...", "**.**"])
def test_an_option_of_marks_alone_is_named_by_no_text(answer):
    options = {"A": "%", "B": "...", "C": "mass"}
    assert read_choice(answer, options) == r.Reading(reason=r.NO_OPTION)
    assert read_choice(f"{answer} a mass", options) == r.Reading("C")


def test_half_a_character_becomes_one_that_a_file_can_hold():
    assert r.cleaned("a\ud83d b") == "a? b"
    found = read_choice("the big\udc00 one", {})
    assert found.value is not None and found.value.encode()


def test_a_reading_is_a_value_or_a_named_reason():
    for value, reason in ((None, ""), (1.0, r.EMPTY), (None, "unclear")):
        with pytest.raises(AssertionError):
            r.Reading(value, reason)
