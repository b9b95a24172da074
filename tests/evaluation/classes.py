"""Classification questions made by hand, and a model that answers some of them."""

from medtune.data.labels import Target
from medtune.data.sample import Message, Sample
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.base import Query

BREAST = ("malignant", "normal, benign")
CHEST = ("effusion", "mass", "hernia")
RETINA = ("none", "mild", "severe")
MAJORITY = {"breast": "normal, benign", "chest": "no finding", "retina": "none"}


def class_question(target: Target, number: int, split: str = "test") -> Sample:
    id = f"{target.set}/{split}/{number}"
    turns = (Message("user", f"Analyze the given {target.set} image."), Message("assistant", target.text))
    return Sample(id, (f"{id}.png",), turns, target.to_meta())


def class_questions() -> list[Sample]:
    """Six of breast (2 malignant), four of chest, five of retina."""
    breast = [Target("breast", "multi_class", BREAST, (index,)) for index in (0, 1, 1, 1, 0, 1)]
    chest = [Target("chest", "multi_label", CHEST, indices) for indices in ((0, 1), (), (), (1,))]
    retina = [Target("retina", "ordinal", RETINA, (index,)) for index in (0, 1, 2, 0, 2)]
    return [class_question(target, number) for group in (breast, chest, retina) for number, target in enumerate(group)]


def answered(query: Query, text: str | None = None, scores: list[float] | None = None) -> Prediction:
    """The right answer, or a text."""
    meta = dict(query.meta) | ({} if scores is None else {"scores": scores})
    return Prediction(query.id, query.task, query.prompt, query.meta["answer"] if text is None else text,
                      query.references, meta)  # fmt: skip
