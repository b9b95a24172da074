"""Turn a data set, as its owners ship it, into medtune's JSON Lines with a manifest.

    tune run medtune/recipes/prepare.py --config prepare/wbcatt output_dir=prepared/wbcatt

Writes one ``<split>.jsonl`` per split and ``manifest.json``: SHA-256 of what was read and written, counts, options and
seed. The same inputs and options give the same bytes. ``dry_run=true`` prints the counts and writes nothing.
"""

import hashlib
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from medtune import __version__
from medtune.config import Component, instantiate, recipe
from medtune.data.images import ImageRoot
from medtune.data.writing import json_bytes, jsonl_bytes, sha256, write_files
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError


@dataclass
class PrepareConfig:
    """Keys of a prepare config."""

    data: Component = field(metadata={"help": "component that returns a Prepared data set"})
    output_dir: str = field(metadata={"help": "folder of the JSON Lines"})
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images; null: not checked"})
    on_error: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "skip: leave out, count and list the samples whose image cannot be used"}
    )
    overwrite: bool = field(default=False, metadata={"help": "replace files of a different content in output_dir"})
    dry_run: bool = field(default=False, metadata={"help": "print the counts and write nothing"})


def unusable_images(prepared: Prepared, image_root: str) -> dict[str, str]:
    """Return the reason for each image that is missing or does not begin like one."""
    root = ImageRoot(image_root)
    reasons = {}
    for image, id in tqdm(list(prepared.images()), desc="check images", unit="image", leave=False):
        try:
            root.size(image, f"{prepared.name} (id {id!r})")
        except DataError as error:
            reasons[image] = str(error)
    return reasons


def without(prepared: Prepared, reasons: dict[str, str]) -> dict[str, list[str]]:
    """Drop the samples of unusable images from the splits; return their ids, by split."""
    dropped = {}
    for name, samples in prepared.splits.items():
        dropped[name] = [sample.id for sample in samples if reasons.keys() & set(sample.images)]
        prepared.splits[name] = [sample for sample in samples if not reasons.keys() & set(sample.images)]
    return {name: ids for name, ids in dropped.items() if ids}


def manifest(prepared: Prepared, files: dict[str, bytes], dropped: dict[str, list[str]]) -> dict[str, Any]:
    """Return what the output is made of, without a path or a date, so that it can be compared between machines."""
    inputs = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in prepared.inputs.values()}
    return {
        "dataset": prepared.name,
        "options": prepared.options,
        "counts": prepared.counts(),
        **prepared.summary,
        "skipped": dropped,
        "inputs": inputs,
        "outputs": {name: sha256(data) for name, data in files.items()},
        "versions": {"medtune": __version__, "python": platform.python_version()},
    }


def report_counts(prepared: Prepared, dropped: dict[str, list[str]]) -> None:
    """Print the number of samples of each split, and of those left out."""
    for name, count in prepared.counts().items():
        left_out = f"  ({len(dropped[name])} left out: image missing or unreadable)" if name in dropped else ""
        print(f"{name:14} {count:7,}{left_out}")


@recipe(PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Prepare a data set."""
    prepared: Prepared = instantiate(config.data)
    reasons = unusable_images(prepared, config.image_root) if config.image_root else {}
    if reasons and config.on_error == "raise":
        raise DataError(
            f"{len(reasons)} images cannot be used; the first: {next(iter(reasons.values()))}\n"
            "Correct image_root, or set on_error=skip to leave their samples out."
        )
    dropped = without(prepared, reasons)
    report_counts(prepared, dropped)
    if not any(prepared.splits.values()):
        raise DataError(f"No sample is left: none of the images is in {config.image_root}.")
    if config.dry_run:
        print("dry run: nothing was written")
        return
    files = {f"{name}.jsonl": jsonl_bytes(samples) for name, samples in prepared.splits.items()}
    files |= {f"{name}.json": json_bytes(table) for name, table in prepared.tables.items()}
    described = files | {"manifest.json": json_bytes(manifest(prepared, files, dropped))}
    folder = Path(config.output_dir).expanduser()
    written = write_files(folder, described, config.overwrite, free=["manifest.json"])
    print(f"wrote {', '.join(written)} to {folder}" if written else f"{folder} already holds exactly this")


if __name__ == "__main__":
    sys.exit(main())
