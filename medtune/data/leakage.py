"""Finds what one split knows of another: the same image or patient, an image with two labels, one file twice."""

import csv
import difflib
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medtune.data.labels import classification_target, is_classification
from medtune.data.picture_digests import Picture
from medtune.data.sample import Sample
from medtune.errors import ConfigError, DataError

KINDS = {
    "identical_images": "images of {second} with the same pixels as an image of {first}",
    "similar_images": "images of {second} that look like an image of {first}",
    "conflicting_labels": "samples of {second} with another label than the same image in {first}",
    "shared_patients": "patients in {first} and in {second}",
    "same_file": "files that are the data of {first} and of {second}",
}
"""Name of a kind of leakage, and what is counted."""
PATIENT_KEYS = ("patient", "patient_id", "subject_id", "subject")
"""Keys of ``meta`` that name a patient; the first that a sample has counts."""


class Shown(NamedTuple):
    """What leakage is looked for in, of one sample.

    Attributes:
        split: The file or data set that it is in.
        id: The sample's id.
        images: Its images, by name.
        question: Digest of what its label answers; empty if it has no label.
        label: Digest of the label; a million reports would not fit into the memory.
        patient: The patient; empty if unknown.
        classified: Whether the label is the class of the image, of which it has one.
    """

    split: str
    id: str
    images: tuple[str, ...]
    question: str
    label: str
    patient: str
    classified: bool = False


class Leak(NamedTuple):
    """One overlap, with a sample of either side. Patients are not named."""

    kind: str
    first_split: str
    first_id: str
    first_image: str
    second_split: str
    second_id: str
    second_image: str

    @property
    def pair(self) -> str:
        """The two splits, as in ``allow_leakage``."""
        return f"{self.first_split}-{self.second_split}"


@dataclass(frozen=True)
class Leakage:
    """The outcome of a search.

    Attributes:
        leaks: The overlaps, each listed once.
        images: Number of distinct image names.
        compared: How images were compared: by ``pixels`` or, if they could not be read, by ``names``.
    """

    leaks: tuple[Leak, ...]
    images: int
    compared: str

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of overlaps by kind and pair of splits."""
        found: dict[str, dict[str, int]] = {}
        for leak in self.leaks:
            pairs = found.setdefault(leak.kind, {})
            pairs[leak.pair] = pairs.get(leak.pair, 0) + 1
        return found

    def refused(self, allowed: Sequence[str]) -> list[Leak]:
        """Return the overlaps that are not allowed by the name of their kind, or of kind and splits."""
        return [leak for leak in self.leaks if not {leak.kind, f"{leak.kind}:{leak.pair}"} & set(allowed)]

    def sentences(self, leaks: Iterable[Leak] | None = None) -> list[str]:
        """Return one sentence for each kind and pair of splits, with the ids of the first overlap."""
        first: dict[tuple[str, str], list[Leak]] = {}
        for leak in self.leaks if leaks is None else leaks:
            first.setdefault((leak.kind, leak.pair), []).append(leak)
        return [_sentence(found) for found in first.values()]

    def to_dict(self, allowed: Sequence[str]) -> dict[str, Any]:
        """Return the facts for a manifest: counts, what was allowed, and how images were compared."""
        return {"images": self.images, "compared": self.compared, "found": self.counts(), "allowed": sorted(allowed)}

    def to_csv(self) -> bytes:
        """Return the list of overlaps as a table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Leak._fields)
        writer.writerows(self.leaks)
        return text.getvalue().encode()


def check_allowed(allowed: Sequence[str]) -> None:
    """Refuse a name in ``allow_leakage`` that is no kind of leakage.

    Raises:
        ConfigError: With the nearest name.
    """
    for name in allowed:
        if name.partition(":")[0] not in KINDS:
            near = difflib.get_close_matches(name, list(KINDS), n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(KINDS)}"
            raise ConfigError(f"allow_leakage: {name!r} is no kind of leakage; {hint}")


