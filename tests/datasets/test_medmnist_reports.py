"""MedMNIST's labels as reports and questions."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medtune.config import PACKAGE, load_config
from medtune.data.images import ImageRoot
from medtune.data.reports import shuffle_response
from medtune.datasets.medmnist import FACTS, prepare_medmnist, prepare_medmnist_reports
from medtune.datasets.medmnist.reports import FINDINGS, WITHOUT_COMMAS
from medtune.datasets.prepared import Prepared
from medtune.errors import ConfigError, DataError
from medtune.evaluation.parsing import parse_value
from medtune.evaluation.wording import is_report
from medtune.models.mini import MiniTokenizer
from medtune.recipes.prepare import PrepareConfig, main
from medtune.sweep.config import SweepConfig
from medtune.training.config import TrainConfig
from tests.datasets.medmnist_files import medmnist_arrays, write_medmnist

SINGLE = [name for name, facts in FACTS.items() if facts.words.task != "multi_label"]


@pytest.fixture
def two(tmp_path: Path) -> str:
    """The two sets of the miniature, and one that it leaves out."""
    for name in ("breast", "pneumonia", "chest"):
        write_medmnist(tmp_path / "medmnist", name)
    return str(tmp_path / "medmnist")


def every(prepared: Prepared) -> dict[str, list[dict]]:
    return {split: [sample.to_dict() for sample in samples] for split, samples in prepared.splits.items()}


def test_reports_and_questions_of_two_sets_word_for_word(two: str) -> None:
    prepared = prepare_medmnist_reports(two, sets=["breast", "pneumonia"])
    rows = every(prepared)
    assert list(rows) == ["train", "val_reports", "val", "test_reports", "test"]
    assert prepared.counts() == {"train": 18, "val_reports": 8, "val": 16, "test_reports": 12, "test": 24}
    texts = {row["id"]: row["messages"] for row in rows["train"]}
    assert texts["pneumonia/train/0"] == [
        {"role": "assistant", "content": "pediatric chest X-ray modality, normal chest finding"}
    ]
    assert texts["pneumonia/train/1"][0]["content"] == "pediatric chest X-ray modality, pneumonia chest finding"
    assert texts["breast/train/0"][0]["content"] == "breast ultrasound modality, malignant breast finding"
    assert texts["breast/train/1"][0]["content"] == "breast ultrasound modality, normal or benign breast finding"
    assert rows["val_reports"][4]["id"] == "breast/val/0" and rows["val_reports"][4]["images"] == ["breast/val/0.png"]
    assert rows["val"][10:12] == [
        {
            "id": "breast/val/1/modality",
            "images": ["breast/val/1.png"],
            "messages": [
                {"role": "user", "content": "What is the modality?"},
                {"role": "assistant", "content": "breast ultrasound"},
            ],
            "meta": {
                "attribute": "modality",
                "options": ["breast ultrasound", "pediatric chest X-ray"],
                "answer": "breast ultrasound",
            },
        },
        {
            "id": "breast/val/1/breast_finding",
            "images": ["breast/val/1.png"],
            "messages": [
                {"role": "user", "content": "What is the breast finding?"},
                {"role": "assistant", "content": "normal or benign"},
            ],
            "meta": {
                "attribute": "breast finding",
                "options": ["malignant", "normal or benign"],
                "answer": "normal or benign",
            },
        },
    ]
    assert {row["meta"]["attribute"] for row in rows["test"]} == {"modality", "chest finding", "breast finding"}


def test_one_set_has_no_modality_to_choose(two: str) -> None:
    prepared = prepare_medmnist_reports(two, sets=["pneumonia"])
    assert prepared.counts() == {"train": 9, "val_reports": 4, "val": 4, "test_reports": 6, "test": 6}
    assert {sample.meta["attribute"] for sample in prepared.splits["test"]} == {"chest finding"}


@pytest.mark.parametrize("name", SINGLE)
def test_every_single_label_set_has_reports_that_say_its_labels(tmp_path: Path, name: str) -> None:
    size = len(FACTS[name].words.classes)
    labels = np.arange(size, dtype=np.uint8)[:, None]
    shape = (size, 28, 28, 3) if FACTS[name].colour else (size, 28, 28)
    changes = {"test_labels": labels, "test_images": np.zeros(shape, np.uint8)}
    other = "breast" if name != "breast" else "oct"
    write_medmnist(tmp_path, name, **changes)
    write_medmnist(tmp_path, other)
    rows = every(prepare_medmnist_reports(str(tmp_path)))
    reports = [row["messages"][0]["content"] for row in rows["test_reports"] if row["id"].startswith(f"{name}/")]
    questions = [row for row in rows["test"] if row["id"].startswith(f"{name}/")]
    assert len(reports) == len(set(reports)) == size and len(questions) == 2 * size
    names = [row["meta"]["attribute"] for row in questions]
    assert names == ["modality", FINDINGS[name]] * size
    terms = {word for row in questions for word in (row["meta"]["attribute"], *row["meta"]["options"])}
    found = set()
    for report, pair in zip(reports, zip(questions[::2], questions[1::2], strict=True), strict=True):
        assert report.count(",") == 1, "two phrases, so that response shuffling can be done at the comma"
        shuffled = {shuffle_response(report, ",", random.Random(seed)) for seed in range(9)}
        assert len(shuffled) == 2 and report in shuffled
        assert is_report(report, sorted(terms)), "a recited report is recognised"
        for row in pair:  # the evaluation reads the right answer from a report, in any order
            meta = row["meta"]
            for text in shuffled:
                read = parse_value(text, meta["attribute"], meta["options"], ["modality", *FINDINGS.values()])
                assert read is not None and meta["options"][read] == meta["answer"]
        found.add(pair[1]["meta"]["answer"])
    classes = [WITHOUT_COMMAS.get(one, one) for one in FACTS[name].words.classes]
    assert sorted(questions[1]["meta"]["options"]) == sorted(classes) == sorted(found)
    assert [row["meta"]["answer"] for row in questions[1::2]] == classes


def test_attributes_and_modalities_keep_the_sets_apart() -> None:
    assert list(FINDINGS) == SINGLE and len(set(FINDINGS.values())) == len(SINGLE) == 11
    assert len({FACTS[name].words.modality for name in SINGLE}) == 11
    official = {one for name in SINGLE for one in FACTS[name].words.classes}
    assert {one for one in official if "," in one} == WITHOUT_COMMAS.keys()


def test_the_mini_tokenizer_writes_every_word_back() -> None:
    tokenizer = MiniTokenizer(PACKAGE / "assets/mini_tokenizer")
    for name in SINGLE:
        words = FACTS[name].words
        for one in words.classes:
            text = f"{words.modality} modality, {WITHOUT_COMMAS.get(one, one)} {FINDINGS[name]}"
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_report_of_the_sweep_is_cut_off(two: str) -> None:
    tokenizer = MiniTokenizer(PACKAGE / "assets/mini_tokenizer")
    reports = {s.messages[0].content for s in prepare_medmnist_reports(two, ["breast", "pneumonia"]).splits["train"]}
    longest = max(len(tokenizer.encode(text)) for text in reports)
    (limit,) = (
        int(one.partition("=")[2])
        for one in load_config("sweep/mini_medmnist_tables", SweepConfig).predict_overrides
        if one.startswith("max_new_tokens=")
    )
    assert len(reports) == 4 and 24 < longest < limit


def test_the_same_options_give_the_same_and_another_seed_other_rows(two: str) -> None:
    def drawn(**options: object) -> dict[str, list[dict]]:
        return every(prepare_medmnist_reports(two, sets=["breast", "pneumonia"], **options))

    few = drawn(limit_train=5, limit_questions=3)
    assert {split: len(rows) for split, rows in few.items()} == {
        "train": 10, "val_reports": 6, "val": 12, "test_reports": 6, "test": 12,
    }  # fmt: skip
    assert few == drawn(limit_train=5, limit_questions=3) != drawn(limit_train=5, limit_questions=3, seed=1)
    assert {row["images"][0] for row in few["test"]} == {row["images"][0] for row in few["test_reports"]}
    plain = prepare_medmnist(two, sets=["breast", "pneumonia"], limit_train=5, limit_questions=3)
    ids = {split: [sample.id for sample in samples] for split, samples in plain.splits.items()}
    assert ids == {
        split: [row["id"] for row in few[f"{split}_reports" if split != "train" else split]] for split in ids
    }


def test_balance_weights_and_the_majority_of_the_whole_split(tmp_path: Path) -> None:
    labels = np.array([[0]] * 7 + [[1]] * 2, dtype=np.uint8)
    file = str(write_medmnist(tmp_path, "breast", train_labels=labels))

    def train(**options: object) -> list[dict]:
        return every(prepare_medmnist_reports(file, **options))["train"]

    def counts(rows: list[dict]) -> dict[str, int]:
        return Counter("malignant" in row["messages"][0]["content"] for row in rows)

    assert counts(train(balance_train="oversample")) == {True: 7, False: 7}
    assert "breast/train/7#2" in {row["id"] for row in train(balance_train="oversample")}
    assert counts(train(balance_train="undersample")) == {True: 2, False: 2}
    weighed = train(class_weights={"normal, benign": 3.0})
    assert [row.get("weight", 1.0) for row in weighed] == [1.0] * 7 + [3.0] * 2
    prepared = prepare_medmnist_reports(file, balance_train="undersample", limit_train=1)
    assert prepared.tables["training_majority"] == {"modality": "breast ultrasound", "breast finding": "malignant"}
    assert prepared.summary["training_values"]["breast finding"] == {"malignant": 7, "normal or benign": 2}


def test_the_majority_of_each_set_is_its_own(tmp_path: Path) -> None:
    write_medmnist(tmp_path, "breast", train_labels=np.array([[1]] * 9, np.uint8))
    arrays = {"train_labels": np.zeros((4, 1), np.uint8), "train_images": np.zeros((4, 28, 28), np.uint8)}
    write_medmnist(tmp_path, "pneumonia", **arrays)
    assert prepare_medmnist_reports(str(tmp_path)).tables["training_majority"] == {
        "modality": "breast ultrasound", "chest finding": "normal", "breast finding": "normal or benign",
    }  # fmt: skip


def test_grades_are_numbers_if_asked_for(tmp_path: Path) -> None:
    rows = every(prepare_medmnist_reports(str(write_medmnist(tmp_path, "retina")), grades="numbers"))
    assert rows["test"][2]["meta"] == {"attribute": "fundus finding", "options": list("01234"), "answer": "2"}
    assert rows["test_reports"][2]["messages"][0]["content"] == "retinal fundus modality, 2 fundus finding"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "sets: an image of ChestMNIST may have several labels.*list other sets in data.sets"),
        ({"sets": ["chest", "breast"]}, "an image of ChestMNIST may have several labels"),
        ({"sets": ["breest"]}, "no set 'breest' in MedMNIST 2D; did you mean 'breast'"),
        ({"sets": ["derma"]}, "no file of 'derma'"),
        ({"sets": ["breast"], "grades": "roman"}, "'roman' is unknown"),
        ({"sets": ["breast"], "balance_train": "both"}, "'both' is unknown"),
        ({"sets": ["breast"], "limit_questions": 0}, "must be at least 1"),
        ({"sets": ["breast"], "class_weights": {"normal or benign": 2.0}}, "no.* class 'normal or benign'"),
    ],
)
def test_options_that_are_none(two: str, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prepare_medmnist_reports(two, **options)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = write_medmnist(tmp_path, "breast", test_labels=np.array([[0], [2], [0], [0], [0], [0]], np.uint8))
    with pytest.raises(DataError, match="test_labels, row 1: the label 2 is out of"):
        prepare_medmnist_reports(str(file))


def test_the_recipe_writes_rows_and_images(two: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["--config", "prepare/medmnist_reports", f"data.files={two}", f"output_dir={out}"]) == 0
    assert "pneumoniamnist.npz: train has 9 images, the official PneumoniaMNIST 4,708" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["options"]["sets"] == ["pneumonia", "breast"] and "template" not in manifest["options"]
    root, pixels = ImageRoot(out / "images.tar"), medmnist_arrays("breast")["test_images"]
    for row in map(json.loads, (out / "test.jsonl").read_text().splitlines()):
        image = np.asarray(root.load(row["images"][0], "here"))
        name, _, at = row["images"][0].removesuffix(".png").split("/")
        assert name != "breast" or np.array_equal(image[..., 0], pixels[int(at)])


def test_the_miniature_reads_what_the_recipe_writes_and_mixes_lengths() -> None:
    config, of_wbcatt = (load_config(f"instfree/mini_{name}", TrainConfig) for name in ("medmnist", "wbcatt"))
    made = load_config("prepare/medmnist_reports", PrepareConfig)
    assert config.dataset["source"] == f"{made.output_dir}/train.jsonl"
    assert config.dataset["image_root"] == f"{made.output_dir}/images.tar" and not config.bucket
    differing = {key for key, value in vars(config).items() if value != getattr(of_wbcatt, key)}
    assert differing == {"dataset", "bucket", "output_dir"}, "the settings are WBCAtt's"
