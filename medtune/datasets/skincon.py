"""SKINCON (Daneshjou et al. 2022): 48 clinical features of photographs of Fitzpatrick17k, as published.

Reports and questions follow InstFree (Kang et al. 2026), section 4.2, with the details of its published code. The
columns that are read are ``ImageID``, the 48 features and ``Do not consider this image``. The unnamed column of row
numbers is not read (the published code treats it as a feature of the image in row 1).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medtune.data.images import ImageRoot
from medtune.data.multiple_choice import open_question, sampled_options
from medtune.data.sample import Sample, report_sample
from medtune.data.tables import read_table
from medtune.datasets.drawing import check_limits, limited, option_question, repeated, value_counts
from medtune.datasets.prepared import Prepared
from medtune.errors import DataError

FEATURES = tuple(
    "Vesicle,Papule,Macule,Plaque,Abscess,Pustule,Bulla,Patch,Nodule,Ulcer,Crust,Erosion,Excoriation,Atrophy,Exudate,"
    "Purpura/Petechiae,Fissure,Induration,Xerosis,Telangiectasia,Scale,Scar,Friable,Sclerosis,Pedunculated,"
    "Exophytic/Fungating,Warty/Papillomatous,Dome-shaped,Flat topped,Brown(Hyperpigmentation),Translucent,"
    "White(Hypopigmentation),Purple,Yellow,Black,Erythema,Comedo,Lichenification,Blue,Umbilicated,Poikiloderma,Salmon,"
    "Wheal,Acuminate,Burrow,Gray,Pigmented,Cyst".split(",")
)
"""The 48 columns, in the order in which a report lists them."""

EXCLUDED = "Do not consider this image"
ATTRIBUTE = "dermatologic feature"
SHARE = 0.1
"""Share of the images for validation, and the same share for test."""


@dataclass(frozen=True)
class Photograph:
    """An annotated image.

    Attributes:
        image: its file name.
        features: the names of the present features in lower case, joined by ", "; empty if none is present.
    """

    image: str
    features: str


def read_photographs(path: Path) -> tuple[list[Photograph], int]:
    """Read the annotation table.

    Returns:
        The images to consider, sorted by name; and the number of images that the annotators excluded.

    Raises:
        DataError: for a missing column, an image that is listed twice, or a cell that is neither 0 nor 1.
    """
    photographs: dict[str, Photograph] = {}
    lines: dict[str, str] = {}
    for where, row in read_table(path, ["ImageID", *FEATURES, EXCLUDED]):
        image = row["ImageID"]
        if not image:
            raise DataError(f"{where}: the cell of column 'ImageID' is empty; fill it in, or remove the row.")
        if image in lines:
            raise DataError(f"{where}: the image {image} was annotated before, in {lines[image]}.")
        lines[image] = where
        present = [name for name in (*FEATURES, EXCLUDED) if _is_one(row[name], name, where)]
        if EXCLUDED not in present:
            photographs[image] = Photograph(image, ", ".join(name.lower() for name in present))
    return [photographs[image] for image in sorted(photographs)], len(lines) - len(photographs)


def split_photographs(photographs: Sequence[Photograph], seed: int) -> dict[str, list[Photograph]]:
    """Draw the splits as the published code does: shuffled once, a tenth for val, a tenth for test, the rest train.

    Raises:
        DataError: for fewer than ten images.
    """
    if len(photographs) < 1 / SHARE:
        raise DataError(
            f"SKINCON: {len(photographs)} images are left, too few to split; are the images in their folder?"
        )
    shuffled = list(photographs)
    random.Random(seed).shuffle(shuffled)
    size = int(len(shuffled) * SHARE)
    return {"train": shuffled[2 * size :], "val": shuffled[:size], "test": shuffled[size : 2 * size]}


def prepare_skincon(
    annotations: str,
    images: str | None = None,
    repeat_train: int = 3,
    seed: int = 0,
    limit_train: int | None = None,
    limit_questions: int | None = None,
) -> Prepared:
    """Convert the annotation table to reports and questions.

    Splits: ``train``, ``val_reports`` and ``test_reports`` hold image-report pairs, ``val`` and ``test`` hold one
    question per image, "What is the dermatologic feature?". An option is the combination of all features of one image.
    The four wrong options are drawn from the combinations of the other images of all splits. The most frequent
    combination of the training split is written to ``training_majority``. Images without features are left out after
    the draw, and counted.

    Args:
        annotations: the table of the Fitzpatrick17k images, such as ``annotations_fitzpatrick17k.csv``.
        images: folder or ``.tar`` of the images; if given, only images that can be read take part in the draw of the
            splits, as in the published code. Many of Fitzpatrick17k's URLs no longer work.
        repeat_train: number of times each training report is written; the published code writes it three times.
        seed: seed of all draws; 0 draws the published splits.
        limit_train: keep this many training reports, drawn at random, before they are repeated.
        limit_questions: keep this many questions in each split, drawn at random.

    Raises:
        ConfigError: for a limit or repeat below 1.
        DataError: if the table is absent or invalid, or fewer than ten images are left to split.
    """
    limits = {"limit_train": limit_train, "limit_questions": limit_questions}
    check_limits(**limits)
    path = Path(annotations).expanduser()
    photographs, excluded = read_photographs(path)
    annotated = len(photographs)
    photographs = _readable(photographs, images) if images else photographs
    groups = split_photographs(photographs, seed)
    described = {split: [photo for photo in group if photo.features] for split, group in groups.items()}
    combinations = sorted({photo.features for group in described.values() for photo in group})
    if len(combinations) < 2 or not described["train"]:
        raise DataError(f"{path}: no two images differ in their features, so that there is nothing to choose from.")
    splits = {
        "train": repeated(limited(_reports("train", described["train"]), limit_train, seed, "train"), repeat_train)
    }
    for split in ("val", "test"):
        splits[f"{split}_reports"] = _reports(split, described[split])
        asked = [_question(split, photo, combinations, seed) for photo in described[split]]
        splits[split] = limited(asked, limit_questions, seed, split)
    trained = value_counts(photo.features for photo in described["train"])
    return Prepared(
        name="skincon",
        splits=splits,
        inputs={"annotations": path},
        options={"repeat_train": repeat_train, "seed": seed, **limits, "images_checked": images is not None},
        tables={"training_majority": {ATTRIBUTE: next(iter(trained))}},
        summary={
            "excluded_by_the_annotators": excluded,
            "images_not_readable": annotated - len(photographs),
            "images_without_a_feature": len(photographs) - sum(len(group) for group in described.values()),
            "combinations": len(combinations),
        },
    )


def _is_one(cell: str, column: str, where: str) -> bool:
    if cell not in ("0", "1", "0.0", "1.0"):
        raise DataError(f"{where}: the cell of column {column!r} must be 0 or 1.")
    return cell[0] == "1"


def _readable(photographs: Sequence[Photograph], images: str) -> list[Photograph]:
    root, readable = ImageRoot(images), []
    for photo in photographs:
        try:
            root.size(photo.image, "SKINCON")
        except DataError:
            continue
        readable.append(photo)
    return readable


def _reports(split: str, group: Sequence[Photograph]) -> list[Sample]:
    return [report_sample(_id(split, photo), (photo.image,), photo.features) for photo in group]


def _question(split: str, photo: Photograph, combinations: Sequence[str], seed: int) -> Sample:
    id = f"{_id(split, photo)}/feature"
    options = sampled_options(photo.features, combinations, random.Random(f"{seed}/{id}"))
    return option_question(id, photo.image, ATTRIBUTE, open_question(ATTRIBUTE), options, photo.features)


def _id(split: str, photo: Photograph) -> str:
    return f"{split}/{Path(photo.image).stem}"