def refuse(leakage: Leakage, allowed: Sequence[str], where: str, listed: str) -> None:
    """Raise an error for overlaps that are not allowed.

    Args:
        leakage: What was found.
        allowed: Names of kinds, or of kind and splits: ``identical_images:train-test``.
        where: The data, for the message.
        listed: Where the overlaps are listed, as the end of a sentence.

    Raises:
        DataError: With a sentence for each kind and pair of splits.
    """
    refused = leakage.refused(allowed)
    if not refused:
        return
    names = ", ".join(dict.fromkeys(leak.kind for leak in refused))
    found = "\n  ".join(leakage.sentences(refused))
    raise DataError(
        f"{where}: the splits know something of one another:\n  {found}\n{listed}. Remove it from one of the splits, "
        f"or set allow_leakage=[{names}]; what is allowed is named in the manifest, the results and the report."
    )


def shown(split: str, sample: Sample, patient: str | None = None) -> Shown:
    """Return what leakage is looked for in.

    Args:
        split: The split that the sample is in.
        sample: The sample.
        patient: The patient; None reads it from ``meta`` (:data:`PATIENT_KEYS`).
    """
    question, label = (_digest(text) for text in _label(sample))
    if patient is None:
        patient = next((str(sample.meta[key]) for key in PATIENT_KEYS if sample.meta.get(key) not in (None, "")), "")
    return Shown(split, sample.id, sample.images, question, label, patient, is_classification(sample))


def group_of(split: str) -> str:
    """Return the part of the data that a file belongs to: ``test_reports`` and ``test`` are both of ``test``."""
    return split.partition("_")[0]


def find_leaks(rows: Iterable[Shown], pictures: Mapping[str, Picture], near: int | None = None) -> Leakage:
    """Compare splits.

    Args:
        rows: The samples of all splits.
        pictures: The digests of the images; an image without one is compared by its name.
        near: Largest number of different bits (of 64) in the perceptual hashes of images that look alike; None looks
            for identical images alone.
    """
    rows = list(rows)
    images: dict[bytes, dict[str, tuple[str, str]]] = {}  # pixels -> image name and split -> (split, id)
    places: dict[str, dict[str, tuple[str, str]]] = {}  # image name -> split -> (split, id)
    for row in rows:
        for name in row.images:
            places.setdefault(name, {}).setdefault(group_of(row.split), (group_of(row.split), row.id))
    for name, by_split in places.items():
        key = pictures[name].pixels if name in pictures else f"name {name}".encode()
        for split, place in by_split.items():
            images.setdefault(key, {}).setdefault(f"{split}\0{name}", place)
    leaks = [*_identical(images), *_conflicts(rows, pictures), *_patients(rows)]
    if near is not None:
        leaks += _similar(places, pictures, near)
    compared = "pixels" if pictures or not places else "names"
    return Leakage(tuple(leaks), len(places), compared)


def _sentence(found: Sequence[Leak]) -> str:
    leak = found[0]
    text = KINDS[leak.kind].format(first=leak.first_split, second=leak.second_split)
    example = f" (the first: {leak.first_id!r} and {leak.second_id!r})" if leak.first_id else ""
    return f"{text}: {len(found):,}{example} [{leak.kind}:{leak.pair}]"


def _label(sample: Sample) -> tuple[str, str]:
    """Return what a sample's label answers, and the label; empty if a sample has no single right answer."""
    meta = sample.meta
    if is_classification(sample):
        target = classification_target(sample)
        return f"set {target.set}", target.text
    if isinstance(meta.get("attribute"), str) and isinstance(meta.get("answer"), str):
        return f"attribute {meta['attribute']}: {_asked(sample)}", meta["answer"]
    if len(sample.messages) == 1 and sample.images:
        return "report", sample.messages[0].content
    return "", ""


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if text else ""


def _asked(sample: Sample) -> str:
    return " ".join(message.content for message in sample.messages if message.role == "user")


def _identical(images: Mapping[bytes, Mapping[str, tuple[str, str]]]) -> list[Leak]:
    """Images of a later split that an earlier one holds too; each is listed with the first of that split."""
    found = []
    for places in images.values():
        first: dict[str, tuple[str, str]] = {}
        for key, (split, id) in sorted(places.items(), key=lambda place: _order(place[1])):
            name = key.partition("\0")[2]
            for other, (other_id, other_name) in first.items():
                if other != split:
                    found.append(Leak("identical_images", other, other_id, other_name, split, id, name))
            first.setdefault(split, (id, name))
    return found


