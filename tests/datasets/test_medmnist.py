import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from medtune.data.class_weights import balanced_class_weights
from medtune.data.images import ImageRoot
from medtune.data.labels import classification_target
from medtune.datasets import jsonl_dataset
from medtune.datasets.medmnist import FACTS, RETINOPATHY, find_files, prepare_medmnist
from medtune.errors import ConfigError, DataError
from medtune.recipes.prepare import main
from tests.datasets.medmnist_files import medmnist_arrays, write_medmnist


def test_the_facts_add_up_to_those_of_the_paper():
    sizes = np.array([facts.sizes for facts in FACTS.values()])
    assert len(FACTS) == 12 and sizes.sum(0).tolist() == [518175, 70467, 119320]
    names = {facts.words.classes for facts in FACTS.values()}  # the three organ sets share theirs
    assert sum(map(len, names)) == 70
    assert {facts.words.task for facts in FACTS.values()} == {"multi_class", "multi_label", "ordinal"}


@pytest.mark.parametrize("name", FACTS)
def test_every_set_in_its_owners_layout(tmp_path, name):
    file = write_medmnist(tmp_path, name)
    arrays, facts = medmnist_arrays(name), FACTS[name]
    prepared = prepare_medmnist(str(file))
    assert prepared.counts() == {"train": 9, "val": 4, "test": 6}
    for split in ("train", "val", "test"):
        for row, sample in enumerate(prepared.splits[split]):
            target = classification_target(sample)
            labels = arrays[f"{split}_labels"][row]
            several = facts.words.task == "multi_label"
            assert list(target.indices) == (np.flatnonzero(labels).tolist() if several else labels.tolist())
            assert (target.set, target.task, target.classes) == (name, facts.words.task, facts.words.classes)
            assert sample.id == f"{name}/{split}/{row}" and sample.images == (f"{name}/{split}/{row}.png",)
            user, assistant = sample.messages
            assert user.content.startswith(f"Analyze the given {facts.words.modality} image ")
            assert all(one in user.content for one in facts.words.classes)
            assert assistant.content == target.text
    assert list(prepared.tables["training_majority"]) == [name]


def test_the_images_come_back_to_the_bit(tmp_path):
    for name in ("blood", "chest"):
        write_medmnist(tmp_path, name)
    prepared = prepare_medmnist(str(tmp_path))
    data = b"".join(prepared.files["images.tar"]())
    assert data == b"".join(prepared.files["images.tar"]()), "the same bytes each time"
    (tmp_path / "images.tar").write_bytes(data)
    with tarfile.open(tmp_path / "images.tar") as archive:  # the standard library's reader takes it too
        assert len(archive.getnames()) == 2 * 19 and not archive.getmember("blood/val/1.png").mtime
    root = ImageRoot(tmp_path / "images.tar")
    for name in ("blood", "chest"):
        pixels = medmnist_arrays(name)["test_images"]
        for row, expected in enumerate(pixels):
            image = np.asarray(root.load(f"{name}/test/{row}.png", "here"))
            assert np.array_equal(image, expected if expected.ndim == 3 else np.stack([expected] * 3, -1))


def test_instructions_with_and_without_the_classes(tmp_path):
    file = str(write_medmnist(tmp_path, "derma"))
    full = next(iter(prepare_medmnist(file).splits["test"])).messages[0].content
    bare = next(iter(prepare_medmnist(file, template="without_classes").splits["test"])).messages[0].content
    assert full == (
        "Analyze the given dermatoscope image for diagnosis. The possible diagnoses are: actinic keratoses and "
        "intraepithelial carcinoma; basal cell carcinoma; benign keratosis-like lesions; dermatofibroma; melanoma; "
        "melanocytic nevi; vascular lesions."
    )
    assert bare == "Analyze the given dermatoscope image for diagnosis."


def test_findings_are_joined_and_none_is_said(tmp_path):
    labels = np.zeros((6, 14), dtype=np.uint8)
    labels[0, [2, 4]] = 1
    file = str(write_medmnist(tmp_path, "chest", test_labels=labels))
    first, second, *_ = prepare_medmnist(file).splits["test"]
    assert first.messages[1].content == "effusion; mass" and first.meta["label"] == ["effusion", "mass"]
    assert second.messages[1].content == "no finding" and second.meta["label_index"] == []
    assert first.messages[0].content.endswith(' Name all that are present, or "no finding".')


def test_grades_in_words_or_numbers(tmp_path):
    file = str(write_medmnist(tmp_path, "retina"))
    assert [s.meta["label"] for s in prepare_medmnist(file).splits["test"]][:5] == list(RETINOPATHY)
    numbers = list(prepare_medmnist(file, grades="numbers").splits["test"])
    assert [s.messages[1].content for s in numbers] == ["0", "1", "2", "3", "4", "0"]
    assert numbers[0].messages[0].content.endswith("The possible diagnoses are: 0; 1; 2; 3; 4.")


