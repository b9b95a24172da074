"""MedMNIST's single-label sets as image-report pairs and questions, for methods that learn from reports (InstFree).

MedMNIST has labels and no reports. A report here is a label in other words: the set's modality, which is the same for
all images of a set, and the finding, which is the class. It says no more than the label, and the words are ours. Its
form is that of the reports that InstFree (Kang et al. 2026, section 4.2) writes from attributes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from medtune.data.multiple_choice import fixed_order, open_question
from medtune.data.reports import attribute_report
from medtune.data.sample import Sample, report_sample
from medtune.datasets.classification import Balance, Choice, ClassWeights
from medtune.datasets.drawing import option_question, value_counts
from medtune.datasets.medmnist.door import (
    Chosen,
    DrawnImage,
    GradeNames,
    choose_sets,
    find_files,
    image_counts,
    packed_images,
    size_notes,
)
from medtune.datasets.medmnist.facts import FACTS
from medtune.datasets.prepared import Prepared, Stream
from medtune.errors import ConfigError

MODALITY = "modality"
FINDINGS = {
    "path": "colon tissue",
    "derma": "skin finding",
    "oct": "OCT finding",
    "pneumonia": "chest finding",
    "retina": "fundus finding",
    "breast": "breast finding",
    "blood": "blood cell type",
    "tissue": "kidney cell type",
    "organa": "axial organ",
    "organc": "coronal organ",
    "organs": "sagittal organ",
}
"""Name of a single-label set to the attribute whose values are its classes; each set has an attribute of its own."""

WITHOUT_COMMAS = {
    "normal, benign": "normal or benign",
    "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)": "immature granulocytes",
    "Collecting Duct, Connecting Tubule": "Collecting Duct or Connecting Tubule",
}
"""Official names that contain the separator of a report's phrases, and what stands in their place."""


@dataclass(frozen=True)
class ReportedSet:
    """A set's images, with what their reports and questions say.

    Attributes:
        part: the set's file and chosen rows.
    """

    part: Chosen

    @property
    def finding(self) -> str:
        """Name of the attribute whose values are the set's classes."""
        return FINDINGS[self.part.name]

    @property
    def findings(self) -> list[str]:
        """The classes by index, as reports and options name them."""
        return [WITHOUT_COMMAS.get(name, name) for name in self.part.words.classes]

    def attributes(self, indices: Sequence[int]) -> dict[str, str]:
        """Return the attributes of an image of this class, in the order of the report."""
        return {MODALITY: self.part.words.modality, self.finding: self.findings[indices[0]]}

    def reports(self, split: str) -> Iterator[Sample]:
        """Yield the image-report pairs of a split."""
        for image in self.part.drawn(split):
            report = attribute_report(self.attributes(image.indices))
            yield replace(report_sample(image.id, (image.image,), report), weight=image.weight)

    def questions(self, split: str, modalities: Sequence[str]) -> Iterator[Sample]:
        """Yield the questions of a split: of the modality, if there is more than one, and of the finding."""
        options = {MODALITY: fixed_order(modalities), self.finding: fixed_order(self.findings)}
        for image in self.part.drawn(split):
            for attribute, value in self.attributes(image.indices).items():
                if len(options[attribute]) > 1:
                    yield _question(image, attribute, options[attribute], value)

    def training_values(self) -> dict[str, list[str]]:
        """Return each attribute's values of all training images, whether they are written or not."""
        rows = [self.attributes(indices) for indices in self.part.labels("train")]
        return {name: [row[name] for row in rows] for name in (MODALITY, self.finding)}


def prepare_medmnist_reports(
    files: str | list[str],
    sets: list[str] | None = None,
    grades: GradeNames = "words",
    balance_train: Balance | None = None,
    limit_train: int | None = None,
    limit_questions: int | None = None,
    seed: int = 0,
    class_weights: ClassWeights = None,
) -> Prepared:
    """Convert single-label sets of MedMNIST 2D to reports and questions.

    Splits: ``train``, ``val_reports`` and ``test_reports`` hold image-report pairs, such as "breast ultrasound
    modality, malignant breast finding"; ``val`` and ``test`` hold questions about the same images. Each image is asked
    for its finding, whose options are the classes of its own set, and for its modality, whose options are those of the
    prepared sets; with one set there is nothing to choose from, and the modality is not asked. The most frequent value
    of each attribute in the whole training split is written to ``training_majority``, the images to ``images.tar``,
    which is the image root. The modality is known from the set, so that a question about it tests whether a model
    answers what is asked, not what it sees.

    Args:
        files: MedMNIST's ``.npz`` files or a folder of them; see :func:`medtune.datasets.medmnist.prepare_medmnist`.
        sets: names of the sets to take (``breast`` or ``breastmnist``); null takes all that are found.
        grades: RetinaMNIST's classes in ``words``, or as the ``numbers`` 0 to 4.
        balance_train: ``undersample`` or ``oversample``, see :func:`medtune.datasets.classification.draw_rows`.
        limit_train: keep this many training images of each set, drawn at random after balancing.
        limit_questions: keep this many images of each set in val and in test, with their reports and questions.
        seed: seed of all draws.
        class_weights: see :class:`medtune.datasets.classification.Choice`, by official class names.

    Raises:
        ConfigError: for an unknown set, class or option, a limit below 1, or a multi-label set, for whose images a
            question has no single right option.
        DataError: for a file that cannot be used.
    """
    choice = Choice("full", balance_train, limit_train, limit_questions, seed, class_weights)
    found = find_files(files, sets)
    for name in found:
        if name not in FINDINGS:
            raise ConfigError(
                f"sets: an image of {FACTS[name].title} may have several labels, so that a question about it has no "
                "single right option; list other sets in data.sets."
            )
    chosen = choose_sets(found, grades, choice)
    reported = [ReportedSet(part) for part in chosen]
    modalities = list(dict.fromkeys(part.words.modality for part in chosen))
    splits = {"train": _reports(reported, "train")}
    for split in ("val", "test"):
        splits |= {f"{split}_reports": _reports(reported, split), split: _questions(reported, split, modalities)}
    values: dict[str, list[str]] = {}
    for one in reported:
        for name, given in one.training_values().items():
            values.setdefault(name, []).extend(given)
    counted = {name: value_counts(given) for name, given in values.items()}
    options = {name: value for name, value in asdict(choice).items() if name != "template"}
    return Prepared(
        name="medmnist_reports",
        splits=splits,
        inputs={part.name: part.file.path for part in chosen},
        options={"sets": list(found), "grades": grades, **options},
        tables={"training_majority": {name: next(iter(counts)) for name, counts in counted.items()}},
        summary={"sets": image_counts(chosen), "training_values": counted},
        files=packed_images(chosen),
        notes=size_notes(chosen),
    )


def _question(image: DrawnImage, attribute: str, options: Sequence[str], value: str) -> Sample:
    id = f"{image.id}/{attribute.replace(' ', '_')}"
    return option_question(id, image.image, attribute, open_question(attribute), options, value)


def _reports(reported: Sequence[ReportedSet], split: str) -> Stream:
    return Stream(lambda: (sample for one in reported for sample in one.reports(split)))


def _questions(reported: Sequence[ReportedSet], split: str, modalities: Sequence[str]) -> Stream:
    return Stream(lambda: (sample for one in reported for sample in one.questions(split, modalities)))
