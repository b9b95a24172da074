import io

import numpy as np
import pytest
from PIL import Image

from medtune.data.images import ImageRoot
from medtune.data.pixels import to_rgb
from medtune.errors import ConfigError, DataError


def through_disk(tmp_path, image, name, **options):
    """What a reader gets of an image saved under this name."""
    image.save(tmp_path / name, **options)
    loaded = ImageRoot(tmp_path).load(name, "t.csv, line 2")
    assert loaded.mode == "RGB"
    return np.asarray(loaded)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pixels = through_disk(tmp_path, Image.fromarray(values), "a.png")
    assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_twelve_bits_in_sixteen_are_not_black(tmp_path):
    values = np.array([[0, 2048, 4095]], dtype=np.uint16)
    pixels = through_disk(tmp_path, Image.fromarray(values), "a.tif")
    assert pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("highest", [1, 255, 256, 511, 1000, 4095, 4096, 8191, 9000, 32768, 65535])
def test_sixteen_bits_are_scaled_from_the_next_power_of_two(tmp_path, highest):
    values = np.array([[0, highest // 2, highest]], dtype=np.uint16)
    full = next(2**bits - 1 for bits in range(8, 17) if 2**bits > highest)
    for name in ("a.png", "a.tif"):
        shown = through_disk(tmp_path, Image.fromarray(values), name)[0, :, 0]
        assert np.abs(shown - values[0] * (255 / full)).max() <= 0.5


def test_one_brighter_pixel_does_not_make_an_image_of_twelve_bits_black(tmp_path):
    """4095 was white beside 4095, and nearly black beside 4096."""
    values = np.array([[4095, 4096]], dtype=np.uint16)
    assert through_disk(tmp_path, Image.fromarray(values), "a.png")[0, :, 0].tolist() == [127, 128]
    brightest = [np.asarray(to_rgb(Image.fromarray(np.array([[n]], np.uint16)))).max() for n in range(128, 65536, 37)]
    assert min(brightest) >= 127


def test_a_named_depth_keeps_the_brightness_between_images(tmp_path):
    Image.fromarray(np.array([[0, 1000, 4095, 9000]], dtype=np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.array([[0, 1000]], dtype=np.uint16)).save(tmp_path / "b.png")
    Image.fromarray(np.array([[0, 100]], dtype=np.uint8)).save(tmp_path / "c.png")
    root = ImageRoot(tmp_path, grey_bits=12)
    shown = [np.asarray(root.load(f"{name}.png", "w"))[0, :, 0].tolist() for name in "abc"]
    assert shown == [[0, 62, 255, 255], [0, 62], [0, 100]]
    for bits in (7, 17, 0):
        with pytest.raises(ConfigError, match="from 8 to 16 bits"):
            ImageRoot(tmp_path, grey_bits=bits)


def test_sixteen_bit_pgm(tmp_path):
    values = np.array([[0, 65535]], dtype=">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + values.tobytes())
    assert np.asarray(ImageRoot(tmp_path).load("a.pgm", "w"))[0, :, 0].tolist() == [0, 255]


def test_grey_and_bilevel(tmp_path):
    assert through_disk(tmp_path, Image.new("L", (2, 2), 77), "a.png")[0, 0].tolist() == [77] * 3
    assert through_disk(tmp_path, Image.new("1", (2, 2), 1), "b.png")[0, 0].tolist() == [255] * 3


def test_palette(tmp_path):
    image = Image.new("RGB", (4, 4), (200, 30, 60)).quantize(4)
    assert image.mode == "P"
    assert through_disk(tmp_path, image, "a.png")[0, 0].tolist() == [200, 30, 60]


def test_cmyk(tmp_path):
    for name in ("a.jpg", "a.tif"):
        red = through_disk(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), name)[8, 8]
        assert red[0] > 240 and red[1] < 20 and red[2] < 20


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_becomes_black(tmp_path, mode):
    bands = {"RGBA": (200, 100, 50), "LA": (200,)}[mode]
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*bands, alpha))
    pixels = through_disk(tmp_path, image, "a.png")
    full = bands * 3 if len(bands) == 1 else bands
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 1].tolist() == [round(value * 128 / 255) for value in full]
    assert pixels[0, 2].tolist() == list(full)


def test_a_transparent_palette_colour_becomes_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 200, 200])
    image.putpixel((1, 0), 1)
    pixels = through_disk(tmp_path, image, "a.png", transparency=1)
    assert pixels[0].tolist() == [[10, 20, 30], [0, 0, 0]]


def test_pixels_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"t.csv, line 2: the image a.tif holds floating-point.*save it with 8 or 16"):
        ImageRoot(tmp_path).load("a.tif", "t.csv, line 2")
    with pytest.raises(DataError, match="from -5 to 70000, beyond 16 bits"):
        to_rgb(Image.fromarray(np.array([[-5, 70000]], dtype=np.int32)))


def test_rgb_is_handed_on_untouched():
    image = Image.open(io.BytesIO(_png(Image.new("RGB", (1, 1), (1, 2, 3)))))
    image.load()
    assert to_rgb(image) is image


def _png(image):
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