def test_sets_are_mixed_chosen_and_ordered(tmp_path):
    for name in ("blood", "path", "breast"):
        write_medmnist(tmp_path, name, f"{name}mnist_64.npz")
    write_medmnist(tmp_path, "oct", "organmnist3d.npz")
    assert list(find_files(str(tmp_path))) == ["path", "breast", "blood"]
    both = prepare_medmnist(str(tmp_path), sets=["BloodMNIST", "breast"])
    assert [s.meta["set"] for s in both.splits["val"]] == ["breast"] * 4 + ["blood"] * 4
    assert both.options["sets"] == ["breast", "blood"] and len(both.notes) == 6
    assert both.notes[0] == (
        "breastmnist_64.npz: train has 9 images, the official BreastMNIST 546; scores do not compare with published "
        "ones"
    )


def test_limits_and_balance(tmp_path):
    labels = np.array([[0]] * 7 + [[1]] * 2, dtype=np.uint8)
    file = str(write_medmnist(tmp_path, "breast", train_labels=labels))

    def train(**options):
        return list(prepare_medmnist(file, **options).splits["train"])

    def counts(samples):
        return Counter(sample.meta["label_index"] for sample in samples)

    assert counts(train()) == {0: 7, 1: 2}
    few, many = train(balance_train="undersample"), train(balance_train="oversample")
    assert counts(few) == {0: 2, 1: 2} and counts(many) == {0: 7, 1: 7}
    assert len({s.id for s in many}) == 14 and "breast/train/7#3" in {s.id for s in many}
    assert {s.images for s in many} == {s.images for s in train()}, "copies share their image"
    assert few == train(balance_train="undersample") != train(balance_train="undersample", seed=3)
    assert len(train(limit_train=5)) == 5 and train(limit_train=5) != train(limit_train=5, seed=1)
    kept = prepare_medmnist(file, limit_questions=3)
    assert kept.counts() == {"train": 9, "val": 3, "test": 3}
    names = tarfile.open(fileobj=io.BytesIO(b"".join(kept.files["images.tar"]()))).getnames()
    assert len(names) == 15, "only images that a sample names are written"
    assert kept.tables["training_majority"] == {"breast": "malignant"}


