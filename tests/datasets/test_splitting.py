"""Random splits of labelled images."""

import random
from collections import Counter

import pytest

from medtune.datasets.labelled_images import LabelledImage
from medtune.datasets.splitting import drawn, drawn_together, empty_splits
from medtune.errors import ConfigError


def images(count, labels, group=lambda number: ""):
    return [LabelledImage(f"{n}.png", tuple(labels(n)), f"line {n}", "", group(n)) for n in range(count)]


def sizes(rows):
    return Counter(row.split for row in rows)


def findings(seed, labels=8, chance=0.3):
    rng = random.Random(seed)
    return lambda _: [f"l{k}" for k in range(labels) if rng.random() < chance / (1 + k)]


@pytest.mark.parametrize("seed", range(5))
def test_shares_of_a_set_with_many_combinations_of_labels_are_met(seed):
    rows = drawn(images(100, findings(seed)), 0.1, 0.2, seed)
    assert abs(sizes(rows)["val"] - 10) <= 1 and abs(sizes(rows)["test"] - 20) <= 1
    common = Counter(row.split for row in rows if "l0" in row.labels)
    total = sum(common.values())
    assert abs(common["val"] - 0.1 * total) <= 2 and abs(common["test"] - 0.2 * total) <= 2


def test_shares_of_a_set_with_many_rare_classes_are_met():
    rows = drawn(images(80, lambda n: [f"class {n // 4}"]), 0.1, 0.2, 0)
    assert sizes(rows) == {"train": 56, "val": 8, "test": 16}
    tested = Counter(row.labels for row in rows if row.split != "train")
    assert max(tested.values()) <= 2, "no rare class is left out of training"


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_met_by_group(seed):
    rng = random.Random(seed)
    patients = [patient for patient in range(60) for _ in range(rng.randint(1, 5))]
    rows = drawn(images(len(patients), findings(seed), lambda n: f"p{patients[n]}"), 0.1, 0.2, seed)
    homes = {}
    for row in rows:
        assert homes.setdefault(row.group, row.split) == row.split
    assert abs(sizes(rows)["val"] - 0.1 * len(rows)) <= 3 and abs(sizes(rows)["test"] - 0.2 * len(rows)) <= 3


def test_a_share_of_nothing_gets_nothing_and_all_gets_all():
    rows = images(50, findings(0))
    assert sizes(drawn(rows, 0.0, 1.0, 0)) == {"test": 50}
    assert set(sizes(drawn(rows, 0.0, 0.3, 0))) == {"train", "test"}
    for val, test in ((-0.1, 0.2), (0.6, 0.5)):
        with pytest.raises(ConfigError, match="must not be below 0 or above 1 in sum"):
            drawn(rows, val, test, 0)


def test_the_draw_is_that_of_the_seed_and_not_of_the_order():
    rows = images(60, findings(1))
    homes = [{row.image: row.split for row in drawn(given, 0.2, 0.2, seed)}
             for given, seed in ((rows, 0), (rows[::-1], 0), (rows, 1))]  # fmt: skip
    assert homes[0] == homes[1] != homes[2]


def test_an_empty_split_is_said():
    rows = drawn(images(4, lambda n: ["ab"[n % 2]]), 0.05, 0.25, 0)
    assert sizes(rows) == {"train": 3, "test": 1}
    (note,) = empty_splits(rows, 0.05, 0.25)
    assert note.startswith("the split val is empty: 4 images or groups are too few for a share of 0.05")
    assert list(empty_splits(rows, 0.0, 0.25)) == []


def test_an_image_is_in_the_same_split_of_all_sets():
    sets = {name: images(40, findings(seed)) for seed, name in enumerate(("side", "finding"))}
    sets["side"] = sets["side"][5:]  # some images have no label of one set
    homes = {name: {row.image: row.split for row in rows} for name, rows in drawn_together(sets, 0.2, 0.2, 0).items()}
    assert len(homes["side"]) == 35 and len(homes["finding"]) == 40
    assert all(homes["finding"][image] == split for image, split in homes["side"].items())
