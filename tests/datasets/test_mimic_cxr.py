"""MIMIC-CXR, its annotations and questions in their owners' layouts, with made-up contents."""

import gzip
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from medtune.data.reports import shuffle_sections
from medtune.datasets.mimic_cxr import answer_options, prepare_mimic_cxr
from medtune.datasets.prepared import Prepared, Stream
from medtune.errors import ConfigError, DataError
from tests.datasets.owners import ABNORMALITIES, Mimic


@pytest.fixture
def mimic() -> Mimic:
    return Mimic(60)


@pytest.fixture
def prepared(mimic: Mimic, tmp_path: Path) -> Prepared:
    return prepare_mimic_cxr(**mimic.write(tmp_path / "mimic"))


def good(mimic: Mimic) -> dict[str, dict]:
    """The frontal images that pass, by dicom_id, as the tables say it."""
    dice = {row["dicom_id"]: row["Dice RCA (Mean)"] for row in mimic.chexmask}
    return {row["dicom_id"]: row for row in mimic.split if dice.get(row["dicom_id"], 0.0) >= 0.7}


def test_reports_are_those_of_frontal_images_that_pass(mimic: Mimic, prepared: Prepared) -> None:
    kept = good(mimic)
    assert len(kept) == 60 - 9 and 0.7 in {row["Dice RCA (Mean)"] for row in mimic.chexmask}
    named = {"train": "train", "validate": "val_reports", "test": "test_reports"}
    for split, name in named.items():
        samples = {s.id.split("/")[1]: s for s in prepared.splits[name]}
        left_out = prepared.summary["left_out"][name]["neither findings nor impression"]
        assert set(samples) <= {dicom for dicom, row in kept.items() if row["split"] == split}
        assert len(samples) + left_out == sum(row["split"] == split for row in kept.values())
        for dicom, sample in samples.items():
            subject, study = kept[dicom]["subject_id"], kept[dicom]["study_id"]
            assert sample.images == (f"p10/p{subject}/s{study}/{dicom}.jpg",)
    assert prepared.summary["frontal_images"] == 60 and sum(prepared.summary["images"].values()) == 51


def test_a_report_is_findings_and_impression_as_the_llm_wrote_them(mimic: Mimic, prepared: Prepared) -> None:
    entries = {e["image"].split("/")[-1][:-4]: e for e in mimic.reports["train"] if e["generate_method"] == "gpt4"}
    lengths = Counter()
    for sample in prepared.splits["train"]:
        entry = entries[sample.id.split("/")[1]]
        sections = [text for text in (entry["conversations"][1]["value"], entry["impression"]) if text]
        assert sample.meta == {"sections": sections}
        assert [m.role for m in sample.messages] == ["assistant"] and sample.messages[0].content == " ".join(sections)
        shuffled = {shuffle_sections(sample.meta["sections"], random.Random(seed)) for seed in range(20)}
        assert shuffled == {" ".join(sections), " ".join(sections[::-1])}
        lengths[len(sections)] += 1
    assert lengths[1] and lengths[2]


def test_questions_are_one_for_each_right_answer_and_none_for_the_view(mimic: Mimic, prepared: Prepared) -> None:
    kept = {row["study_id"]: row["split"] for row in good(mimic).values()}
    for name, split in (("val", "validate"), ("test", "test")):
        samples = list(prepared.splits[name])
        asked = [q for q in mimic.questions if kept.get(q["study_id"]) == split and q["question_type"] != "view"]
        assert len(samples) == sum(len(q["answer"].split(", ")) for q in asked) == len({s.id for s in samples})
        assert {s.meta["attribute"] for s in samples} == {"abnormality", "presence", "location", "level", "type"}
    several = [q for q in asked if "," in q["answer"]][0]
    ours = [s for s in samples if f"/s{several['study_id']}/" in s.id and s.messages[0].content == several["question"]]
    assert [s.meta["answer"] for s in ours] == several["answer"].split(", ")
    for sample in ours:
        assert len(sample.meta["options"]) == 5
        assert set(sample.meta["options"]) & set(several["answer"].split(", ")) == {sample.meta["answer"]}


