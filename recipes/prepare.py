"""Convert a data set from its published form to medtune's JSON Lines with a manifest.

    tune run medtune/recipes/prepare.py --config prepare/wbcatt output_dir=prepared/wbcatt

Writes one ``<split>.jsonl`` per split and ``manifest.json``: SHA-256 of what was read and written, counts, options and
seed. The same inputs and options give the same bytes. ``dry_run=true`` prints the counts and writes nothing.
"""

import csv
import hashlib
import io
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from medtune import __version__
from medtune.config import Component, instantiate, recipe
from medtune.data.folders import claim, noted
from medtune.data.images import ImageRoot
from medtune.data.leakage import Leakage, Shown, check_allowed, find_leaks, refuse, shown
from medtune.data.picture_digests import Picture, PictureDigests, tar_pictures
from medtune.data.sample import Sample
from medtune.data.writing import Content, file_sha256, json_bytes, jsonl_lines, measured, sha256, write_files
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError
from medtune.training.checking import cache_folder

UNUSABLE = "unusable_images.csv"
LEAKS = "leakage.csv"
_REMEMBERED = 4096  # number of recent images that are not checked again: samples of one image are close together


@dataclass
class PrepareConfig:
    """Keys of a prepare config."""

    data: Component = field(metadata={"help": "component that returns a Prepared data set"})
    output_dir: str = field(metadata={"help": "folder of the JSON Lines"})
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images; null: not checked"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "skip: leave out, count and list the samples whose image cannot be used"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace files with different content in output_dir"})
    dry_run: bool = field(default=False, metadata={"help": "print the counts and write nothing"})
    check_leakage: bool = field(
        default=True, metadata={"help": "compare the splits: images by their pixels, patients, labels of one image"}
    )
    near_duplicates: int | None = field(
        default=None,
        metadata={"help": "also find similar images: bits of 64 in which their pHash may differ, such as 4"},
    )
    allow_leakage: list[str] = field(
        default_factory=list, metadata={"help": "kinds of leakage that are known and accepted, such as shared_patients"}
    )
    picture_cache: str | None = field(
        default="auto", metadata={"help": "folder of the images' digests; auto: as preflight_cache; null: none is kept"}
    )

    def __post_init__(self) -> None:
        """Refuse unknown kinds of leakage and an impossible number of bits."""
        check_allowed(self.allow_leakage)
        if self.near_duplicates is not None and not 0 <= self.near_duplicates <= 16:
            raise ValueError(f"near_duplicates must be between 0 and 16 bits, not {self.near_duplicates}")


