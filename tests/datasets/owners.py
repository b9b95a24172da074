"""Files in the layouts of data sets that may not be passed on, with made-up contents."""

import csv
import json
import pickle
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medtune.datasets.skincon import EXCLUDED, FEATURES

FINDINGS = ("The lungs are clear.", "There is a small effusion.", "The heart is enlarged.", "No pneumothorax is seen.")
IMPRESSIONS = ("No acute process.", "Mild edema.", None)
ABNORMALITIES = ("atelectasis", "edema", "pleural effusion", "cardiomegaly", "pneumonia", "lung opacity", "fracture")
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
).split(",")
CHEXMASK = "dicom_id,Dice RCA (Max),Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width".split(",")
DICOM_INFO = "file_path,image_path,AccessionNumber,BodyPartExamined,Modality,PatientID,SeriesDescription".split(",")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_picture(path: Path, number: int, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No two files have the same pixels, so that the leakage gate finds nothing.
    Image.new(
        "RGB", size, tuple(zlib.crc32(f"{number} {path.parent.name}/{path.name}".encode()).to_bytes(4, "big")[:3])
    ).save(path)


def skincon_rows(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of SKINCON's table: row numbers in a column without a name, hashes, 0 and 1."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        present = set(rng.sample(FEATURES[:12], rng.randint(1, 3)))
        row = {"": number, "ImageID": f"{rng.getrandbits(128):032x}.jpg", EXCLUDED: int(number % 20 == 19)}
        rows.append(row | {name: int(name in present) for name in FEATURES})
    return rows


def write_skincon(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    return write_table(folder / "annotations_fitzpatrick17k.csv", ["", "ImageID", *FEATURES, EXCLUDED], rows)


def write_dicom_info(path: Path, crops: Iterable[str]) -> Path:
    """The JPEG copy's list of images: full mammogram, mask and crop of each lesion."""
    rows = []
    for number, crop in enumerate(crops):
        kinds = (("cropped images", crop), ("ROI mask images", crop), ("full mammogram images", crop[:-2]))
        for place, (kind, name) in enumerate(kinds):
            image = f"CBIS-DDSM/jpeg/1.3.6.1.4.1.9590.100.1.2.{number}/{place + 1}-{number:03}.jpg"
            rows.append({"PatientID": name, "SeriesDescription": kind, "image_path": image})
    return write_table(path, DICOM_INFO, rows)


class Mimic:
    """A small MIMIC-CXR with annotations and questions; each study has a frontal and a lateral image.

    Every tenth study is of ``validate``, every fifth other of ``test``; every seventh image fails CheXmask's check.
    """

    def __init__(self, studies: int = 40, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.metadata: list[dict[str, Any]] = []
        self.split: list[dict[str, Any]] = []
        self.chexmask: list[dict[str, Any]] = []
        self.reports: dict[str, list[dict[str, Any]]] = {"train": [], "dev": [], "test": []}
        self.questions: list[dict[str, Any]] = []
        for number in range(studies):
            split = "validate" if number % 10 == 0 else "test" if number % 5 == 2 else "train"
            ids = {"subject_id": 10000000 + number, "study_id": 50000000 + 7 * number}
            for view in ("LATERAL", "AP" if number % 2 else "PA"):
                dicom = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
                self._image(dicom, view, ids, split, 0.65 if number % 7 == 3 else 0.7 + 0.01 * (number % 20))
                self._report(dicom, view, ids, split, rng)
            self._ask(ids, number, rng)

    def _image(self, dicom: str, view: str, ids: dict[str, int], split: str, dice: float) -> None:
        self.metadata.append({"dicom_id": dicom, **ids, "ViewPosition": view, "Rows": 3056, "Columns": 2544})
        self.split.append({"dicom_id": dicom, **ids, "split": split})
        if view != "LATERAL":
            mask = {"Dice RCA (Max)": dice + 0.05, "Dice RCA (Mean)": dice, "Left Lung": "5 9 20 4"}
            self.chexmask.append({"dicom_id": dicom, **mask, "Height": 3056, "Width": 2544})

    def _report(self, dicom: str, view: str, ids: dict[str, int], split: str, rng: random.Random) -> None:
        subject, study = ids["subject_id"], ids["study_id"]
        findings = rng.choice([*FINDINGS, None]) if split == "train" else FINDINGS[0]
        for method in ("rule-based",) if split == "test" else ("gpt4", "rule-based"):
            self.reports["dev" if split == "validate" else split].append(
                {
                    "id": f"{subject}_{study}",
                    "image": f"mimic/p{str(subject)[:2]}/p{subject}/s{study}/{dicom}.jpg",
                    "generate_method": method,
                    "reason": "___ year old with [cough], eval {edema}",
                    "impression": rng.choice(IMPRESSIONS),
                    "view": view,
                    "chexpert_labels": {"Edema": float("nan")},
                    "conversations": [
                        {"from": "human", "value": "<image>\nDescribe the findings of the chest x-ray.\n"},
                        {"from": "gpt", "value": findings},
                    ],
                }
            )

    def _ask(self, ids: dict[str, int], number: int, rng: random.Random) -> None:
        found = rng.sample(ABNORMALITIES, 1 + number % 3)
        asked = [
            ("abnormality", "what abnormalities are seen in this image?", ", ".join(found)),
            ("abnormality", "is there evidence of any abnormalities in this image?", "yes"),
            ("presence", f"is there {found[0]}?", rng.choice(["yes", "no"])),
            ("view", "which view is this image taken?", "PA view"),
            ("location", f"where is the {found[0]}?", rng.choice(["left lung", "right lung", "base", "apex", "hilum"])),
            ("level", f"what level is the {found[0]}?", rng.choice(["small", "moderate", "large"])),
            ("type", f"what type is the {found[0]}?", rng.choice(["focal", "diffuse"])),
        ]
        keys = ("question_type", "question", "answer")
        self.questions += [{**ids, **dict(zip(keys, question, strict=True))} for question in asked]

    def write(self, folder: Path, images: bool = False) -> dict[str, str]:
        """Write the owners' files; return the door's arguments."""
        folder.mkdir(exist_ok=True)
        ids = ["dicom_id", "study_id", "subject_id"]
        write_table(folder / "mimic-cxr-2.0.0-metadata.csv", METADATA, self.metadata)
        write_table(folder / "mimic-cxr-2.0.0-split.csv", [*ids, "split"], self.split)
        write_table(folder / "MIMIC-CXR-JPG.csv", CHEXMASK, self.chexmask)
        columns = ["study_id", "subject_id", "question_type", "question", "answer"]
        write_table(folder / "medical-cxr-vqa-questions.csv", columns, self.questions)
        for split, entries in self.reports.items():
            name = f"chat_{split}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"
            (folder / name).write_text(json.dumps(entries, indent=1))
            for number, entry in enumerate(entries if images else []):
                write_picture(folder / "files" / entry["image"].removeprefix("mimic/"), number)
        files = {"chexmask": "MIMIC-CXR-JPG.csv", "questions": "medical-cxr-vqa-questions.csv"}
        return {"mimic_cxr_jpg": str(folder), "reports": str(folder)} | {k: str(folder / v) for k, v in files.items()}


def write_vqa(folder: Path) -> None:
    """A few questions of VQA-RAD, SLAKE and PathVQA, and LLaVA's conversations, each with its images."""
    for split in ("train", "test"):
        questions = [
            {"qid": number, "image_name": f"synpic{number % 4}.jpg", "image_organ": "HEAD", "answer": answer}
            | {"answer_type": kind, "question_type": "PRES", "question": asked, "phrase_type": "freeform"}
            for number in range(8)
            for answer, kind, asked in [("Yes", "CLOSED", "Is it there?") if number % 2 else ("left", "OPEN", "Where?")]
        ]
        (folder / "vqa_rad").mkdir(parents=True, exist_ok=True)
        (folder / "vqa_rad" / f"{split}set.json").write_text(json.dumps(questions))
    for number in range(4):
        write_picture(folder / "vqa_rad" / "images" / f"synpic{number}.jpg", number)
    for place, split in enumerate(("train", "validate", "test")):
        asked = {"img_name": f"{split}/source.jpg", "question": "What is it?", "answer": "CT", "answer_type": "OPEN"}
        write_picture(folder / "slake" / "imgs" / split / "source.jpg", 40 * place)
        (folder / "slake" / f"{split}.json").write_text(
            json.dumps([{**asked, "qid": 1, "q_lang": "en", "content_type": "Modality"}])
        )
    for place, split in enumerate(("train", "val", "test")):
        write_picture(folder / "path_vqa" / "images" / split / f"{split}_0001.jpg", 40 * place)
        (folder / "path_vqa" / "qas").mkdir(parents=True, exist_ok=True)
        row = {"img_id": f"{split}_0001", "sent": "What is shown?", "label": {"liver": 1}, "answer_type": "other"}
        (folder / "path_vqa" / "qas" / f"{split}_vqa.pkl").write_bytes(pickle.dumps([row]))
    turns = [{"from": "human", "value": "<image>\nWhat is shown?"}, {"from": "gpt", "value": "A scan."}]
    write_picture(folder / "llava_med" / "images" / "1.jpg", 3)
    (folder / "llava_med" / "llava_med_instruct_60k_inline_mention.json").write_text(
        json.dumps([{"id": "1", "image": "1.jpg", "conversatons": turns}])
    )
