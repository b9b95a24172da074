"""MIMIC-CXR (Johnson et al. 2019) with LLM-annotated reports and Medical-CXR-VQA, as published.

Reports and questions follow InstFree (Kang et al. 2026), sections 4.1 and 4.2. Its published code does not contain this
data set; choices that the paper leaves open are made here and described in docs/datasets.md. The files that are read:

* MIMIC-CXR-JPG 2.1.0, ``mimic-cxr-2.0.0-metadata.csv`` and ``mimic-cxr-2.0.0-split.csv``, and CheXmask's table: see
  :class:`medtune.datasets.mimic_images.FrontalImages`.
* LLaVA-Rad's annotations 1.0.0, ``chat_{train,dev,test}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json``: arrays of
  objects, of which ``image``, ``generate_method``, ``impression`` and the findings, ``conversations`` from ``gpt``.
* Medical-CXR-VQA 1.0.0, ``medical-cxr-vqa-questions.csv``: ``study_id``, ``question_type``, ``question``, ``answer``.

Tables may be compressed (``.csv.gz``). Samples are made one at a time. About 80 bytes for each frontal image and the
values of each type of question are kept in memory.
"""

import dataclasses
import posixpath
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medtune.data.json_text import decode_json, json_objects
from medtune.data.reports import is_missing_report
from medtune.data.sample import Sample, report_sample
from medtune.data.tables import read_table
from medtune.datasets.drawing import check_limits, chosen, option_question, value_counts
from medtune.datasets.mimic_images import FrontalImages, whole_number
from medtune.datasets.prepared import Prepared, Stream
from medtune.errors import ConfigError, DataError

REPORTS = {"train": "chat_train", "val": "chat_dev", "test": "chat_test"}
METHODS = {"train": "gpt4", "val": "gpt4", "test": "rule-based"}
"""Method of the sections that are read: the LLM; for the test split the rules, the only published ones."""

VIEW, ABNORMALITY = "view", "abnormality"
CLOSED = ("yes", "no")
WRONG_OPTIONS = 4


@dataclasses.dataclass(frozen=True)
class Questions:
    """Medical-CXR-VQA's table, with the values of each type of question.

    Attributes:
        path: the table.
        images: the images that questions may be about.
        open_values: type of question -> its values other than yes and no, in alphabetical order.
        training_values: type of question -> number of times each value occurs in the training split.
    """

    path: Path
    images: FrontalImages
    open_values: dict[str, tuple[str, ...]]
    training_values: dict[str, dict[str, int]]

    @classmethod
    def read(cls, path: Path, images: FrontalImages) -> "Questions":
        """Read the table once to collect its values.

        Raises:
            DataError: if it is absent, a column or cell is missing, or it contains no question about these images.
        """
        values: dict[str, set[str]] = {}
        trained: dict[str, Counter[str]] = {}
        asked = 0
        for _, row, number in _rows(path, images):
            asked += number is not None
            answers = right_answers(row)
            values.setdefault(row["question_type"], set()).update(answers)
            if number is not None and images.split(number) == "train":
                trained.setdefault(row["question_type"], Counter()).update(answers)
        if not asked:
            raise DataError(f"{path}: no question is about a frontal image; is it Medical-CXR-VQA's table?")
        open_values = {name: tuple(sorted(answers - set(CLOSED))) for name, answers in values.items()}
        return cls(path, images, open_values, {name: value_counts(c.elements()) for name, c in sorted(trained.items())})

    def samples(self, split: str, suffix: str, seed: int, left_out: Counter[str]) -> Iterator[Sample]:
        """Yield a split's questions, one for each right answer; count rows without a question in ``left_out``."""
        left_out.clear()
        for row_number, row, number in _rows(self.path, self.images):
            if number is None:
                left_out["no frontal image"] += 1
                continue
            if self.images.split(number) != split:
                continue
            right = right_answers(row)
            for place, answer in enumerate(right, start=1):
                id = f"{split}/s{row['study_id']}/{row_number}" + (f"/{place}" if len(right) > 1 else "")
                rng = random.Random(f"{seed}/{id}")
                options = answer_options(answer, right, self.open_values[row["question_type"]], rng)
                if len(options) < 2:
                    left_out["no other value of its type"] += 1
                    continue
                image = self.images.path(number, suffix)
                yield option_question(id, image, row["question_type"], row["question"], options, answer)


