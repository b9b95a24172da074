"""The middle of an image, and nothing else, reaches the model."""

import json
from pathlib import Path

import pytest
from PIL import Image

from medtune.data.crops import central_box, padded_box
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


def test_a_square_holds_the_whole_image_in_its_shape(rows: Path) -> None:
    source = jsonl_dataset(str(rows / "rows.jsonl"), str(rows), pad_to_square=56)
    image = source.open_images(source[0])[0]
    assert image.size == (56, 56) == source.image_sizes(source[0])[0]
    fitted = Image.open(rows / "a.png").resize((56, 28), Image.Resampling.LANCZOS)
    assert image.crop((0, 14, 56, 42)).tobytes() == fitted.tobytes()
    assert image.crop((0, 0, 56, 14)).getbbox() is None is image.crop((0, 42, 56, 56)).getbbox()


def test_the_crop_comes_before_the_square(rows: Path) -> None:
    source = jsonl_dataset(str(rows / "rows.jsonl"), str(rows), center_crop=0.5, pad_to_square=40)
    image = source.open_images(source[0])[0]
    assert image.getbbox() == (0, 10, 40, 30) and image.getpixel((20, 20)) == (255, 0, 0)
    assert source.where(source[0]) == "rows.jsonl, line 1 (id 'a')" and len(source) == 1


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(100, 50, (0, 10, 40, 30)), (50, 100, (10, 0, 30, 40)), (3, 3, (0, 0, 40, 40)), (4000, 1, (0, 19, 40, 20))],
)
def test_the_place_of_an_image_in_its_square(width: int, height: int, box: tuple[int, int, int, int]) -> None:
    assert padded_box(width, height, 40) == box


def test_the_square_is_part_of_the_fingerprint_and_has_a_side(rows: Path) -> None:
    file = str(rows / "rows.jsonl")
    prints = {jsonl_dataset(file, str(rows), pad_to_square=side).fingerprint() for side in (None, 1, 56, 560)}
    assert len(prints | {jsonl_dataset(file, str(rows), center_crop=0.5).fingerprint()}) == 5
    with pytest.raises(ConfigError, match="pad_to_square is 0"):
        jsonl_dataset(file, str(rows), pad_to_square=0)