def _conflicts(rows: Iterable[Shown], pictures: Mapping[str, Picture]) -> list[Leak]:
    """Images with two labels.

    One file may have several right answers to one question (each finding of an X-ray) and several reports, so those
    conflict only between files with the same pixels. A classified image has one label, whatever its file.
    """
    found = []
    first: dict[tuple[Any, ...], dict[str, Shown]] = {}
    for row in rows:
        if not row.question or not row.images:
            continue
        key = (row.question, *(pictures[name].pixels if name in pictures else name.encode() for name in row.images))
        known = first.setdefault(key, {})
        for other in known.values():
            if other.label != row.label and (row.classified or other.images != row.images):
                sides = (other.split, other.id, other.images[0], row.split, row.id, row.images[0])
                found.append(
                    Leak("conflicting_labels", group_of(sides[0]), *sides[1:3], group_of(sides[3]), *sides[4:])
                )
                break
        known.setdefault(row.label, row)
    return found


def _patients(rows: Iterable[Shown]) -> list[Leak]:
    first: dict[str, dict[str, Shown]] = {}
    for row in rows:
        if row.patient:
            first.setdefault(row.patient, {}).setdefault(group_of(row.split), row)
    found = []
    for by_split in first.values():
        places = sorted(by_split.items(), key=lambda place: _order((place[0],)))
        for at, (split, row) in enumerate(places):
            for other, known in places[:at]:
                sides = (other, known.id, *known.images[:1]), (split, row.id, *row.images[:1])
                found.append(Leak("shared_patients", *_three(sides[0]), *_three(sides[1])))
    return found


def _three(side: tuple[str, ...]) -> tuple[str, str, str]:
    split, id, *image = side
    return split, id, image[0] if image else ""


def _similar(
    places: Mapping[str, Mapping[str, tuple[str, str]]], pictures: Mapping[str, Picture], near: int
) -> list[Leak]:
    """Images of two splits whose hashes differ in at most ``near`` bits and whose pixels are not the same.

    Two hashes that differ in ``near`` bits agree in one of ``near + 1`` bands of bits, so only hashes that share a band
    are compared.
    """
    looks: dict[int, dict[str, tuple[str, str, bytes]]] = {}
    for name, by_split in places.items():
        one = pictures.get(name)
        if one is not None and one.look is not None:
            for split, (_, id) in by_split.items():
                looks.setdefault(one.look, {}).setdefault(split, (id, name, one.pixels))
    hashes = np.asarray(sorted(looks), dtype=np.uint64)
    found = []
    pairs = {(int(a), int(a)) for a in hashes} | set(_close(hashes, near))
    for a, b in sorted(pairs):
        for split, (id, name, pixels) in looks[a].items():
            for other, (other_id, other_name, other_pixels) in looks[b].items():
                if split != other and pixels != other_pixels and (a != b or split < other):
                    sides = sorted([(split, id, name), (other, other_id, other_name)], key=_order)
                    found.append(Leak("similar_images", *sides[0], *sides[1]))
    return found


def _order(side: tuple[str, ...]) -> tuple[int, str]:
    """The usual order of splits, by the first entry: train, val, test, others by name."""
    usual = ("train", "val", "test")
    return (usual.index(side[0]) if side[0] in usual else len(usual), side[0])


def _close(hashes: np.ndarray, near: int) -> Iterable[tuple[int, int]]:
    """Yield pairs of different hashes that differ in at most ``near`` bits."""
    edges = np.linspace(0, 64, near + 2).astype(int)
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, band[order][1:] != band[order][:-1], True])
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            members = hashes[order[start:end]]
            for at, one in enumerate(members[:-1]):
                differing = np.bitwise_count(members[at + 1 :] ^ one)
                yield from ((int(one), int(other)) for other in members[at + 1 :][differing <= near])
