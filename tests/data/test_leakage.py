"""The leakage gate: what one split knows of another is counted, listed, and refused unless it is allowed by name."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.data import picture_digests
from medtune.data.images import ImageRoot
from medtune.data.labels import Target
from medtune.data.leakage import check_allowed, find_leaks, group_of, refuse, shown
from medtune.data.picture_digests import Picture, PictureDigests, picture, tar_pictures
from medtune.data.sample import Message, Sample, report_sample
from medtune.errors import ConfigError, DataError


def drawn(seed: int, side: int = 32) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def labelled(split: str, name: str, label: str = "a", patient: str = "") -> Sample:
    meta = Target("blood", "multi_class", ("a", "b"), (("a", "b").index(label),)).to_meta()
    turns = (Message("user", "Which?"), Message("assistant", label))
    return Sample(f"{split}/{name}", (name,), turns, meta | ({"patient": patient} if patient else {}))


def pixels(**names: int) -> dict[str, Picture]:
    return {f"{name}.png": Picture(bytes([number])) for name, number in names.items()}


def leaks(rows: list, pictures: dict[str, Picture], near: int | None = None) -> dict[str, dict[str, int]]:
    return find_leaks(rows, pictures, near).counts()


def test_identical_pixels_under_other_names_are_found_across_splits_and_not_within_one() -> None:
    rows = [shown(split, labelled(split, f"{name}.png")) for split, name in
            (("train", "a"), ("train", "b"), ("val", "c"), ("test", "d"), ("test", "e"))]  # fmt: skip
    same = pixels(a=1, b=1, c=2, d=1, e=3)
    assert leaks(rows, same) == {"identical_images": {"train-test": 1}}
    assert leaks(rows, pixels(a=1, b=2, c=3, d=4, e=5)) == {}
    assert leaks(rows, pixels(a=1, b=2, c=1, d=1, e=1)) == {
        "identical_images": {"train-val": 1, "train-test": 2, "val-test": 2}
    }


def test_the_same_image_name_in_two_splits_is_found_without_its_pixels_too() -> None:
    rows = [shown("train", labelled("train", "x.png")), shown("test", labelled("test", "x.png"))]
    found = find_leaks(rows, {})
    assert found.counts() == {"identical_images": {"train-test": 1}} and found.compared == "names"


def test_reports_and_questions_on_the_images_of_one_split_are_no_leak() -> None:
    rows = [shown("test_reports", report_sample("r", ("x.png",), "round")), shown("test", labelled("test", "x.png"))]
    assert leaks(rows, pixels(x=1)) == {} and group_of("test_reports") == "test"


def test_an_image_with_two_labels_is_found_also_within_a_split() -> None:
    rows = [shown("train", labelled("train", "a.png")), shown("train", labelled("train", "b.png", "b")),
            shown("train", labelled("train", "c.png", "b"))]  # fmt: skip
    assert leaks(rows, pixels(a=1, b=1, c=2)) == {"conflicting_labels": {"train-train": 1}}
    assert leaks(rows, pixels(a=1, b=2, c=2)) == {}


def test_a_file_with_two_classes_is_a_conflict_and_a_class_without_an_image_is_none() -> None:
    twice = [labelled("train", "a.png"), labelled("train", "a.png", "b")]
    assert leaks([shown("train", one) for one in twice], pixels(a=1)) == {"conflicting_labels": {"train-train": 1}}
    blind = [dataclasses.replace(one, images=()) for one in twice]
    assert leaks([shown("train", one) for one in blind], {}) == {}


def test_labels_conflict_only_as_answers_to_the_same_question_or_in_the_same_set() -> None:
    def answered(name: str, attribute: str, words: str, answer: str) -> Sample:
        turns = (Message("user", words), Message("assistant", answer))
        return Sample(name, (f"{name}.png",), turns, {"attribute": attribute, "answer": answer})

    same = pixels(a=1, b=1)
    first = answered("a", "size", "Is it?", "big")
    for other, conflicts in (
        (answered("b", "size", "Is it?", "small"), {"conflicting_labels": {"train-train": 1}}),
        (answered("b", "size", "Was it?", "small"), {}),
        (answered("b", "shape", "Is it?", "small"), {}),
    ):
        assert leaks([shown("train", one) for one in (first, other)], same) == conflicts
    skin = Target("skin", "multi_class", ("a", "b"), (1,)).to_meta()
    sets = [labelled("train", "a.png"), dataclasses.replace(labelled("train", "b.png", "b"), meta=skin)]
    assert leaks([shown("train", one) for one in sets], same) == {}


def test_a_conflict_between_files_of_two_splits_is_named_by_the_splits() -> None:
    rows = [shown("train_reports", report_sample("1", ("a.png",), "round")),
            shown("test_reports", report_sample("2", ("b.png",), "oval"))]  # fmt: skip
    assert leaks(rows, pixels(a=1, b=1))["conflicting_labels"] == {"train-test": 1}


def test_a_label_with_half_a_character_is_compared_too() -> None:
    rows = [shown("train", report_sample(name, (f"{name}.png",), text)) for name, text in
            (("a", "round \ud83d"), ("b", "round \ud83e"))]  # fmt: skip
    assert leaks(rows, pixels(a=1, b=1)) == {"conflicting_labels": {"train-train": 1}}


def test_two_reports_of_one_file_are_no_conflict_but_two_files_with_the_same_pixels_are() -> None:
    twice = [shown("train", report_sample(str(n), (name,), text)) for n, (name, text) in
             enumerate([("a.png", "round"), ("a.png", "oval"), ("b.png", "flat")])]  # fmt: skip
    assert leaks(twice[:2], pixels(a=1)) == {}
    assert leaks(twice, pixels(a=1, b=1)) == {"conflicting_labels": {"train-train": 1}}


def test_conversations_about_one_image_have_no_label_that_could_conflict() -> None:
    talks = [Sample(str(n), ("a.png",), (Message("user", "Describe."), Message("assistant", text)))
             for n, text in enumerate(["A cell.", "A round cell."])]  # fmt: skip
    assert leaks([shown("train", one) for one in talks], pixels(a=1)) == {}


def test_a_patient_in_two_splits_is_found_by_any_usual_key_and_never_named() -> None:
    for key in ("patient", "patient_id", "subject_id"):
        rows = [shown(split, Sample(f"{split}/{n}", (f"{n}.png",), (Message("assistant", "x"),), {key: "Jane Doe"}))
                for n, split in enumerate(("train", "train", "test"))]  # fmt: skip
        found = find_leaks(rows, {})
        assert found.counts()["shared_patients"] == {"train-test": 1}
        assert b"Jane" not in found.to_csv() and "Jane" not in " ".join(found.sentences())
    assert leaks([shown("train", labelled("train", "a.png")), shown("test", labelled("test", "b.png"))], {}) == {}


def test_a_patient_of_two_files_of_one_split_is_no_leak_and_an_empty_key_gives_way_to_the_next() -> None:
    rows = [shown(split, labelled(split, f"{split}.png", patient="p")) for split in ("test", "test_reports")]
    assert leaks(rows, {}) == {}
    keyed = [Sample(split, (f"{split}.png",), (Message("assistant", "x"),), {"patient": "", "subject_id": "p"})
             for split in ("train", "test")]  # fmt: skip
    assert leaks([shown(one.id, one) for one in keyed], {}) == {"shared_patients": {"train-test": 1}}


def test_samples_without_images_are_not_said_to_be_compared_by_names() -> None:
    talk = Sample("t", (), (Message("user", "Q"), Message("assistant", "A")), {})
    assert find_leaks([shown("train", talk)], {}).compared == "pixels"


def test_similar_images_are_found_where_their_hashes_differ_in_few_bits() -> None:
    rows = [shown(split, labelled(split, f"{name}.png")) for split, name in
            (("train", "a"), ("test", "b"), ("test", "c"), ("val", "d"))]  # fmt: skip
    looks = {"a.png": 0b1010, "b.png": 0b1011 | 1 << 63, "c.png": 0xFFFF << 20, "d.png": 0b1010}
    pictures = {name: Picture(bytes([at]), look) for at, (name, look) in enumerate(looks.items())}
    assert leaks(rows, pictures, near=2)["similar_images"] == {"train-test": 1, "train-val": 1, "val-test": 1}
    assert leaks(rows, pictures, near=1)["similar_images"] == {"train-val": 1}
    assert leaks(rows, pictures) == {}
    alike = {"a.png": Picture(b"1", 5), "b.png": Picture(b"1", 5)}
    assert leaks(rows[:2], alike, near=2) == {"identical_images": {"train-test": 1}}, "not also as similar ones"


def test_bands_find_every_close_pair_that_a_comparison_of_all_pairs_finds() -> None:
    rng = np.random.default_rng(0)
    base = [int(one) for one in rng.integers(0, 2**63, 40)]
    looks = base + [one ^ (1 << int(a)) ^ (1 << int(b)) for one, a, b in
                    zip(base, rng.integers(0, 64, 40), rng.integers(0, 64, 40), strict=True)]  # fmt: skip
    rows = [shown(split, labelled(split, f"{n}.png")) for n, split in enumerate(["train"] * 40 + ["test"] * 40)]
    pictures = {f"{n}.png": Picture(n.to_bytes(2, "big"), look) for n, look in enumerate(looks)}
    every = sum((looks[a] ^ looks[b]).bit_count() <= 3 for a in range(40) for b in range(40, 80))
    assert every >= 40 and leaks(rows, pictures, near=3)["similar_images"] == {"train-test": every}


def test_what_is_allowed_by_kind_or_by_kind_and_splits_passes_and_all_else_is_refused() -> None:
    rows = [shown("train", labelled("train", "a.png")), shown("val", labelled("val", "b.png")),
            shown("test", labelled("test", "c.png", "b"))]  # fmt: skip
    found = find_leaks(rows, pixels(a=1, b=1, c=1))
    refuse(found, ["identical_images", "conflicting_labels"], "set", "Listed")
    only = ["identical_images:train-test", "identical_images:val-test", "conflicting_labels"]
    with pytest.raises(DataError, match=r"train-val\].*\n?.*allow_leakage=\[identical_images\]") as caught:
        refuse(found, only, "set", "Listed in leakage.csv")
    assert "Listed in leakage.csv" in str(caught.value) and "train-test" not in str(caught.value)
    assert found.to_dict(only)["allowed"] == sorted(only)


def test_a_misspelt_kind_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean shared_patients"):
        check_allowed(["shared_patient"])
    check_allowed(["identical_images:train-test"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        drawn(seed).save(root / f"{name}.png")
    drawn(1).save(root / "same.bmp")
    (root / "broken.png").write_bytes(b"no image")
    return root


def digests(root: Path, cache: Path, **options: object) -> PictureDigests:
    return PictureDigests(ImageRoot(root), cache, progress=False, **options)  # type: ignore[arg-type]


def test_the_digest_is_of_decoded_pixels_not_of_the_file(folder: Path, tmp_path: Path) -> None:
    found = digests(folder, tmp_path / "cache").of(["a.png", "b.png", "c.png", "same.bmp", "broken.png"])
    assert found["a.png"] == found["same.bmp"] == found["b.png"] != found["c.png"] and "broken.png" not in found
    assert picture(drawn(1)) == found["a.png"]
    assert picture(Image.new("RGB", (2, 8))) != picture(Image.new("RGB", (8, 2))), "the size counts"


def test_an_image_is_read_once_and_again_only_if_its_file_changed(folder: Path, tmp_path: Path, monkeypatch) -> None:
    names, loads = ["a.png", "b.png", "c.png"], []
    load = ImageRoot.load
    monkeypatch.setattr(ImageRoot, "load", lambda self, name, where: loads.append(name) or load(self, name, where))
    first = digests(folder, tmp_path / "cache").of(names)
    assert loads == names and digests(folder, tmp_path / "cache").of(names) == first and loads == names
    drawn(5).save(folder / "b.png")
    assert digests(folder, tmp_path / "cache").unread(names) == 1
    second = digests(folder, tmp_path / "cache").of(names)
    assert loads == [*names, "b.png"] and second["b.png"] != first["b.png"] and second["a.png"] == first["a.png"]
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert digests(folder, tmp_path / "cache").of(names) == second, "a damaged file is the same as none"
    assert len(loads) == 7


def test_an_image_that_got_damaged_is_left_out_although_its_digest_was_kept(folder: Path, tmp_path: Path) -> None:
    assert len(digests(folder, tmp_path / "cache").of(["a.png", "b.png"])) == 2
    (folder / "b.png").write_bytes(b"no image")
    assert digests(folder, tmp_path / "cache").of(["a.png", "b.png"]).keys() == {"a.png"}


def test_digests_of_other_code_or_of_another_root_are_not_used(folder: Path, tmp_path: Path, monkeypatch) -> None:
    cache, names = tmp_path / "cache", ["a.bmp"]
    roots = [tmp_path / side / "images" for side in "lr"]
    for root, seed in zip(roots, (1, 2), strict=True):  # files of the same name, size and time
        root.mkdir(parents=True)
        drawn(seed).save(root / "a.bmp")
        os.utime(root / "a.bmp", (1, 1))
    digests(roots[0], cache).of(names)
    assert digests(roots[1], cache).of(names)["a.bmp"] == picture(drawn(2))
    assert digests(roots[0], cache).unread(names) == digests(roots[1], cache).unread(names) == 0
    left, right = (digests(root, cache)._path for root in roots)
    right.write_bytes(left.read_bytes())
    assert digests(roots[1], cache).unread(names) == 1, "the file says whose digests it holds"
    monkeypatch.setattr(picture_digests, "_CODE", ("images.py",))
    assert digests(roots[0], cache).unread(names) == 1


def test_only_the_digests_that_were_used_last_are_kept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(picture_digests, "KEPT_FILES", 2)
    cache, kept = tmp_path / "cache", []
    for number in range(3):
        root = tmp_path / f"root{number}"
        root.mkdir()
        drawn(number).save(root / "a.png")
        digests(root, cache).of(["a.png"])
        kept.append(digests(root, cache)._path)
        if number < 2:
            os.utime(kept[-1], (number, number))
    assert [path.exists() for path in kept] == [False, True, True]


def test_digests_that_cannot_be_kept_are_returned_all_the_same(folder: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise DataError("no space left")

    (tmp_path / "file").touch()
    assert digests(folder, tmp_path / "file" / "cache").of(["a.png"]) == {"a.png": picture(drawn(1))}
    monkeypatch.setattr(picture_digests, "write_files", full)
    assert digests(folder, tmp_path / "cache").of(["a.png"]) == {"a.png": picture(drawn(1))}


def test_the_last_block_of_images_may_be_smaller(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(picture_digests, "_BLOCK", 2)
    names = ["a.png", "b.png", "c.png"]
    assert list(digests(folder, None).of(names)) == names  # type: ignore[arg-type]


def test_hashes_of_the_look_are_added_to_digests_that_were_kept_without(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("imagehash")
    plain = digests(folder, tmp_path / "cache").of(["a.png", "c.png"])
    looked = digests(folder, tmp_path / "cache", look=True).of(["a.png", "c.png"])
    assert plain["a.png"].look is None and looked["a.png"].look is not None
    assert digests(folder, tmp_path / "cache").unread(["a.png"]) == 0
    bright = drawn(1).point(lambda value: min(255, value + 3))
    far = (picture(drawn(2), True).look ^ looked["a.png"].look).bit_count()
    assert (picture(bright, True).look ^ looked["a.png"].look).bit_count() <= 4 < far


def test_workers_give_the_same_digests(folder: Path, tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png", "broken.png"]
    assert digests(folder, None, num_workers=2).of(names) == digests(folder, None, num_workers=0).of(names)  # type: ignore[arg-type]


def test_the_images_of_a_tar_that_is_not_written_yet_are_read_from_its_blocks() -> None:
    from medtune.data.archives import png_bytes, tar_blocks

    arrays = {f"{n}.png": np.full((28, 28), n, dtype=np.uint8) for n in range(3)}
    found = tar_pictures(lambda: tar_blocks((name, png_bytes(grey)) for name, grey in arrays.items()))
    assert found == {name: picture(Image.fromarray(grey).convert("RGB")) for name, grey in arrays.items()}
