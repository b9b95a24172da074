"""The middle of an image, and nothing else, reaches the model."""

import json
from pathlib import Path

import pytest
from PIL import Image

from medtune.data.crops import central_box
from medtune.datasets import jsonl_dataset
from medtune.errors import ConfigError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    image = Image.new("RGB", (128, 64), "black")
    image.paste((255, 0, 0), (32, 16, 96, 48))
    image.save(tmp_path / "a.png")
    row = {"id": "a", "images": ["a.png"], "messages": [{"role": "assistant", "content": "red"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


def test_the_middle_is_kept(rows: Path) -> None:
    source = jsonl_dataset(str(rows / "rows.jsonl"), str(rows), center_crop=0.5)
    image = source.open_images(source[0])[0]
    assert image.size == (64, 32) == source.image_sizes(source[0])[0]
    assert image.getcolors() == [(64 * 32, (255, 0, 0))]


def test_the_crop_is_part_of_the_fingerprint(rows: Path) -> None:
    whole, half = (jsonl_dataset(str(rows / "rows.jsonl"), str(rows), share) for share in (1.0, 0.5))
    assert whole.fingerprint() != half.fingerprint()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_impossible_shares_are_refused(rows: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="center_crop"):
        jsonl_dataset(str(rows / "rows.jsonl"), str(rows), share)


def test_a_tiny_image_keeps_a_pixel() -> None:
    assert central_box(1, 1, 0.1) == (0, 0, 1, 1)
