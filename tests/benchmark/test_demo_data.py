"""The demo's data are the ones that the committed script draws."""

from pathlib import Path

from medtune.config import PACKAGE
from tests.benchmark.scripts import script

demo_data = script("demo_data")
WBCATT = PACKAGE / "assets" / "demo_wbcatt"


def test_the_packaged_cells_are_drawn_from_the_whole_set(medtune_data: Path) -> None:
    for split in ("train", "val", "test"):
        drawn = demo_data.draw(demo_data.read_rows(medtune_data / "wbcatt" / "annotations", split), split, 0)
        assert demo_data.table(drawn) == (WBCATT / f"pbc_attr_v1_{split}.csv").read_bytes()
