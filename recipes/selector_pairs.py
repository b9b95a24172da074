"""Make pairs of a preferred and a rejected sample from people's choices and a model's ratings, for the selection model.

tune run medtune/recipes/selector_pairs.py --config selector_pairs/biomed_clip human=[annotations.jsonl] \
  records=[conversations.jsonl] ratings=[runs/rate/ratings.jsonl] image_root=images

Writes ``train.jsonl`` and ``val.jsonl``, whose images are others, and the features of all samples (BioMed-VITAL, Sec.
3.2). A killed run continues with the features that it has.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medtune.config import Component, instantiate, recipe
from medtune.curation.feature_store import keep_features
from medtune.curation.features import Features
from medtune.curation.preference_pairs import (
    RecordPair,
    held_out,
    human_pairs,
    model_pairs,
    pair_lines,
    read_judged,
    read_ratings,
)
from medtune.curation.records import Record, read_records
from medtune.data.folders import claim as claim_folder
from medtune.data.images import image_root_of
from medtune.data.writing import file_sha256, json_bytes, write_files
from medtune.errors import DataError
from medtune.evaluation.provenance import commit, versions
from medtune.generation.answering import Skipped
from medtune.models.selector.sides import BORDERS, FEATURES
from medtune.training.runtime import Runtime

WRITES = ("train.jsonl", "val.jsonl", "manifest.json", BORDERS, FEATURES)
"""All files that a run writes into its folder."""
LISTED = 20


@dataclass
class SelectorPairsConfig:
    """Every key of a run that makes pairs."""

    output_dir: str = field(metadata={"help": "folder of train.jsonl, val.jsonl and the features"})
    human: list[str] = field(default_factory=list, metadata={"help": "files of people's choices between two answers"})
    records: list[str] = field(default_factory=list, metadata={"help": "conversations or candidates that were rated"})
    ratings: list[str] = field(default_factory=list, metadata={"help": "ratings.jsonl of the recipe rate"})
    validation: list[str] = field(
        default_factory=list, metadata={"help": "files of people's choices to measure on, in place of validation_share"}
    )
    judge: str | None = field(
        default=None, metadata={"help": "a judge's scores of the human pairs, to compare its agreement (Fig. 2)"}
    )
    model_pairs: int = field(default=20_000, metadata={"help": "pairs drawn from the ratings; 0 draws none"})
    least_gap: float = field(default=0.0, metadata={"help": "ratings of a pair differ by more than this"})
    validation_share: float = field(default=0.2, metadata={"help": "share of the images whose pairs are held out"})
    most_human: int | None = field(default=None, metadata={"help": "at most N human pairs to train on"})
    image_root: str | None = field(default=None, metadata={"help": "folder or .tar of the images"})
    features: Component | None = field(
        default=None, metadata={"help": "frozen encoders; null makes no features, to train the model as a whole"}
    )
    parts: list[int] | None = field(default=None, metadata={"help": "widths of text and image; null: two halves"})
    context: bool = field(default=True, metadata={"help": "caption and mentions follow question and answer"})
    text_limit: int = field(default=4000, metadata={"help": "most characters of a text"})
    batch_size: int = field(default=32, metadata={"help": "samples that are encoded at once"})
    seed: int = field(default=0, metadata={"help": "seed of the split and of the draw of pairs"})
    on_error: Literal["raise", "skip"] = field(default="raise", metadata={"help": "rows and images that are no use"})

    def __post_init__(self) -> None:
        """Refuse invalid sizes, and a run without preferences."""
        if not self.human and not self.ratings:
            raise ValueError("there is no preference: give human, or ratings with their records, or both")
        if bool(self.ratings) != bool(self.records):
            raise ValueError("ratings and records go together: ratings name samples by id")
        if not 0 <= self.validation_share < 1 or self.model_pairs < 0 or self.least_gap < 0:
            raise ValueError("validation_share is from 0 to below 1, model_pairs and least_gap are not negative")
        if self.text_limit < 100 or self.batch_size < 1 or (self.most_human is not None and self.most_human < 1):
            raise ValueError("text_limit must be at least 100, batch_size and most_human at least 1")


@recipe(SelectorPairsConfig)
def main(config: SelectorPairsConfig) -> int:
    """Make the pairs and their features."""
    with Runtime.answering("selector_pairs", remote=False) as runtime:
        return make(config, runtime)


def make(config: SelectorPairsConfig, runtime: Runtime) -> int:
    """Deal the pairs on every process; make the features together; process 0 writes the files."""
    folder = Path(config.output_dir)
    skipped = Skipped(config.on_error == "skip")
    train, val, counts = runtime.on_rank0(lambda: dealt(config, skipped))
    runtime.on_rank0(lambda: claim_folder(folder, "selector_pairs", WRITES, _is_ours))
    every: dict[str, Record] = {}
    for pair in (*train, *val):
        for record in (pair.preferred, pair.rejected):
            known = every.setdefault(record.id, record)
            if known != record:
                raise DataError(
                    f"the id {record.id!r} belongs to two different samples (in human and in records); give each row "
                    "an id of its own"
                )
    records = sorted(every.values(), key=lambda record: (record.image, record.id))
    numbers = {record.id: number for number, record in enumerate(records)}
    if config.features is not None:
        features: Features = instantiate(config.features)
        keep_features(
            folder,
            records,
            features,
            config.parts,
            image_root_of(config.image_root, None) if features.looks else None,
            runtime,
            context=config.context,
            text_limit=config.text_limit,
            batch_size=config.batch_size,
            skip=config.on_error == "skip",
            say=say if runtime.is_main else _silent,
        )
    if runtime.is_main:
        write(config, folder, {"train": train, "val": val}, numbers, counts, skipped)
    return 0


def dealt(config: SelectorPairsConfig, skipped: Skipped) -> tuple[list[RecordPair], list[RecordPair], dict[str, Any]]:
    """Return training pairs, validation pairs, and counts.

    Human pairs of held-out images are the validation pairs; without people's choices, model pairs of these images are.
    No image is in both.
    """
    counts: dict[str, Any] = {}
    judged = None if config.judge is None else read_judged(config.judge)
    human, measured = (_chosen(paths, judged, counts) for paths in (config.human, config.validation))
    _unique([*human, *measured])
    ratings: dict[str, float] = {}
    for path in config.ratings:
        for name, value in read_ratings(path).items():
            if name in ratings:
                raise DataError(f"{path}: the id {name!r} has been rated in another file too; keep one of them.")
            ratings[name] = value
    rated = [record for path in config.records for record in read_records(path, skipped.add)]
    missing = ratings.keys() - {record.id for record in rated}
    if missing:
        raise DataError(
            f"{len(missing)} ratings are of samples that records do not hold (the first: {min(missing)!r}); give the "
            "files that were rated"
        )
    images = {_image(pair.preferred) for pair in measured}

    def held(record: Record) -> bool:
        if measured:
            return _image(record) in images
        return held_out(_image(record), config.validation_share, config.seed)

    inside = [record for record in rated if not held(record)]
    outside = [record for record in rated if held(record)]
    train = [pair for pair in human if not held(pair.preferred)]
    counts["images of the validation"] = {"rated": len(outside), "human": len(human) - len(train)}
    val = measured or [pair for pair in human if held(pair.preferred)]
    train = train[: config.most_human]
    drawn, counts["model"] = model_pairs(inside, ratings, config.model_pairs, config.least_gap, config.seed)
    if not human and not measured and outside:
        most = max(1, int(config.model_pairs * config.validation_share))
        found, counts["model, held out"] = model_pairs(outside, ratings, most, config.least_gap, config.seed + 1)
        val = [replace(pair, id=f"held_{pair.id}") for pair in found]
    if not train and not drawn:
        raise DataError("no pair to train on is left; give more choices or ratings, or lower validation_share")
    counts |= {"train": {"human": len(train), "model": len(drawn)}, "val": len(val)}
    return [*train, *drawn], val, counts


def _chosen(
    paths: list[str], judged: dict[str, tuple[float, float]] | None, counts: dict[str, Any]
) -> list[RecordPair]:
    """Return the pairs of some files of choices, and count them."""
    pairs: list[RecordPair] = []
    for path in paths:
        found, counted = human_pairs(path, judged)
        pairs += found
        counts[f"choices of {Path(path).name}"] = dict(sorted(counted.items()))
    return pairs


def _image(record: Record) -> str:
    """Return what the split goes by: the image, or the row of a sample without one."""
    return record.image or record.row


def _unique(pairs: list[RecordPair]) -> None:
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise DataError(f"two files of choices have the id {pair.id!r}; give each question an id of its own.")
        seen.add(pair.id)


def write(
    config: SelectorPairsConfig,
    folder: Path,
    splits: dict[str, list[RecordPair]],
    numbers: dict[str, int],
    counts: dict[str, Any],
    skipped: Skipped,
) -> None:
    """Write the pairs and the manifest."""
    files = {
        f"{name}.jsonl": b"".join(pair_lines(pairs, numbers, config.context, config.text_limit))
        for name, pairs in splits.items()
        if pairs
    }
    inputs = [
        *config.human,
        *config.validation,
        *config.records,
        *config.ratings,
        *([config.judge] if config.judge else []),
    ]
    manifest = {
        "counts": {**counts, "samples": len(numbers), "skipped": len(skipped.reasons)},
        "skipped": dict(list(sorted(skipped.reasons.items()))[:LISTED]),
        "inputs": {Path(path).name: file_sha256(Path(path).expanduser()) for path in inputs},
        "seed": config.seed,
        "versions": versions(),
        "commit": commit(),
    }
    write_files(folder, {**files, "manifest.json": json_bytes(manifest)}, overwrite=True)
    made = counts["train"]
    print(
        f"{made['human']} human and {made['model']} model pairs to train on, {counts['val']} held out, "
        f"{len(numbers)} samples; written to {folder}"
    )


def _is_ours(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "train.jsonl").is_file()


def _silent(text: str) -> None:
    return None


def say(text: str) -> None:
    """Print a message for the user."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
