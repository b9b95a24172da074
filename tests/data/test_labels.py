import pytest

from medtune.data.labels import Target, check_classes, classification_target, is_classification, label_text
from medtune.data.sample import Message, Sample
from medtune.errors import DataError

CHEST = Target("chest", "multi_label", ("atelectasis", "effusion", "mass"), (1, 2))
BLOOD = Target("blood", "multi_class", ("basophil", "eosinophil"), (1,))


def sample(**meta):
    return Sample("s", ("s.png",), (Message("user", "?"),), meta)


@pytest.mark.parametrize("target", [CHEST, BLOOD, Target("chest", "multi_label", CHEST.classes, ())])
def test_a_target_comes_back_from_its_meta(target):
    assert classification_target(sample(**target.to_meta())) == target
    assert is_classification(sample(**target.to_meta())) and not is_classification(sample(attribute="size"))


def test_labels_as_text():
    assert (CHEST.text, BLOOD.text) == ("effusion; mass", "eosinophil")
    assert label_text([]) == "no finding" == Target("chest", "multi_label", CHEST.classes, ()).text
    assert BLOOD.to_meta()["label"] == "eosinophil" and BLOOD.to_meta()["label_index"] == 1
    assert CHEST.to_meta()["label"] == ["effusion", "mass"] and CHEST.to_meta()["label_index"] == [1, 2]


@pytest.mark.parametrize(
    ("target", "changes", "says"),
    [
        (BLOOD, {"protocol": "open"}, "'protocol': 'classification'"),
        (BLOOD, {"set": ""}, "a text 'set'"),
        (BLOOD, {"task": "regression"}, "a 'task', one of"),
        (BLOOD, {"classes": "basophil"}, "a list of texts"),
        (BLOOD, {"classes": ["basophil", "basophil"]}, "each with a text of its own"),
        (BLOOD, {"classes": ["eosinophil"], "label_index": 0}, "at least two classes"),
        (BLOOD, {"label": "basophil"}, "do not name the same"),
        (BLOOD, {"label_index": 2}, "do not name the same"),
        (BLOOD, {"label_index": True}, "do not name the same"),
        (CHEST, {"label": "effusion"}, "must be lists"),
        (CHEST, {"label_index": [2, 1], "label": ["mass", "effusion"]}, "do not name the same"),
        (CHEST, {"classes": ["a; b", "effusion", "mass"]}, "'a; b' cannot be part of a list"),
    ],
)
def test_meta_that_does_not_fit_is_named(target, changes, says):
    with pytest.raises(DataError, match=f"'s': .*{says}"):
        classification_target(sample(**{**target.to_meta(), **changes}))


def test_a_finding_cannot_be_called_no_finding():
    with pytest.raises(DataError, match="'no finding' cannot be part"):
        check_classes("multi_label", ["no finding", "mass"], "here")
    check_classes("multi_class", ["no finding", "mass"], "here")
