"""CBIS-DDSM (Sawyer-Lee et al. 2017): lesions of digitised mammograms with BI-RADS descriptors, as published.

Reports and questions follow InstFree (Kang et al. 2026), section 4.2, with the details of its published code. The
columns that are read are ``patient_id``, ``abnormality type``, ``pathology``, ``cropped image file path`` and the two
descriptors of each of the four case tables, and ``PatientID``, ``SeriesDescription`` and ``image_path`` of
``dicom_info.csv``, the list of images that comes with the JPEG copy of the set.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medtune.data.multiple_choice import fixed_order, open_question, sampled_options
from medtune.data.reports import attribute_report
from medtune.data.sample import Sample, report_sample
from medtune.data.tables import read_table
from medtune.datasets.drawing import (
    check_limits,
    limited,
    limited_per_attribute,
    option_question,
    per_attribute,
    repeated,
    value_counts,
)
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError

DESCRIPTORS = {"mass": ("mass shape", "mass margins"), "calcification": ("calc type", "calc distribution")}
"""Columns of each kind of abnormality, in the order of the reports."""

GENERAL = ("abnormality type", "pathology")
"""Columns of every case; a report contains their values without their names."""

ASKED = {
    "mass shape": (
        "architectural distortion",
        "asymmetric breast tissue",
        "focal asymmetric density",
        "irregular",
        "lobulated",
        "lymph node",
        "oval",
        "round",
    ),
    "mass margins": ("circumscribed", "ill defined", "microlobulated", "obscured", "spiculated"),
    "calc type": (
        "amorphous",
        "coarse",
        "eggshell",
        "fine linear branching",
        "lucent center",
        "pleomorphic",
        "punctate",
        "round and regular",
        "vascular",
    ),
    "calc distribution": ("clustered", "diffusely scattered", "linear", "regional", "segmental"),
    "abnormality type": ("calcification", "mass"),
    "pathology": ("benign", "malignant"),
}
"""Values that occur in questions and options. Compound values ("oval-lymph node") occur only in reports."""

CROPS = "cropped images"
ABSENT = ("", "n/a", "nan")
VAL_SHARE = 0.1

_PATIENT = re.compile(r"_(P_\d+)_")
SharedPatients = Literal["keep", "drop"]


@dataclass(frozen=True)
class Case:
    """One annotated lesion in one view.

    Attributes:
        key: the publisher's name of the crop, such as ``Mass-Training_P_00001_LEFT_CC_1``.
        image: path of the crop.
        patient: such as ``P_00001``.
        values: attribute to value, in lower case, without absent ones; in the order of the report.
    """

    key: str
    image: str
    patient: str
    values: dict[str, str]

    @property
    def is_test(self) -> bool:
        """Whether the lesion is in the official test set."""
        return self.key.split("_")[0].endswith("-Test")


def read_cases(path: Path, kind: str) -> tuple[list[Case], int]:
    """Read one table of cases.

    Args:
        path: the table.
        kind: ``mass`` or ``calcification``.

    Returns:
        The cases of that kind, with the path of the crop that the table names; and the number of rows of the other
        kind. Some copies of the calcification tables that are in circulation have such rows at the end.

    Raises:
        DataError: for a missing column, a path without a crop's name, or a crop that is listed twice.
    """
    columns = ["patient_id", "cropped image file path", *GENERAL, *DESCRIPTORS[kind]]
    cases: dict[str, Case] = {}
    others = 0
    for where, row in read_table(path, columns):
        if row["abnormality type"].lower() != kind:
            others += 1
            continue
        image = row["cropped image file path"]
        key = image.split("/")[0]
        if not key.startswith(("Mass-", "Calc-")) or f"_{row['patient_id']}_" not in f"{key}_":
            raise DataError(f"{where}: the image path names no crop of the row's patient_id; correct the row.")
        if key in cases:
            raise DataError(f"{where}: its crop was annotated before; remove one of the rows.")
        values = {name: _spoken(row[name]) for name in (*DESCRIPTORS[kind], *GENERAL)}
        values = {name: value for name, value in values.items() if value not in ABSENT}
        cases[key] = Case(key, image, row["patient_id"], values)
    return list(cases.values()), others


def read_crops(path: Path) -> dict[str, str]:
    """Return the publisher's name of each crop -> its image, from ``dicom_info.csv``.

    Raises:
        DataError: for a missing column, or two images of one crop.
    """
    crops: dict[str, str] = {}
    for where, row in read_table(path, ["PatientID", "SeriesDescription", "image_path"]):
        if row["SeriesDescription"] != CROPS:
            continue
        if row["PatientID"] in crops:
            raise DataError(f"{where}: its crop has an image in a row before; keep one of them.")
        crops[row["PatientID"]] = row["image_path"].removeprefix("CBIS-DDSM/")
    return crops


def validation_patients(patients: Sequence[str], seed: int) -> set[str]:
    """Draw a tenth of the training patients, as the published code does: shuffle their sorted names, take the first."""
    names = sorted(set(patients))
    random.Random(seed).shuffle(names)
    return set(names[: int(len(names) * VAL_SHARE)])


def prepare_cbis_ddsm(
    annotations: str,
    dicom_info: str | None = None,
    shared_patients: SharedPatients = "keep",
    repeat_train: int = 3,
    seed: int = 0,
    limit_train: int | None = None,
    limit_questions_per_attribute: int | None = None,
) -> Prepared:
    """Convert the four tables of cases to reports and questions.

    Splits: ``train``, ``val_reports`` and ``test_reports`` hold image-report pairs; ``val`` and ``test`` hold
    questions, one per attribute whose value is in :data:`ASKED`. The options of a descriptor are its value and four
    other values drawn at random, shuffled. The options of abnormality type and pathology are both values in
    alphabetical order. The most frequent values of the training split are written to ``training_majority``.

    Args:
        annotations: folder of ``{mass,calc}_case_description_{train,test}_set.csv``.
        dicom_info: the list of images, ``dicom_info.csv``; cases whose crop is not in it are left out and counted.
            Without it, each case keeps the DICOM path that its table gives.
        shared_patients: 31 patients are in training with one kind of lesion and in test with the other. ``keep`` keeps
            them, as the published code does; ``drop`` removes their training and validation cases after the draw.
        repeat_train: number of times each training report is written; the published code writes it three times.
        seed: seed of all draws; 0 draws the published validation patients.
        limit_train: keep this many training reports, drawn at random, before they are repeated.
        limit_questions_per_attribute: keep this many questions of each attribute in each split, drawn at random.

    Raises:
        ConfigError: for an unknown value of ``shared_patients``, or a limit or repeat below 1.
        DataError: if a table is absent or wrong.
    """
    if shared_patients not in ("keep", "drop"):
        raise ConfigError(f"shared_patients: {shared_patients!r} is unknown; use 'keep' (published) or 'drop'.")
    limits = {"limit_train": limit_train, "limit_questions_per_attribute": limit_questions_per_attribute}
    check_limits(**limits)
    inputs = _inputs(annotations, dicom_info)
    cases, left_out = _read(inputs)
    groups, shared = _split(cases, shared_patients, seed)
    trained = {name: value_counts(c.values[name] for c in groups["train"] if name in c.values) for name in ASKED}
    train = limited(_reports("train", groups["train"]), limit_train, seed, "train")
    splits = {"train": repeated(train, repeat_train)}
    for split in ("val", "test"):
        splits[f"{split}_reports"] = _reports(split, groups[split])
        asked = [question for case in groups[split] for question in _questions(split, case, seed)]
        splits[split] = limited_per_attribute(asked, limit_questions_per_attribute, seed, split)
    return Prepared(
        name="cbis_ddsm",
        splits=splits,
        inputs=inputs,
        options={"shared_patients": shared_patients, "repeat_train": repeat_train, "seed": seed, **limits},
        tables={"training_majority": {_named(name): next(iter(counts)) for name, counts in trained.items() if counts}},
        summary={
            **left_out,
            "patients_in_training_and_test": shared,
            "training_values": {_named(name): counts for name, counts in trained.items()},
            "questions": {split: per_attribute(splits[split]) for split in ("val", "test")},
        },
        patient_of=_patient,
    )


def _patient(sample: Sample) -> str:
    """Return the patient in a sample's id, which begins with its split and the publisher's name of the crop."""
    found = _PATIENT.search(sample.id)
    return found[1] if found else ""


def _inputs(annotations: str, dicom_info: str | None) -> dict[str, Path]:
    folder = Path(annotations).expanduser()
    names = [f"{kind}_{split}" for split in ("train", "test") for kind in ("mass", "calc")]
    tables = {name: folder / f"{name.replace('_', '_case_description_')}_set.csv" for name in names}
    return tables | ({"dicom_info": Path(dicom_info).expanduser()} if dicom_info else {})


def _read(inputs: dict[str, Path]) -> tuple[list[Case], dict[str, int]]:
    """Return the cases, masses first as the published code lists them, and counts of what was left out."""
    crops = read_crops(inputs["dicom_info"]) if "dicom_info" in inputs else None
    cases: list[Case] = []
    others = 0
    for table, kind in (("mass", "mass"), ("calc", "calcification")):
        for split in ("train", "test"):
            read, passed = read_cases(inputs[f"{table}_{split}"], kind)
            cases, others = cases + read, others + passed
    if crops is not None:
        matched = [Case(c.key, crops[c.key], c.patient, c.values) for c in cases if c.key in crops]
        return matched, {"rows_of_the_other_kind": others, "cases_without_crop": len(cases) - len(matched)}
    return cases, {"rows_of_the_other_kind": others, "cases_without_crop": 0}


def _split(cases: Sequence[Case], shared_patients: str, seed: int) -> tuple[dict[str, list[Case]], int]:
    drawn = validation_patients([case.patient for case in cases if not case.is_test], seed)
    tested = {case.patient for case in cases if case.is_test}
    groups: dict[str, list[Case]] = {"train": [], "val": [], "test": [case for case in cases if case.is_test]}
    shared = {case.patient for case in cases if not case.is_test} & tested
    for case in cases:
        if not case.is_test and not (shared_patients == "drop" and case.patient in shared):
            groups["val" if case.patient in drawn else "train"].append(case)
    if not groups["train"] or not groups["test"]:
        raise DataError("CBIS-DDSM: no training or no test case is left; is dicom_info.csv that of this data set?")
    return groups, len(shared)


def _reports(split: str, cases: Sequence[Case]) -> list[Sample]:
    return [
        report_sample(f"{split}/{case.key}", (case.image,), attribute_report(case.values, value_only=GENERAL))
        for case in cases
    ]


def _questions(split: str, case: Case, seed: int) -> Iterator[Sample]:
    for name, answer in case.values.items():
        if answer not in ASKED[name]:
            continue
        id = f"{split}/{case.key}/{name.replace(' ', '_')}"
        options = fixed_order(ASKED[name])
        if name not in GENERAL:
            options = sampled_options(answer, options, random.Random(f"{seed}/{id}"))
        yield option_question(id, case.image, _named(name), open_question(_named(name)), options, answer)


def _spoken(cell: str) -> str:
    return cell.lower().replace("_", " ").replace(" without callback", "").strip()


def _named(column: str) -> str:
    """Return an attribute's name in questions: the published questions say "mass margin"."""
    return "mass margin" if column == "mass margins" else column
