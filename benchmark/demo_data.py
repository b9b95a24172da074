"""Draws the small set of WBCAtt that the package ships for its demo.

    MEDTUNE_DATA=/data python benchmark/demo_data.py [--out medtune/assets/demo_wbcatt] [--seed 0]

1,200 training and 40 validation cells are drawn at random from their splits; 60 test cells are drawn from theirs,
twelve of each type, so that each attribute varies. An image is the middle 9/16 of WBCAtt's image, where the cell is, at
64 x 64 pixels (JPEG). The annotations of the drawn cells are copied unchanged. The same seed and data give the same
draw; the bytes of a JPEG depend on Pillow's version.
"""

import argparse
import csv
import io
import random
import tarfile
from pathlib import Path

from PIL import Image

from medtune.config import PACKAGE, data_root
from medtune.data.writing import write_whole
from medtune.errors import ConfigError

TRAIN, VAL, TEST_PER_TYPE = 1200, 40, 12
SIDE, SHARE, QUALITY = 64, 0.5625, 90
Row = dict[str, str]


def read_rows(annotations: Path, split: str) -> list[Row]:
    """The rows of one split's table, in its order."""
    with (annotations / f"pbc_attr_v1_{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(rows: list[Row], split: str, seed: int) -> list[Row]:
    """The drawn rows of a split, in the table's order."""
    rng = random.Random(f"{seed}/{split}")
    if split != "test":
        places = rng.sample(range(len(rows)), TRAIN if split == "train" else VAL)
        return [rows[place] for place in sorted(places)]
    places = []
    for label in sorted({row["label"] for row in rows}):
        places += rng.sample([place for place, row in enumerate(rows) if row["label"] == label], TEST_PER_TYPE)
    return [rows[place] for place in sorted(places)]


def small_image(data: bytes) -> bytes:
    """The middle of an image as a small JPEG."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    sides = [round(SHARE * side) for side in image.size]
    left, top = ((whole - part) // 2 for whole, part in zip(image.size, sides, strict=True))
    middle = image.crop((left, top, left + sides[0], top + sides[1]))
    file = io.BytesIO()
    middle.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY, optimize=True)
    return file.getvalue()


def table(rows: list[Row]) -> bytes:
    """Rows as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def archive(source: Path, paths: list[str]) -> bytes:
    """A tar of the small images, without times and owners, so that it depends on the images alone."""
    file = io.BytesIO()
    with tarfile.open(source) as images, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as out:
        wanted = {path: images.extractfile(path) for path in paths}
        for path, opened in wanted.items():
            assert opened is not None, path
            data = small_image(opened.read())
            member = tarfile.TarInfo(path)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return file.getvalue()


def main() -> None:
    """Draw the set and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=PACKAGE / "assets" / "demo_wbcatt", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    root = data_root()
    if root is None or not (root / "wbcatt" / "wbcatt_128.tar").is_file():
        raise ConfigError("MEDTUNE_DATA must name a folder with wbcatt/annotations and wbcatt/wbcatt_128.tar.")
    drawn = {
        split: draw(read_rows(root / "wbcatt" / "annotations", split), split, arguments.seed)
        for split in ("train", "val", "test")
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, rows in drawn.items():
        write_whole(arguments.out / f"pbc_attr_v1_{split}.csv", table(rows))
    paths = sorted(row["path"] for rows in drawn.values() for row in rows)
    write_whole(arguments.out / "images.tar", archive(root / "wbcatt" / "wbcatt_128.tar", paths))


if __name__ == "__main__":
    main()
