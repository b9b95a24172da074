"""Samples of FLARE's question files, read a row at a time."""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from medtune.data.image_names import safe_path
from medtune.data.images import ImageRoot
from medtune.data.json_text import decode_json, json_objects
from medtune.data.passing import PassingSource
from medtune.data.sample import Sample
from medtune.data.source import RecordSource, SampleSource, place
from medtune.datasets.flare.answers import answer_boxes, answer_task, answer_text, has_answer
from medtune.datasets.flare.boxes import check_inside
from medtune.datasets.flare.layout import QuestionFile
from medtune.datasets.flare.task_types import task_type
from medtune.errors import DataError


@dataclass(frozen=True)
class Choice:
    """What is read of a question file.

    Attributes:
        tasks: normalised tasks; empty takes all.
        image_folders: first folder of ``ImageName`` -> the folder that is there in its place.
    """

    tasks: Collection[str] = ()
    image_folders: Mapping[str, str] = field(default_factory=dict)


class FlareFile(RecordSource):
    """The questions of one data set and split; see :func:`medtune.datasets.flare.flare`.

    Args:
        file: the file and its place.
        images: the images of the whole root.
        choice: the rows that are read.
    """

    unit = "item"

    def __init__(self, file: QuestionFile, images: ImageRoot, choice: Choice) -> None:
        self.file, self.choice = file, choice
        settings = [file.dataset, file.split, file.folder, sorted(choice.tasks), sorted(choice.image_folders.items())]
        super().__init__(file.path, images, settings)
        self.name = file.dataset

    def spans(self) -> Iterator[tuple[int, int, int, object]]:
        """Yield the place of each chosen row; see :class:`RecordSource`."""
        with self.path.open("rb") as file:
            for number, (start, end) in enumerate(json_objects(self.path), start=1):
                file.seek(start)
                if self._chosen(file.read(end - start)):
                    yield start, end, number, self._id(number)

    def parse(self, raw: bytes, number: int, where: str) -> Sample:
        """Convert a row to a sample."""
        return flare_sample(decode_json(raw, where), self._id(number), self.file, self.choice.image_folders, where)

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Read the headers of a sample's images, and check that the boxes of its answer lie inside."""
        sizes = super().image_sizes(sample)
        if "answer" in sample.meta:
            where = self.where(sample)
            check_inside(answer_boxes(sample.meta["task"], sample.meta["answer"], where), sizes, where)
        return sizes

    def _id(self, number: int) -> str:
        return f"{self.file.split}/{number}"

    def _chosen(self, raw: bytes) -> bool:
        """Return whether a row is read; one whose task cannot be told is, so that the check names it."""
        try:
            row = decode_json(raw, "")
            task = task_type(row.get("TaskType")) if isinstance(row, dict) else None
        except DataError:
            return True
        return task is None or not self.choice.tasks or answer_task(task, row.get("Answer")) in self.choice.tasks


def holds_rows(file: QuestionFile, images: ImageRoot, choice: Choice) -> FlareFile | None:
    """Return the source of a file; None if it holds no row of the chosen tasks.

    Raises:
        DataError: if the file is no JSON array of objects.
    """
    try:
        return FlareFile(file, images, choice)
    except DataError:
        if choice.tasks and sum(1 for _ in json_objects(file.path)):
            return None
        raise


def flare_sample(row: Any, id: str, file: QuestionFile, image_folders: Mapping[str, str], where: str) -> Sample:
    """Convert a decoded row of a question file to a sample.

    Args:
        row: ``{"TaskType", "Modality", "ImageName", "Question", "Answer", "Split"}``; other fields are not read.
        id: the sample's id.
        file: the row's file.
        image_folders: see :class:`Choice`.
        where: file and row, for messages.

    Raises:
        DataError: for a field that is missing or cannot be used, and for a row of the training split without answer.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a question must be an object, not a {type(row).__name__}.")
    answer = row.get("Answer")
    task = answer_task(task_type(row.get("TaskType"), where), answer)
    question = row.get("Question")
    if not isinstance(question, str) or not question.strip():
        raise DataError(f"{where}: the field 'Question' is missing or empty; correct or remove the row.")
    modality = row.get("Modality") or file.category
    if not isinstance(modality, str):
        raise DataError(f"{where}: 'Modality' must be a text; correct or remove the row.")
    meta = {"task": task, "dataset": file.dataset, "modality": modality.strip(), "split": file.split}
    messages = [{"role": "user", "content": question.strip()}]
    if has_answer(answer):
        meta["answer"] = answer_text(task, answer, where)
        messages.append({"role": "assistant", "content": meta["answer"]})
    elif file.split == "train":
        raise DataError(f"{where}: the row has no 'Answer'; a row of the training split needs one.")
    images = _image_paths(row.get("ImageName"), file.folder, image_folders, where)
    return Sample.from_dict({"id": id, "images": images, "messages": messages, "meta": meta}, where)


def _image_paths(names: Any, folder: str, image_folders: Mapping[str, str], where: str) -> list[str]:
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) and name for name in listed):
        raise DataError(
            f"{where}: 'ImageName' must be a path such as 'imagesTr/x.png', or a list of paths; correct or remove the "
            "row."
        )
    paths = []
    for name in listed:
        first, slash, rest = safe_path(name, where).as_posix().partition("/")
        moved = PurePosixPath(image_folders.get(first, first)) / rest if slash else PurePosixPath(first)
        paths.append((PurePosixPath(folder) / moved).as_posix())
    return paths


class OneImageEach(PassingSource):
    """Each image of a question as a sample of its own, with the same question and answer (the official training form).

    Ids get the number of the image, from 1: ``train/7/2``. A question about one image keeps its id.

    Args:
        source: the questions.
    """

    def __init__(self, source: SampleSource) -> None:
        super().__init__(source)
        self._places = [(row, at) for row in range(len(source)) for at in self._images(row)]

    def _images(self, row: int) -> list[int | None]:
        """Return the numbers of a row's images; [None] for one image, and for a row that cannot be read."""
        try:
            count = len(self.source[row].images)
        except DataError:
            return [None]
        return [None] if count == 1 else list(range(count))

    def __len__(self) -> int:
        """Return the number of images of all questions."""
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        """Return a question about one of its images."""
        row, at = self._places[index]
        sample = self.source[row]
        return sample if at is None else replace(sample, id=f"{sample.id}/{at + 1}", images=(sample.images[at],))

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode the image of a sample."""
        return self.source.open_images(_whole(sample))

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Read the header of a sample's image."""
        return self.source.image_sizes(_whole(sample))

    def image_files(self, sample: Sample) -> list[str]:
        """Return the file of a sample's image."""
        return super().image_files(_whole(sample))

    def where(self, sample: Sample) -> str:
        """Return file, row and id of the question."""
        return place(self.source, _whole(sample))

    def fingerprint(self) -> str:
        """Return a SHA-256 of the questions and of this form."""
        return hashlib.sha256(f"one image each {self.source.fingerprint()}".encode()).hexdigest()


def _whole(sample: Sample) -> Sample:
    """Return a sample under the id of its question: ``split/row`` of ``split/row/image``."""
    return replace(sample, id="/".join(sample.id.split("/")[:2]))
