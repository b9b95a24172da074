"""Random splits of labelled images: shares are met for all rows and for each label, and groups stay together."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from medtune.datasets.labelled_images import SPLITS, LabelledImage
from medtune.errors import ConfigError

NO_LABEL = ""


def drawn(rows: Sequence[LabelledImage], val_share: float, test_share: float, seed: int) -> list[LabelledImage]:
    """Draw the splits of the rows that have none.

    The method is iterative stratification (Sechidis et al. 2011): the label with the fewest groups left is dealt first,
    and a group goes to the split that lacks most rows of this label. Two additions keep the number of all rows near
    its share, also with hundreds of rare labels: how many rows a split is behind counts as much as the label, and a
    split that is full takes no more. Groups (patients) are dealt as a whole. A row without a label has a label of its
    own here.

    Args:
        rows: the images.
        val_share: share for validation.
        test_share: share for test; the rest is for training.
        seed: seed of the order in which groups are dealt.

    Raises:
        ConfigError: for shares out of range.
    """
    if min(val_share, test_share) < 0 or val_share + test_share > 1:
        raise ConfigError(f"val_share {val_share} and test_share {test_share} must not be below 0 or above 1 in sum.")
    shares = {"train": 1.0 - val_share - test_share, "val": val_share, "test": test_share}
    groups: dict[str, Counter[str]] = {}
    sizes: Counter[str] = Counter()
    for row in rows:
        if not row.split:
            groups.setdefault(_group(row), Counter()).update(row.labels or (NO_LABEL,))
            sizes[_group(row)] += 1
    home = _Deal({split: share for split, share in shares.items() if share > 1e-9}, groups, sizes, seed).homes()
    return [row if row.split else replace(row, split=home[_group(row)]) for row in rows]


def drawn_together(
    sets: Mapping[str, Sequence[LabelledImage]], val_share: float, test_share: float, seed: int
) -> dict[str, list[LabelledImage]]:
    """Draw splits of several sets of the same images, so that an image is in the same split of all of them.

    Args:
        sets: name of a set -> its rows.
        val_share: see :func:`drawn`.
        test_share: see there.
        seed: see there.

    Raises:
        ConfigError: for shares out of range.
    """
    if len(sets) == 1:
        return {name: drawn(rows, val_share, test_share, seed) for name, rows in sets.items()}
    images: dict[str, LabelledImage] = {}
    for name, rows in sets.items():
        for row in rows:
            known = images.get(row.image, replace(row, labels=()))
            labels = tuple(f"{name}: {label}" for label in row.labels or (NO_LABEL,))
            images[row.image] = replace(known, labels=(*known.labels, *labels))
    homes = {row.image: row.split for row in drawn(list(images.values()), val_share, test_share, seed)}
    return {name: [replace(row, split=homes[row.image]) for row in rows] for name, rows in sets.items()}


def empty_splits(rows: Sequence[LabelledImage], val_share: float, test_share: float) -> Iterator[str]:
    """Yield a note for each split that should have got rows and has none.

    Args:
        rows: the images with their splits.
        val_share: share that was to be drawn for validation.
        test_share: share that was to be drawn for test.
    """
    used = {row.split for row in rows}
    shares = {"train": 1.0 - val_share - test_share, "val": val_share, "test": test_share}
    for split in SPLITS:
        if split not in used and shares[split] > 1e-9:
            yield (
                f"the split {split} is empty: {len({_group(row) for row in rows})} images or groups are too few for a "
                f"share of {shares[split]:g}; raise the share, or set it to 0"
            )


def _group(row: LabelledImage) -> str:
    return f"group {row.group}" if row.group else f"image {row.image}"


class _Deal:
    """Deals groups to splits.

    Args:
        shares: the share of each split that gets rows.
        groups: the labels of each group, each with the number of its rows.
        sizes: number of rows of each group.
        seed: seed of the order.
    """

    def __init__(
        self, shares: dict[str, float], groups: dict[str, Counter[str]], sizes: Counter[str], seed: int
    ) -> None:
        self.shares, self.groups, self.sizes = shares, groups, sizes
        self.order = sorted(groups)
        random.Random(f"{seed}/splits").shuffle(self.order)
        self.total = sum(sizes.values())
        self.counts: Counter[str] = Counter()
        for labels in groups.values():
            self.counts.update(labels)
        self.lacks = {split: {label: share * n for label, n in self.counts.items()} for split, share in shares.items()}
        self.filled: Counter[str] = Counter()
        self.home: dict[str, str] = {}

    def homes(self) -> dict[str, str]:
        """Return the split of each group."""
        members: dict[str, list[str]] = {}
        left: Counter[str] = Counter()
        for name in self.order:
            for label in self.groups[name]:
                members.setdefault(label, []).append(name)
                left[label] += 1
        while left:
            label = min(left, key=lambda label: (left[label], label))
            for name in members[label]:
                if name not in self.home:
                    self._deal(name, label)
                    left.subtract(self.groups[name].keys())
            left = +left  # labels with groups that are still to be dealt
        return self.home

    def _deal(self, name: str, label: str) -> None:
        size = self.sizes[name]
        dealt = sum(self.filled.values()) + size
        room = [s for s, share in self.shares.items() if self.filled[s] + size / 2 <= share * self.total + 0.5]
        split = max(
            room or list(self.shares),
            key=lambda s: self.lacks[s][label] + self.shares[s] * dealt - self.filled[s],
        )
        self.home[name] = split
        self.filled[split] += size
        for own, rows in self.groups[name].items():
            self.lacks[split][own] -= rows