def test_training_rows_are_weighed_set_by_set(tmp_path):
    for name in ("blood", "chest"):
        write_medmnist(tmp_path, name)
    balanced = prepare_medmnist(str(tmp_path), class_weights="balanced")
    for name in ("blood", "chest"):
        rows = [sample for sample in balanced.splits["train"] if sample.meta["set"] == name]
        labels = [classification_target(sample).indices for sample in rows]
        words = FACTS[name].words
        expected = balanced_class_weights(labels, len(words.classes), words.task == "multi_label")
        assert [sample.weight for sample in rows] == pytest.approx(expected.tolist()) and len(set(expected)) > 1
    assert {sample.weight for split in ("val", "test") for sample in balanced.splits[split]} == {1.0}
    given = prepare_medmnist(str(tmp_path), class_weights={"basophil": 3.0, "no finding": 0.5})
    seen = {(sample.meta["set"], sample.messages[1].content): sample.weight for sample in given.splits["train"]}
    assert {answer for (_, answer), weight in seen.items() if weight != 1.0} == {"basophil", "no finding"}
    assert seen["blood", "basophil"] == 3.0 and seen["chest", "no finding"] == 0.5
    with pytest.raises(ConfigError, match="none of the sets has a class 'basofil'; did you mean 'basophil'"):
        prepare_medmnist(str(tmp_path), class_weights={"basofil": 3.0})
    with pytest.raises(ConfigError, match="balance_train already makes the classes equally frequent"):
        prepare_medmnist(str(tmp_path), class_weights="balanced", balance_train="oversample")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sets": ["breest"]}, "no set 'breest' in MedMNIST 2D; did you mean 'breast'"),
        ({"sets": ["derma"]}, "no file of 'derma'"),
        ({"template": "short"}, "'short' is unknown; use 'full'"),
        ({"grades": "roman"}, "'roman' is unknown"),
        ({"balance_train": "both"}, "'both' is unknown"),
        ({"balance_train": "undersample", "sets": ["chest"]}, "chest has several labels an image"),
        ({"limit_train": 0}, "must be at least 1"),
    ],
)
def test_options_that_are_none(tmp_path, options, says):
    write_medmnist(tmp_path, "breast")
    write_medmnist(tmp_path, "chest")
    with pytest.raises(ConfigError, match=says):
        prepare_medmnist(str(tmp_path), **options)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"val_images": None}, r"breastmnist.npz has no array 'val_images'"),
        (
            {"test_labels": np.array([[0], [2], [0], [0], [0], [0]], np.uint8)},
            "test_labels, row 1: the label 2 is out of",
        ),
        ({"test_labels": np.array([[0], [-1], [0], [0], [0], [0]], np.int8)}, "test_labels, row 1: the label -1"),
        ({"test_labels": np.zeros((6, 2), np.uint8)}, r"test_labels has the shape \(6, 2\).*needs integers"),
        ({"test_labels": np.zeros((6, 1), np.float32)}, "type float32"),
        ({"test_labels": np.zeros((5, 1), np.uint8)}, "5 rows for 6 images"),
        ({"test_labels": np.array([[{}]] * 6, dtype=object)}, "test_labels cannot be read"),
        ({"test_images": np.zeros((6, 28, 28), np.float32)}, "test_images is of type float32; save it as uint8"),
        ({"test_images": np.zeros((6, 28, 28, 4), np.uint8)}, r"test_images has the shape \(6, 28, 28, 4\)"),
        ({"test_images": np.zeros((6, 784), np.uint8)}, r"test_images has the shape \(6, 784\)"),
        ({"test_images": np.zeros((6, 0, 28), np.uint8)}, r"\(6, 0, 28\), so there is no pixel in it"),
        ({"test_images": np.asfortranarray(np.zeros((6, 28, 28), np.uint8))}, "in Fortran order"),
        ({"test_images": np.array([{}] * 6, dtype=object)}, "test_images is of type object"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, changes, says):
    file = write_medmnist(tmp_path, "breast", **changes)
    with pytest.raises(DataError, match=says):
        prepare_medmnist(str(file))


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="none.npz: the name begins with no set"):
        prepare_medmnist([str(tmp_path / "none.npz")])
    with pytest.raises(DataError, match="does not exist"):
        prepare_medmnist([str(tmp_path / "breastmnist.npz")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no .npz file of a set"):
        prepare_medmnist(str(tmp_path / "empty"))
    (tmp_path / "octmnist.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"octmnist.npz is no .npz file"):
        prepare_medmnist(str(tmp_path / "octmnist.npz"))
    for file in ("breastmnist.npz", "breastmnist_64.npz"):
        write_medmnist(tmp_path / "two", "breast", file)
    with pytest.raises(DataError, match="both hold BreastMNIST"):
        prepare_medmnist(str(tmp_path / "two"))


def test_damaged_pixels_are_found_before_anything_is_written(tmp_path, capsys):
    file = write_medmnist(tmp_path, "breast")
    data = bytearray(file.read_bytes())
    at = data.index(b"test_images.npy") + 2000
    data[at : at + 50] = bytes(50)
    file.write_bytes(bytes(data))
    call = ["--config", "prepare/medmnist", f"data.files={file}", f"output_dir={tmp_path / 'out'}"]
    assert main(call) == 2
    assert "breastmnist.npz: test_images is damaged or cut off" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def real(medtune_data):
    folder = medtune_data / "medmnist"
    if not folder.is_dir():
        pytest.skip(f"MedMNIST's files are not in {folder}")
    return folder


def test_the_real_files_through_the_recipe(real, tmp_path, capsys):
    call = ["--config", "prepare/medmnist", f"data.files={real}", f"output_dir={tmp_path / 'out'}"]
    assert main([*call, "dry_run=true"]) == 0 and not (tmp_path / "out").exists()
    said = capsys.readouterr().out
    assert "pneumoniamnist.npz: train has 2,428 images, the official PneumoniaMNIST 4,708" in said
    assert said.count("note: ") == 4 and "breastmnist" not in said
    assert main(call) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"] == {"train": 3454, "val": 682, "test": 1020}
    assert manifest["sets"] == {
        "pneumonia": {"train": 2428, "val": 524, "test": 624},
        "breast": {"train": 546, "val": 78, "test": 156},
        "blood": {"train": 480, "val": 80, "test": 240},
    }
    assert set(manifest["outputs"]) == {
        "images.tar", "train.jsonl", "val.jsonl", "test.jsonl", "training_majority.json",
    }  # fmt: skip
    majority = json.loads((tmp_path / "out/training_majority.json").read_text())
    assert majority == {"pneumonia": "normal", "breast": "normal, benign", "blood": "basophil"}
    source = jsonl_dataset(str(tmp_path / "out/test.jsonl"), str(tmp_path / "out/images.tar"))
    labels = Counter(source[index].meta["label"] for index in range(len(source)))
    assert (labels["normal"], labels["pneumonia"], labels["malignant"], labels["normal, benign"]) == (234, 390, 42, 114)
    assert labels["platelet"] == labels["immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"] == 30
    with np.load(real / "bloodmnist_pbc_subset.npz", allow_pickle=False) as arrays:
        pixels = arrays["test_images"][-1]
    assert np.array_equal(np.asarray(source.open_images(source[len(source) - 1])[0]), pixels)
    with tarfile.open(tmp_path / "out/images.tar") as archive:
        assert Image.open(archive.extractfile("breast/test/0.png")).mode == "L"
    capsys.readouterr()
    assert main(call) == 0 and "already holds exactly this" in capsys.readouterr().out