class ImageCheck:
    """Finds images that are missing or unreadable; remembers all of these, and otherwise only the most recent images.

    Args:
        name: name of the data set, for messages.
        image_root: folder or ``.tar`` of the images; None lets every sample pass.
    """

    def __init__(self, name: str, image_root: str | None) -> None:
        self.name = name
        self.root = ImageRoot(image_root) if image_root else None
        self.reasons: dict[str, str] = {}
        self.lost: dict[str, Counter[str]] = {}
        self._recent: dict[str, None] = {}

    def usable(self, sample: Sample) -> bool:
        """Return whether all images of a sample can be used; the reason why an image cannot be used is kept."""
        for image in sample.images:
            if self.root is not None and image not in self._recent:
                self._check(self.root, image, sample.id)
        bad = self.reasons.keys() & set(sample.images)
        for image in bad:
            self.lost.setdefault(image, Counter())[sample.id] += 1
        return not bad

    def samples_lost(self) -> int:
        """Return the number of samples with an image that cannot be used."""
        return len({id for ids in self.lost.values() for id in ids})

    def to_csv(self) -> bytes:
        """Return the images that cannot be used as a table: image, number of samples, the first of them, the reason."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "samples", "first_sample", "reason"])
        writer.writerows([image, len(ids), next(iter(ids)), self.reasons[image]] for image, ids in self.lost.items())
        return text.getvalue().encode()

    def _check(self, root: ImageRoot, image: str, id: str) -> None:
        self._recent[image] = None
        if len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]
        try:
            root.size(image, f"{self.name} (id {id!r})")
        except DataError as error:
            self.reasons.setdefault(image, str(error))


@dataclass
class Survey:
    """The outcome of a first pass over a split; nothing is written before all splits are checked.

    Attributes:
        count: number of samples whose images can be used.
        dropped: ids of the other samples.
        content: content of the split's file.
    """

    count: int
    dropped: list[str]
    content: Content


def survey(split: str, samples: Iterable[Sample], check: ImageCheck, see: Callable[[Sample], None]) -> Survey:
    """Read a split once without keeping its samples, so that it may be larger than the memory; ``see`` gets each."""
    count, size, dropped, digest = 0, 0, [], hashlib.sha256()
    for sample in tqdm(samples, desc=f"read {split}", unit="sample", leave=False):
        if not check.usable(sample):
            dropped.append(sample.id)
            continue
        see(sample)
        for line in jsonl_lines([sample]):
            digest.update(line)
            size += len(line)
        count += 1

    def blocks() -> Iterator[bytes]:
        return jsonl_lines(sample for sample in samples if not check.reasons.keys() & set(sample.images))

    return Survey(count, dropped, Content(size, digest.hexdigest(), blocks))


def manifest(
    prepared: Prepared,
    surveys: dict[str, Survey],
    tables: dict[str, bytes],
    others: dict[str, Content],
    leakage: dict[str, Any],
) -> dict[str, Any]:
    """Return the manifest, without paths and dates, so that it can be compared between machines."""
    outputs = {f"{name}.jsonl": split.content.digest for name, split in surveys.items()}
    outputs |= {name: content.digest for name, content in others.items()}
    return {
        "dataset": prepared.name,
        "options": prepared.options,
        "counts": {name: split.count for name, split in surveys.items()},
        **prepared.summary,
        "skipped": {name: split.dropped for name, split in surveys.items() if split.dropped},
        "leakage": leakage,
        "inputs": {path.name: file_sha256(path) for path in prepared.inputs.values()},
        "outputs": outputs | {name: sha256(data) for name, data in tables.items()},
        "versions": {"medtune": __version__, "python": platform.python_version()},
    }


def report_counts(surveys: dict[str, Survey]) -> None:
    """Print the number of samples of each split, and of those left out."""
    for name, split in surveys.items():
        left_out = f"  ({len(split.dropped)} left out: image missing or unreadable)" if split.dropped else ""
        print(f"{name:14} {split.count:7,}{left_out}")


def list_unusable(check: ImageCheck, folder: Path) -> None:
    """Write the list of images that cannot be used; without such images, remove the list of an earlier run."""
    if check.reasons:
        claim(folder, "prepare", ["manifest.json", UNUSABLE], _is_prepared)
        write_files(folder, {UNUSABLE: check.to_csv()}, overwrite=True)
    elif UNUSABLE in noted(folder, "prepare"):
        (folder / UNUSABLE).unlink(missing_ok=True)


def _shown(name: str, blocks: Callable[[], Iterator[bytes]]) -> Callable[[], Iterator[bytes]]:
    return lambda: iter(tqdm(blocks(), desc=f"pack {name}", unit="image", leave=False))


def _is_prepared(folder: Path) -> bool:
    """Return whether a folder without a record holds a manifest of prepared data; only such a file is replaced."""
    try:
        content = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= {"dataset", "inputs", "outputs"}


def look_for_leakage(config: PrepareConfig, prepared: Prepared, check: ImageCheck, rows: list[Shown]) -> Leakage:
    """Compare the splits, and print what was found; images are read from the image root or from what is written."""
    look = config.near_duplicates is not None
    pictures: dict[str, Picture] = {}
    if check.root is not None:
        kept = None if config.picture_cache is None else cache_folder(config.picture_cache)
        pictures = PictureDigests(check.root, kept, look=look).of(image for row in rows for image in row.images)
    else:
        for name, blocks in prepared.files.items():
            if name.endswith(".tar"):
                pictures |= tar_pictures(blocks, look)
    found = find_leaks(rows, pictures, config.near_duplicates)
    if found.compared == "names":
        print("leakage: images were compared by their names alone; give image_root to compare their pixels")
    for sentence in found.sentences():
        print(f"leakage: {sentence}")
    return found


def gate(leakage: Leakage, config: PrepareConfig, name: str, folder: Path) -> None:
    """Write the list of overlaps, or remove an earlier one, and refuse those that are not allowed."""
    claim(folder, "prepare", ["manifest.json", LEAKS], _is_prepared)
    if not leakage.leaks:
        (folder / LEAKS).unlink(missing_ok=True)
        return
    write_files(folder, {LEAKS: leakage.to_csv()}, overwrite=True)
    refuse(leakage, config.allow_leakage, name, f"They are listed in {folder / LEAKS}")


@recipe(PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Prepare a data set."""
    prepared: Prepared = instantiate(config.data)
    check = ImageCheck(prepared.name, config.image_root)
    rows: list[Shown] = []

    def see(split: str) -> Callable[[Sample], None]:
        of = prepared.patient_of
        return lambda sample: rows.append(shown(split, sample, of(sample) if of else None))

    surveys = {name: survey(name, samples, check, see(name)) for name, samples in prepared.splits.items()}
    if not config.dry_run:
        list_unusable(check, Path(config.output_dir).expanduser())
    if check.reasons:
        listed = "" if config.dry_run else f"; all are listed in {Path(config.output_dir).expanduser() / UNUSABLE}"
        found = f"{len(check.reasons)} images cannot be used, of {check.samples_lost()} samples{listed}"
        if config.on_error == "raise":
            raise DataError(
                f"{found}; the first: {next(iter(check.reasons.values()))}\n"
                "Correct image_root, or set on_error=skip to leave their samples out."
            )
        prepared.summary["unusable_images"] = len(check.reasons)
        print(f"note: {found}")
    report_counts(surveys)
    for note in prepared.notes:
        print(f"note: {note}")
    if not any(split.count for split in surveys.values()):
        raise DataError(f"No sample is left: none of the images is in {config.image_root}.")
    leakage = look_for_leakage(config, prepared, check, rows) if config.check_leakage else None
    if config.dry_run:
        print("dry run: nothing was written")
        return
    folder = Path(config.output_dir).expanduser()
    if leakage is not None:
        gate(leakage, config, prepared.name, folder)
    tables = {f"{name}.json": json_bytes(table) for name, table in prepared.tables.items()}
    others = {name: measured(_shown(name, blocks)) for name, blocks in prepared.files.items()}
    files: dict[str, bytes | Content] = {**others}
    files |= {f"{name}.jsonl": split.content for name, split in surveys.items()}
    facts = {"checked": False} if leakage is None else leakage.to_dict(config.allow_leakage)
    files |= tables | {"manifest.json": json_bytes(manifest(prepared, surveys, tables, others, facts))}
    claim(folder, "prepare", ["manifest.json"], _is_prepared)
    written = write_files(folder, files, config.overwrite, free=["manifest.json"])
    print(f"wrote {', '.join(written)} to {folder}" if written else f"{folder} already holds exactly this")


if __name__ == "__main__":
    sys.exit(main())