def right_answers(row: Mapping[str, str]) -> list[str]:
    """Return the right answers: for a question about abnormalities each item of the comma-separated answer."""
    answers = row["answer"].split(",") if row["question_type"] == ABNORMALITY else [row["answer"]]
    return list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))


def answer_options(answer: str, right: Sequence[str], values: Sequence[str], rng: random.Random) -> list[str]:
    """Return yes and no if the answer is one of them, else the answer and four wrong values of its type, shuffled.

    Args:
        answer: the right answer of this question.
        right: all right answers of the row; the others are not used as wrong options.
        values: values of the type of question, without yes and no.
        rng: the question's random generator.
    """
    if answer in CLOSED:
        return list(CLOSED)
    drawn = rng.sample(values, min(len(values), WRONG_OPTIONS + len(right)))
    options = [answer, *[value for value in drawn if value not in right][:WRONG_OPTIONS]]
    rng.shuffle(options)
    return options


def read_reports(
    path: Path, split: str, images: FrontalImages, suffix: str, left_out: Counter[str]
) -> Iterator[Sample]:
    """Yield the image-report pairs of one file of annotations; ``meta["sections"]`` holds findings and impression.

    Args:
        path: the JSON array; read an object at a time.
        split: split of the file: ``train``, ``val`` or ``test``.
        images: the images to keep.
        suffix: suffix of the image files.
        left_out: counter of objects without a sample.

    Raises:
        DataError: for an invalid object, an image of another split, or a second report of an image.
    """
    left_out.clear()
    seen = np.zeros(len(images), dtype=bool)
    for where, entry in _entries(path):
        number = images.find(posixpath.splitext(posixpath.basename(entry["image"]))[0])
        if number is None or entry["generate_method"] != METHODS[split]:
            left_out["not a frontal image" if number is None else "another method"] += 1
            continue
        sections = _sections(entry)
        if not sections:
            left_out["neither findings nor impression"] += 1
            continue
        if images.split(number) != split:
            raise DataError(f"{where}: the image is in the split {images.split(number)!r}, the file in {split!r}.")
        if seen[number]:
            raise DataError(f"{where}: the image {images.dicom(number)} has a second report; keep one of them.")
        seen[number] = True
        sample = report_sample(f"{split}/{images.dicom(number)}", (images.path(number, suffix),), " ".join(sections))
        yield dataclasses.replace(sample, meta={"sections": sections})


def prepare_mimic_cxr(
    mimic_cxr_jpg: str,
    chexmask: str,
    reports: str,
    questions: str,
    least_dice: float = 0.7,
    image_suffix: str = ".jpg",
    seed: int = 0,
    limit_train: int | None = None,
    limit_questions_per_attribute: int | None = None,
) -> Prepared:
    """Join the published tables to reports and questions about frontal chest X-rays.

    Splits are the official ones: ``train``, ``val_reports`` and ``test_reports`` hold a report for each image, ``val``
    and ``test`` hold questions about one image of a study. ``training_majority`` holds the most frequent answer of the
    training split to each type of question.

    Args:
        mimic_cxr_jpg: folder of ``mimic-cxr-2.0.0-metadata.csv`` and ``mimic-cxr-2.0.0-split.csv``.
        chexmask: CheXmask's ``MIMIC-CXR-JPG.csv``.
        reports: folder of LLaVA-Rad's three files.
        questions: ``medical-cxr-vqa-questions.csv``.
        least_dice: images below this ``Dice RCA (Mean)`` are left out.
        image_suffix: ``.jpg`` for MIMIC-CXR-JPG, ``.dcm`` for MIMIC-CXR; the folders are the same.
        seed: seed of the wrong options and of the limits.
        limit_train: keep this many training reports, drawn at random.
        limit_questions_per_attribute: keep this many questions of each type in each split, drawn at random.

    Raises:
        ConfigError: for a limit below 1, or a ``least_dice`` outside 0 to 1.
        DataError: if a file is absent or invalid; for reports and questions this is raised when they are read.
    """
    limits = {"limit_train": limit_train, "limit_questions_per_attribute": limit_questions_per_attribute}
    check_limits(**limits)
    if not 0.0 <= least_dice <= 1.0:
        raise ConfigError(f"least_dice is {least_dice}; it must be between 0 and 1 (the paper: 0.7).")
    inputs = _inputs(mimic_cxr_jpg, chexmask, reports, questions)
    images = FrontalImages(inputs["metadata"], inputs["split"], inputs["chexmask"], least_dice)
    table = Questions.read(inputs["questions"], images)
    left_out: dict[str, Counter[str]] = {}
    splits: dict[str, Stream] = {}
    for split in METHODS:
        name = "train" if split == "train" else f"{split}_reports"
        left_out[name] = Counter()
        reports_of_split = partial(
            read_reports, inputs[f"reports_{split}"], split, images, image_suffix, left_out[name]
        )
        splits[name] = _limited(Stream(reports_of_split), limit_train if split == "train" else None, seed)
        if split != "train":
            left_out[split] = Counter()
            asked = partial(table.samples, split, image_suffix, seed, left_out[split])
            splits[split] = _limited(Stream(asked), limit_questions_per_attribute, seed)
    return Prepared(
        name="mimic_cxr",
        splits=splits,
        inputs=inputs,
        options={"least_dice": least_dice, "image_suffix": image_suffix, "seed": seed, **limits},
        tables={"training_majority": {name: next(iter(counts)) for name, counts in table.training_values.items()}},
        summary={
            "frontal_images": images.frontal,
            "images": images.counts(),
            "values_of_each_type": {name: len(values) for name, values in sorted(table.open_values.items())},
            "left_out": left_out,
        },
        patient_of=_patient,
    )