def test_options_are_of_the_same_type_and_yes_or_no_are_two(prepared: Prepared) -> None:
    sizes = Counter()
    for sample in prepared.splits["test"]:
        options, type = sample.meta["options"], sample.meta["attribute"]
        assert sample.meta["answer"] in options and len(set(options)) == len(options)
        if sample.meta["answer"] in ("yes", "no"):
            assert options == ["yes", "no"]
        elif type == "abnormality":
            assert set(options) <= set(ABNORMALITIES) and len(options) == 5
        sizes[type, len(options)] += 1
    assert set(sizes) >= {("presence", 2), ("abnormality", 2), ("abnormality", 5), ("location", 5), ("level", 3)}
    assert prepared.summary["values_of_each_type"] == {
        "abnormality": 7, "level": 3, "location": 5, "presence": 0, "type": 2,
    }  # fmt: skip


def test_wrong_options_are_equally_likely() -> None:
    drawn = Counter()
    for seed in range(4000):
        options = answer_options("edema", ["edema", "fracture"], ABNORMALITIES, random.Random(seed))
        assert len(options) == 5 and "fracture" not in options
        drawn.update(options)
    assert drawn.pop("edema") == 4000 and all(abs(count - 3200) < 120 for count in drawn.values())


def test_a_question_is_about_the_posteroanterior_image_of_its_study(mimic: Mimic, tmp_path: Path) -> None:
    """A second frontal image joins each study; the one of the better view is asked about, whatever its name."""
    frontal = [dict(row) for row in mimic.metadata if row["ViewPosition"] != "LATERAL"]
    splits = {row["dicom_id"]: row["split"] for row in mimic.split}
    for row in frontal:
        twin = ("f" if row["ViewPosition"] == "AP" else "0") + row["dicom_id"][1:]
        view = "PA" if row["ViewPosition"] == "AP" else "AP"
        mimic.metadata.append({**row, "dicom_id": twin, "ViewPosition": view})
        mimic.split.append({**row, "dicom_id": twin, "split": splits[row["dicom_id"]]})
        mimic.chexmask.append({"dicom_id": twin, "Dice RCA (Mean)": 0.9})
    mimic.split = [{k: row[k] for k in ("dicom_id", "study_id", "subject_id", "split")} for row in mimic.split]
    prepared = prepare_mimic_cxr(**mimic.write(tmp_path / "a"))
    views = {row["dicom_id"]: row["ViewPosition"] for row in mimic.metadata}
    failed = {row["dicom_id"] for row in mimic.chexmask if row["Dice RCA (Mean)"] < 0.7}
    assert len(list(prepared.splits["test"])) > 20
    for sample in prepared.splits["test"]:
        dicom = sample.images[0].split("/")[-1][:-4]
        assert dicom not in failed
        assert views[dicom] == "PA" or any(f in failed for f in views if f[1:] == dicom[1:])


def test_the_majority_is_that_of_training(mimic: Mimic, prepared: Prepared) -> None:
    training = {row["study_id"] for row in good(mimic).values() if row["split"] == "train"}
    asked = [q for q in mimic.questions if q["study_id"] in training]
    for type, majority in prepared.tables["training_majority"].items():
        values = [value for q in asked if q["question_type"] == type for value in q["answer"].split(", ")]
        assert values.count(majority) == max(map(values.count, values))
    assert set(prepared.tables["training_majority"]) == {"abnormality", "presence", "location", "level", "type"}


def test_streams_give_the_same_each_time_and_limits_are_drawn(mimic: Mimic, tmp_path: Path) -> None:
    files = mimic.write(tmp_path / "a")
    prepared = prepare_mimic_cxr(**files)
    assert all(isinstance(samples, Stream) for samples in prepared.splits.values())
    assert prepared.counts() == prepared.counts()
    assert list(prepared.splits["test"]) == list(prepared.splits["test"])
    few = prepare_mimic_cxr(**files, limit_train=6, limit_questions_per_attribute=3)
    assert set(Counter(s.meta["attribute"] for s in few.splits["test"]).values()) == {3}
    assert len(list(few.splits["train"])) == 6
    whole = list(prepared.splits["test"])
    assert [s for s in whole if s in list(few.splits["test"])] == list(few.splits["test"]), "in their old order"
    other = prepare_mimic_cxr(**files, limit_train=6, limit_questions_per_attribute=3, seed=1)
    assert list(other.splits["train"]) != list(few.splits["train"])


