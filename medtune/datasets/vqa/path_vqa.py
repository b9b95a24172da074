"""PathVQA (He et al. 2020): questions about pathology images, which its owners ship as pickles of lists and dicts."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medtune.data.plain_pickle import read_plain_pickle
from medtune.datasets.prepared import Prepared
from medtune.datasets.vqa.rows import YES_NO, VqaRow, checked, prepare_rows
from medtune.errors import ConfigError, DataError

_TYPES: dict[str, Literal["open", "closed"]] = {"yes/no": "closed", "other": "open", "number": "open"}
_WORDS = ("what", "where", "when", "how many", "how much", "how", "who", "whose", "which", "why")


def prepare_path_vqa(
    train: str | None = None,
    val: str | None = None,
    test: str | None = None,
    image_suffix: str = ".jpg",
    closed_hint: str = "",
) -> Prepared:
    """Convert PathVQA's pickles to samples. They are read without running anything in them.

    Both of the owners' forms are read: ``train_vqa.pkl`` (``img_id``, ``sent``, ``label``, ``answer_type``) and
    ``train_qa.pkl`` (``image``, ``question``, ``answer``). An image ``train_0422`` is ``train/train_0422.jpg`` below
    the image root. The type of a question is its first word, or yes/no.

    Args:
        train: the pickle of the training split.
        val: that of the validation split.
        test: that of the test split.
        image_suffix: suffix of the image files.
        closed_hint: a sentence after each question whose answer is yes or no.

    Raises:
        ConfigError: if no file is given.
        DataError: if a file holds anything but lists, dicts, texts and numbers, or for a missing or empty field.
    """
    files = {split: Path(path).expanduser() for split, path in (("train", train), ("val", val), ("test", test)) if path}
    if not files:
        raise ConfigError("path_vqa: give at least one of train, val and test, the owners' .pkl files.")
    rows = [row for split, path in files.items() for row in _rows(path, split, image_suffix)]
    return prepare_rows("path_vqa", rows, inputs=files, options={"image_suffix": image_suffix}, closed_hint=closed_hint)


def _rows(path: Path, split: str, suffix: str) -> Iterator[VqaRow]:
    items = read_plain_pickle(path)
    with_labels = isinstance(items, list) and bool(items) and isinstance(items[0], dict) and "sent" in items[0]
    needed = ("img_id", "sent") if with_labels else ("image", "question", "answer")
    for number, (where, item) in enumerate(checked(items, needed, path.name), start=1):
        image, question = (item[key] for key in needed[:2])
        answer = _likeliest(item.get("label"), where) if with_labels else item["answer"]
        given = item.get("answer_type") or ("yes/no" if answer.casefold() in YES_NO else "other")
        if given not in _TYPES:
            raise DataError(f"{where}: 'answer_type' must be one of {', '.join(_TYPES)}.")
        kind = "yes/no" if given == "yes/no" else _first_word(question)
        yield VqaRow(
            # the owners' numbers of questions begin anew for each image
            id=str(number),
            split=split,
            image=_path(image, suffix, where),
            question=question,
            answer=answer,
            answer_type=_TYPES[given],
            kind=kind,
            where=where,
        )


def _likeliest(label: Any, where: str) -> str:
    """Return the answer with the largest weight; of equal ones the first."""
    numbers = isinstance(label, dict) and all(isinstance(weight, int | float) for weight in label.values())
    answers = {str(answer).strip(): weight for answer, weight in label.items()} if numbers else {}
    if not any(answers):
        raise DataError(f"{where}: 'label' must hold an answer with its weight; correct or remove the question.")
    return max((answer for answer in answers if answer), key=lambda answer: answers[answer])


def _path(image: str, suffix: str, where: str) -> str:
    folder, underscore, number = image.partition("_")
    if not underscore or not number or PurePosixPath(image).name != image:
        raise DataError(f"{where}: the image must be named like train_0422.")
    return f"{folder}/{image}{suffix}"


def _first_word(question: str) -> str:
    plain = question.casefold()
    return next((word for word in _WORDS if plain.startswith(f"{word} ")), "other")