def _patient(sample: Sample) -> str:
    """Return the patient in the path of an image, such as ``p10/p10000032/s50414267/x.jpg``."""
    found = re.match(r"p\d\d/(p\d{8})/", sample.images[0]) if sample.images else None
    return found[1] if found else ""


def _inputs(mimic_cxr_jpg: str, chexmask: str, reports: str, questions: str) -> dict[str, Path]:
    tables = {
        "metadata": Path(mimic_cxr_jpg) / "mimic-cxr-2.0.0-metadata.csv",
        "split": Path(mimic_cxr_jpg) / "mimic-cxr-2.0.0-split.csv",
        "chexmask": Path(chexmask),
        "questions": Path(questions),
    }
    name = "{}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
    files = {f"reports_{split}": Path(reports) / name.format(begin) for split, begin in REPORTS.items()}
    return {key: _present(path.expanduser()) for key, path in (tables | files).items()}


def _present(path: Path) -> Path:
    """Return the file, or its compressed form if only that exists."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file() and not (candidate.suffix == ".gz" and path.suffix == ".json"):
            return candidate
    raise DataError(f"The file {path} does not exist; correct its path, or get it from its owners (docs/datasets.md).")


def _limited(samples: Stream, limit: int | None, seed: int) -> Stream:
    if limit is None:
        return samples
    kept = chosen(((sample.meta.get("attribute", ""), sample.id) for sample in samples), limit, seed)
    return Stream(lambda: (sample for sample in samples if sample.id in kept))


def _rows(path: Path, images: FrontalImages) -> Iterator[tuple[int, dict[str, str], int | None]]:
    """Yield number (from 1), content and image of each row, without the questions about the view."""
    columns = ["study_id", "question_type", "question", "answer"]
    for row_number, (where, row) in enumerate(read_table(path, columns), start=1):
        if row["question_type"] == VIEW:
            continue
        for column in columns:
            if not row[column]:
                raise DataError(f"{where}: the cell of column {column!r} is empty; fill it in, or remove the row.")
        yield row_number, row, images.of_study(whole_number(row["study_id"], "study_id", where))


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, (start, end) in enumerate(json_objects(path), start=1):
            where = f"{path.name}, item {number}"
            file.seek(start)
            entry = decode_json(file.read(end - start), where)
            if not isinstance(entry, dict) or not all(
                isinstance(entry.get(key), str) for key in ("image", "generate_method")
            ):
                raise DataError(f"{where}: an annotation needs the texts 'image' and 'generate_method'.")
            if not isinstance(entry.get("conversations"), list):
                raise DataError(f"{where}: an annotation needs a list 'conversations' with the findings.")
            yield where, entry


def _sections(entry: dict[str, Any]) -> list[str]:
    """Return findings and impression, without a missing one (an empty text, or one that is only ``___``)."""
    turns = [turn for turn in entry["conversations"] if isinstance(turn, dict) and turn.get("from") == "gpt"]
    texts = [*(turn.get("value") for turn in turns[:1]), entry.get("impression")]
    return [text.strip() for text in texts if isinstance(text, str) and not is_missing_report(text)]
