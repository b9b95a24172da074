"""VQA-RAD (Lau et al. 2018): clinicians' questions about radiological images, in either of its two published forms."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medtune.datasets.prepared import Prepared
from medtune.datasets.vqa.rows import VqaRow, answer_type_of, prepare_rows, read_array
from medtune.errors import ConfigError

_NEEDED = ("qid", "image_name", "question", "answer", "answer_type", "question_type", "phrase_type")
_TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES"}
_TEST = "test_"


def prepare_vqa_rad(
    train: str | None = None, test: str | None = None, public: str | None = None, closed_hint: str = ""
) -> Prepared:
    """Convert VQA-RAD to a training and a test split.

    The type of a question is the owners' (PRES, POS, ABN, ...); several types of one question are put into alphabetical
    order, and two misspelt ones are corrected. The splits share images: 203 of the 203 test images are in the training
    split of the usual files. The manifest names this overlap.

    Args:
        train: ``trainset.json`` of the usual split into two files (3,064 questions).
        test: ``testset.json`` (451 questions).
        public: in place of both, the owners' single file ``VQA_RAD Dataset Public.json``; questions whose
            ``phrase_type`` begins with ``test_`` are the test split.
        closed_hint: a sentence after each question whose answer is yes or no, for example "Answer yes or no."

    Raises:
        ConfigError: if neither files nor file are given, or both.
        DataError: for a missing or empty field, another ``answer_type``, or an id that occurs twice.
    """
    given = {"train": train, "test": test}
    files = {name: Path(path).expanduser() for name, path in given.items() if path}
    if bool(files) == bool(public):
        raise ConfigError(
            "vqa_rad: give train and test (trainset.json, testset.json), or public, the owners' one file."
        )
    if public:
        files = {"public": Path(public).expanduser()}
    corrected: Counter[str] = Counter()
    rows = [row for name, path in files.items() for row in _rows(path, None if name == "public" else name, corrected)]
    return prepare_rows(
        "vqa_rad",
        rows,
        inputs=files,
        options={"files": sorted(files)},
        closed_hint=closed_hint,
        summary={"corrected_question_types": dict(sorted(corrected.items()))},
    )


def _rows(path: Path, split: str | None, corrected: Counter[str]) -> Iterator[VqaRow]:
    for where, item in read_array(path, _NEEDED):
        phrase = item["phrase_type"]
        yield VqaRow(
            id=item["qid"],
            split=split or ("test" if phrase.lower().startswith(_TEST) else "train"),
            image=item["image_name"],
            question=item["question"],
            answer=item["answer"],
            answer_type=answer_type_of(item["answer_type"], where),
            kind=_question_type(item["question_type"], corrected),
            where=where,
            meta={"organ": item.get("image_organ", ""), "phrase_type": phrase},
        )


def _question_type(text: str, corrected: Counter[str]) -> str:
    words = [word.strip().upper() for word in text.split(",") if word.strip()]
    for word in words:
        if word in _TYPOS:
            corrected[word] += 1
    return ", ".join(sorted(_TYPOS.get(word, word) for word in words))
