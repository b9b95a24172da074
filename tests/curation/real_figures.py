"""Figures of real images for the pipeline in miniature: radiological images of VQA-RAD and blood cells of WBCAtt.

    MEDTUNE_DATA=/data python tests/curation/real_figures.py FOLDER [COUNT]

Neither data set has captions. An image of VQA-RAD gets what its clinicians said of it, as question and answer; a cell
gets its annotated attributes. FOLDER gets ``figures.json`` and ``images``.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from medtune.config import data_root

ORGANS = {"HEAD": "Image of the head", "CHEST": "Image of the chest", "ABD": "Image of the abdomen"}
ATTRIBUTES = ("cell_size", "cell_shape", "nucleus_shape", "cytoplasm_colour", "granule_type", "granule_colour")


def radiology(data: Path, count: int) -> list[tuple[Path, dict[str, Any]]]:
    """Images of VQA-RAD's training questions with what was said of them."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((data / "trainset.json").read_text(encoding="utf-8")):
        if (data / "images" / row["image_name"]).is_file():
            rows.setdefault(row["image_name"], []).append(row)
    found = []
    for name, asked in list(rows.items())[:count]:
        said = [f"{row['question']} {row['answer']}." for row in asked[:3]]
        caption = f"{ORGANS[asked[0]['image_organ']]}. {said[0]}"
        domain = {"chest_xray": asked[0]["image_organ"] == "CHEST"}
        figure = {"id": f"rad_{Path(name).stem}", "domain": domain, "caption": caption, "mentions": said[1:]}
        found.append((data / "images" / name, figure))
    return found


def cells(data: Path, count: int) -> list[tuple[Path, dict[str, Any]]]:
    """Cells of WBCAtt with their attributes."""
    found = []
    for path in sorted((data / "annotations").glob("*train*.csv")):
        for row in csv.DictReader(path.open(encoding="utf-8")):
            image = data / "images" / row["path"]
            if image.is_file() and len(found) < count:
                said = ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in ATTRIBUTES)
                caption = f"Smear of peripheral blood with a {row['label'].lower()}: {said}."
                found.append((image, {"id": f"cell_{Path(image).stem}", "caption": caption, "mentions": []}))
    return found


def write_figures(data: Path, folder: Path, count: int) -> None:
    """Write ``count`` figures, half of each kind, and their images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    figures = []
    for path, figure in [*radiology(data / "vqa_rad", count - count // 2), *cells(data / "wbcatt", count // 2)]:
        name = f"{figure['id']}{path.suffix}"
        shutil.copy(path, folder / "images" / name)
        figures.append({**figure, "image": name})
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
    print(f"{len(figures)} figures: {folder / 'figures.json'}")


if __name__ == "__main__":
    root = data_root()
    assert root is not None, "set MEDTUNE_DATA"
    write_figures(root, Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 24)
