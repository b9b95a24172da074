"""The owners' four tables of CBIS-DDSM; the list of images that goes with them is made here, in its layout."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from medtune.datasets.cbis_ddsm import ASKED, prepare_cbis_ddsm, read_cases
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError
from tests.datasets.owners import write_dicom_info

TABLES = [f"{kind}_case_description_{split}_set.csv" for kind in ("mass", "calc") for split in ("train", "test")]
COLUMNS = {
    "mass": ["abnormality type", "mass shape", "mass margins"],
    "calc": ["abnormality type", "calc type", "calc distribution"],
}


@pytest.fixture(scope="module")
def annotations(medtune_data: Path) -> str:
    folder = medtune_data / "cbis_ddsm"
    if not folder.is_dir():
        pytest.skip(f"the CBIS-DDSM tables are not in {folder}")
    return str(folder)


@pytest.fixture(scope="module")
def published(annotations: str) -> Prepared:
    return prepare_cbis_ddsm(annotations)


def small_tables(folder: Path, change=None) -> str:
    """Twelve training and two test patients of each kind, two lesions each."""
    folder.mkdir()
    for name in TABLES:
        kind, split = name[:4], "Test" if "test" in name else "Training"
        first, second = ("OVAL", "OBSCURED") if kind == "mass" else ("COARSE", "LINEAR")
        rows = []
        for patient in range(2 if split == "Test" else 12):
            number = f"P_{patient + 100 * (kind == 'calc') + 50 * (split == 'Test'):05}"
            for lesion in (1, 2):
                crop = f"{kind.title()}-{split}_{number}_LEFT_CC_{lesion}"
                type = "mass" if kind == "mass" else "calcification"
                values = [number, type, first, second, "BENIGN_WITHOUT_CALLBACK", f"{crop}/1.2/3.4/000001.dcm\n"]
                columns = ["patient_id", *COLUMNS[kind], "pathology", "cropped image file path"]
                rows.append(dict(zip(columns, values, strict=True)))
        rows = change(name, rows) if change else rows
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return str(folder)


def test_the_owners_tables_give_the_published_counts(published: Prepared) -> None:
    assert published.counts() == {"train": 3 * 2593, "val_reports": 271, "val": 1005, "test_reports": 704, "test": 2652}
    assert 2593 + 271 == 1318 + 1546, "the owners' training cases"
    asked = Counter((s.meta["attribute"], s.meta["answer"]) for s in published.splits["test"])
    # The published code notes how often each value is asked in the test split.
    assert [asked["mass shape", value] for value in ASKED["mass shape"]] == [23, 5, 6, 113, 79, 9, 91, 41]
    assert [asked["mass margin", value] for value in ASKED["mass margins"]] == [87, 92, 21, 50, 82]
    assert [asked["calc type", value] for value in ASKED["calc type"]] == [43, 4, 6, 25, 17, 149, 26, 10, 8]
    assert [asked["calc distribution", value] for value in ASKED["calc distribution"]] == [195, 3, 22, 3, 34]
    assert sum(asked.values()) == 2 * 704 + 367 + 332 + 288 + 257


def test_rows_of_masses_at_the_end_of_the_calcifications_are_passed_over(annotations: str, published: Prepared) -> None:
    cases, others = read_cases(Path(annotations) / TABLES[2], "calcification")
    assert (len(cases), others) == (1546, 1318)
    assert published.summary["rows_of_the_other_kind"] == 1318 + 378


def test_reports_of_the_owners_tables(published: Prepared) -> None:
    reports = {s.id: s.messages[0].content for s in published.splits["train"]}
    assert reports["train/Mass-Training_P_00001_LEFT_CC_1"] == (
        "irregular-architectural distortion mass shape, spiculated mass margins, mass, malignant"
    )
    assert reports["train/Calc-Training_P_00005_RIGHT_CC_1"] == (
        "amorphous calc type, clustered calc distribution, calcification, malignant"
    )
    tested = {s.id: s.messages[0].content for s in published.splits["test_reports"]}
    assert tested["test/Calc-Test_P_00038_RIGHT_CC_1"] == "vascular calc type, calcification, benign", (
        "a missing distribution is left out, and benign without callback is benign"
    )


def test_training_reports_are_there_three_times(published: Prepared) -> None:
    train = published.splits["train"]
    assert len({s.id for s in train}) == len(train) and len({s.images for s in train}) == 2593
    assert [s.id.removeprefix(train[0].id) for s in (train[0], train[2593], train[2 * 2593])] == ["", "#2", "#3"]
    assert train[0].messages == train[2593].messages


def test_questions_of_the_owners_tables(published: Prepared) -> None:
    questions = {s.id: s for s in published.splits["test"]}
    margin = questions["test/Mass-Test_P_00016_LEFT_CC_1/mass_margins"]
    assert margin.messages[0].content == "What is the mass margin?" and margin.meta["answer"] == "spiculated"
    assert sorted(margin.meta["options"]) == sorted(ASKED["mass margins"])
    assert margin.images == (
        "Mass-Test_P_00016_LEFT_CC_1/1.3.6.1.4.1.9590.100.1.2.259596319110047779433501728143778409887/"
        "1.3.6.1.4.1.9590.100.1.2.30820586311062570442302321942433426184/000000.dcm",
    )
    for sample in questions.values():
        name, options = sample.meta["attribute"], sample.meta["options"]
        assert len(options) == (2 if name in ("pathology", "abnormality type") else 5)
        assert sample.meta["answer"] in options
    fixed = {tuple(s.meta["options"]) for s in questions.values() if s.meta["attribute"] == "pathology"}
    assert fixed == {("benign", "malignant")}
    places = Counter(
        s.meta["options"].index(s.meta["answer"]) for s in questions.values() if len(s.meta["options"]) == 5
    )
    assert all(200 < places[place] < 300 for place in range(5)), "the right letter must not be a hint"


def test_a_patient_is_in_training_or_in_validation_and_31_are_in_test_too(annotations: str) -> None:
    def patients(prepared: Prepared, split: str) -> set[str]:
        return {"_".join(s.id.split("/")[1].split("_")[1:3]) for s in prepared.splits[split]}

    kept, dropped = (prepare_cbis_ddsm(annotations, shared_patients=choice) for choice in ("keep", "drop"))
    assert len(patients(kept, "val_reports")) == 124 == int(0.1 * 1248)
    assert not patients(kept, "train") & patients(kept, "val_reports")
    shared = (patients(kept, "train") | patients(kept, "val_reports")) & patients(kept, "test_reports")
    assert len(shared) == 31 == kept.summary["patients_in_training_and_test"]
    assert dropped.counts() == {"train": 7578, "val_reports": 255, "val": 962, "test_reports": 704, "test": 2652}
    left = patients(dropped, "train") | patients(dropped, "val_reports")
    assert not left & patients(dropped, "test_reports")
    assert left == (patients(kept, "train") | patients(kept, "val_reports")) - shared
    assert dropped.splits["test"] == kept.splits["test"]


def test_the_majority_is_that_of_training(published: Prepared) -> None:
    assert published.tables["training_majority"] == {
        "mass shape": "irregular",
        "mass margin": "circumscribed",
        "calc type": "pleomorphic",
        "calc distribution": "clustered",
        "abnormality type": "calcification",
        "pathology": "benign",
    }


def test_images_come_from_the_list_of_the_jpeg_copy(annotations: str, published: Prepared, tmp_path: Path) -> None:
    keys = [s.id.split("/")[1] for name in ("train", "val_reports", "test_reports") for s in published.splits[name]]
    keys = sorted({key.split("#")[0] for key in keys})
    assert len(keys) == 3568
    listed = prepare_cbis_ddsm(annotations, str(write_dicom_info(tmp_path / "dicom_info.csv", keys)))
    assert listed.counts() == published.counts() and listed.summary["cases_without_crop"] == 0
    assert listed.splits["train"][0].images[0].startswith("jpeg/1.3.6.1.4.1.9590.100.1.2.")
    assert listed.splits["train"][0].images[0].split("/")[-1].startswith("1-"), "the crop, not the mask"
    without = [key for key in keys if key not in ("Mass-Test_P_00016_LEFT_CC_1", "Calc-Test_P_00038_LEFT_CC_1")]
    fewer = prepare_cbis_ddsm(annotations, str(write_dicom_info(tmp_path / "fewer.csv", without)))
    assert fewer.summary["cases_without_crop"] == 2 and len(fewer.splits["test_reports"]) == 702
    with pytest.raises(DataError, match="line 5: its crop has an image in a row before"):
        prepare_cbis_ddsm(
            annotations, str(write_dicom_info(tmp_path / "twice.csv", ["Mass-Test_P_00016_LEFT_CC_1"] * 2))
        )
    with pytest.raises(DataError, match="no training or no test case is left"):
        prepare_cbis_ddsm(annotations, str(write_dicom_info(tmp_path / "other.csv", ["Mass-Test_P_00016_LEFT_CC_1"])))


def test_limits_and_seeds(tmp_path: Path) -> None:
    folder = small_tables(tmp_path / "a")
    prepared = prepare_cbis_ddsm(folder, limit_train=5, repeat_train=2, limit_questions_per_attribute=3)
    assert len(prepared.splits["train"]) == 10 and set(prepared.summary["questions"]["test"].values()) == {3}
    again = prepare_cbis_ddsm(folder, limit_train=5, repeat_train=2, limit_questions_per_attribute=3)
    other = prepare_cbis_ddsm(folder, limit_train=5, repeat_train=2, limit_questions_per_attribute=3, seed=1)
    assert again.splits == prepared.splits
    assert other.splits["val_reports"] != prepared.splits["val_reports"]
    assert other.splits["test"] != prepared.splits["test"]
    whole = prepare_cbis_ddsm(folder, repeat_train=1)
    assert whole.counts()["train"] == 2 * (24 - 2) and not [s for s in whole.splits["train"] if "#" in s.id]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"shared_patients": "some"}, "'some' is unknown; use 'keep'"),
        ({"repeat_train": 0}, "repeat_train is 0; it must be at least 1"),
        ({"limit_train": 0}, "limit_train and limit_questions_per_attribute must be at least 1"),
    ],
)
def test_options_that_are_none(tmp_path: Path, arguments: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare_cbis_ddsm(small_tables(tmp_path / "a"), **arguments)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cropped image file path": "000000.dcm"}, "line 4: the image path names no crop of the row's patient_id"),
        ({"patient_id": "P_00009"}, "line 4: the image path names no crop of the row's patient_id"),
        (
            {"patient_id": "P_00000", "cropped image file path": "Mass-Training_P_00000_LEFT_CC_1/a"},
            "was annotated before",
        ),
    ],
)
def test_a_row_that_cannot_be(tmp_path: Path, change: dict, said: str) -> None:
    def altered(name: str, rows: list) -> list:
        return [*rows[:2], rows[2] | change, *rows[3:]] if name == TABLES[0] else rows

    with pytest.raises(DataError, match=said.replace("line 4", r"line \d+")):
        prepare_cbis_ddsm(small_tables(tmp_path / "a", altered))
