"""Calls of the prepare recipe for data sets in their owners' layouts."""

import re
from pathlib import Path

import pytest

from medtune.datasets.cbis_ddsm import prepare_cbis_ddsm
from tests.datasets.owners import Mimic, skincon_rows, write_dicom_info, write_picture, write_skincon


def cbis_ddsm(folder: Path, data: Path) -> list[str]:
    """The owners' tables, and crops of ten patients: the others' are left out for want of an image in the list."""
    if not (data / "cbis_ddsm").is_dir():
        pytest.skip(f"the CBIS-DDSM tables are not in {data}")
    splits = prepare_cbis_ddsm(str(data / "cbis_ddsm"), repeat_train=1).splits
    keys = {s.id.split("/")[1] for name in ("train", "val_reports", "test_reports") for s in splits[name]}
    few = sorted(key for key in keys if re.search(r"_P_000\d\d_", key))
    info = write_dicom_info(folder / "dicom_info.csv", few)
    for number in range(len(few)):
        write_picture(
            folder / f"jpeg/1.3.6.1.4.1.9590.100.1.2.{number}/1-{number:03}.jpg", number, (40, 20 + number % 9)
        )
    arguments = [f"data.annotations={data / 'cbis_ddsm'}", f"data.dicom_info={info}", f"image_root={folder}"]
    return ["--config", "prepare/cbis_ddsm", *arguments]


def skincon(folder: Path, data: Path) -> list[str]:
    rows = skincon_rows(80)
    for number, row in enumerate(rows):
        write_picture(folder / "images" / row["ImageID"], number)
    table = write_skincon(folder, rows)
    images = [f"data.images={folder / 'images'}", f"image_root={folder / 'images'}"]
    return ["--config", "prepare/skincon", f"data.annotations={table}", *images]


def mimic_cxr(folder: Path, data: Path) -> list[str]:
    files = Mimic(60).write(folder / "mimic", images=True)
    arguments = [f"data.{name}={path}" for name, path in files.items()]
    return ["--config", "prepare/mimic_cxr", *arguments, f"image_root={folder / 'mimic/files'}"]


DOORS = [cbis_ddsm, skincon, mimic_cxr]
