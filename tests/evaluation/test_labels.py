import pytest

from medtune.evaluation.labels import fold_label, read_labels

BREAST = ("malignant", "normal, benign")
CHEST = ("effusion", "mass", "pleural")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("malignant", 0),
        (" Malignant.\n", 0),
        ("NORMAL BENIGN", 1),
        ("normal, benign<|eot_id|>", 1),
        ("**normal, benign**</s>", 1),
        ("normal", None),
        ("malignant normal, benign", None),
        ("The diagnosis is malignant.", None),
        ("", None),
        ("?", None),
    ],
)
def test_one_label_must_match_but_for_case_and_punctuation(text, index):
    assert read_labels(text, BREAST, False) == (((), True) if index is None else ((index,), False))


@pytest.mark.parametrize(
    ("text", "indices", "stray"),
    [
        ("effusion; mass", (0, 1), False),
        ("Mass, effusion.", (0, 1), False),
        ("mass\neffusion", (0, 1), False),
        ("effusion; effusion", (0,), False),
        ("no finding", (), False),
        ("No finding.", (), False),
        ("effusion; cyst", (0,), True),
        ("no finding; mass", (1,), True),
        ("cyst", (), True),
        ("", (), True),
    ],
)
def test_several_labels(text, indices, stray):
    assert read_labels(text, CHEST, True) == (indices, stray)


def test_commas_part_only_where_no_class_holds_one():
    classes = ("ducts, tubules", "mass")
    assert read_labels("ducts, tubules; mass", classes, True) == ((0, 1), False)
    assert read_labels("mass, ducts, tubules", classes, True) == ((), True)


def test_classes_that_punctuation_alone_tells_apart():
    classes = ("HER2+", "HER2-")
    assert read_labels("HER2+", classes, False) == ((0,), False)
    assert read_labels(" HER2-", classes, False) == ((1,), False)
    assert read_labels("her2", classes, False) == ((), True)


def test_folding():
    assert fold_label("<|im_end|> Femur_Left-\uff11!") == "femur left 1"


def test_a_contradiction_is_stray_and_so_is_an_answer_of_special_tokens_alone():
    assert read_labels("mass; no finding", CHEST, True) == ((1,), True)
    assert read_labels("<|im_end|>", CHEST, True) == ((), True)
    assert read_labels(" ; ", CHEST, True) == ((), True)