def test_other_thresholds_compressed_tables_and_dicom_files(mimic: Mimic, prepared: Prepared, tmp_path: Path) -> None:
    folder = tmp_path / "mimic"
    files = mimic.write(folder)
    strict = prepare_mimic_cxr(**files, least_dice=0.8, image_suffix=".dcm")
    assert strict.summary["images"] != prepared.summary["images"]
    assert all(s.images[0].endswith(".dcm") for s in strict.splits["train"])
    for path in folder.glob("*.csv"):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = prepare_mimic_cxr(**files)
    assert {n: list(s) for n, s in packed.splits.items()} == {
        n: list(s) for n, s in prepare_again(mimic, tmp_path).items()
    }
    cut = folder / "mimic-cxr-2.0.0-split.csv.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"split.csv.gz: the compressed file is damaged or cut off"):
        prepare_mimic_cxr(**files)


def prepare_again(mimic: Mimic, tmp_path: Path) -> dict:
    return dict(prepare_mimic_cxr(**mimic.write(tmp_path / "again")).splits)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("split", {"split": "dev"}, "line 3: the split is unknown; it must be one of train, validate, test"),
        ("split", {"study_id": "s5"}, "line 3: the cell of column 'study_id' is no whole number"),
        ("chexmask", {"Dice RCA (Mean)": "good"}, "line 3: the cell of column 'Dice RCA .Mean.' is no number"),
        ("questions", {"answer": ""}, "line 3: the cell of column 'answer' is empty"),
    ],
)
def test_a_row_that_cannot_be(mimic: Mimic, tmp_path: Path, part: str, change: dict, said: str) -> None:
    getattr(mimic, part)[1].update(change)
    with pytest.raises(DataError, match=said):
        prepare_mimic_cxr(**mimic.write(tmp_path / "a"))


def test_reports_that_cannot_be(mimic: Mimic, tmp_path: Path) -> None:
    training = mimic.reports["train"]
    usable = [e for e in training if e["generate_method"] == "gpt4" and e["view"] != "LATERAL" and e["impression"]]
    frontal = next(e for e in usable if e["image"].split("/")[-1][:-4] in good(mimic))
    training.append(dict(frontal))
    prepared = prepare_mimic_cxr(**mimic.write(tmp_path / "a"))
    with pytest.raises(DataError, match=rf"item {len(training)}: the image [0-9a-f-]+ has a second report"):
        list(prepared.splits["train"])
    training.pop()
    mimic.reports["dev"].append(dict(frontal))
    prepared = prepare_mimic_cxr(**mimic.write(tmp_path / "b"))
    with pytest.raises(DataError, match="the image is in the split 'train', the file in 'val'"):
        list(prepared.splits["val_reports"])
    mimic.reports["dev"][-1] = {"image": "a.jpg"}
    prepared = prepare_mimic_cxr(**mimic.write(tmp_path / "c"))
    with pytest.raises(DataError, match="needs the texts 'image' and 'generate_method'"):
        list(prepared.splits["val_reports"])


def test_files_that_do_not_belong_together(mimic: Mimic, tmp_path: Path) -> None:
    files = mimic.write(tmp_path / "a")
    with pytest.raises(DataError, match="absent.csv does not exist; correct its path"):
        prepare_mimic_cxr(**files | {"chexmask": str(tmp_path / "absent.csv")})
    with pytest.raises(ConfigError, match="least_dice is 70; it must be between 0 and 1"):
        prepare_mimic_cxr(**files, least_dice=70)
    del mimic.split[1]
    with pytest.raises(DataError, match="split.csv: 50 rows for the 51 frontal images"):
        prepare_mimic_cxr(**mimic.write(tmp_path / "b"))
    mimic = Mimic(60, seed=1)
    mimic.questions = [q | {"study_id": 1} for q in mimic.questions]
    with pytest.raises(DataError, match="no question is about a frontal image"):
        prepare_mimic_cxr(**mimic.write(tmp_path / "c"))


def test_memory_does_not_grow_with_the_reports(tmp_path: Path) -> None:
    """Five times as many studies: their reports take megabytes more, the door a few hundred bytes each at its peak."""
    peaks, sizes = [], []
    for studies in (60, 300, 1500):  # the first only loads what is loaded once
        mimic = Mimic(studies)
        for entry in mimic.reports["train"]:
            entry["conversations"][1]["value"] = "x" * 4000
        files = mimic.write(tmp_path / str(studies))
        sizes.append(sum(path.stat().st_size for path in Path(files["reports"]).glob("*.json")))
        del mimic
        tracemalloc.start()
        prepared = prepare_mimic_cxr(**files)
        assert sum(prepared.counts().values()) > 2 * studies
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert sizes[2] - sizes[1] > 14_000_000
    assert peaks[2] - peaks[1] < 2_500_000 and peaks[2] < 8_000_000, f"{peaks} bytes"
