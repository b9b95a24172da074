import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from medtune.data import images
from medtune.data.images import ImageRoot, image_of_bytes
from medtune.errors import DataError

WHERE = "reports.csv, line 7 (id 'p1')"


def noise(size=(600, 400)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(params=["folder", "tar"])
def root(request, tmp_path):
    """One set of files as a folder and as a tar."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    noise().save(folder / "deep/photo.jpg")
    noise().save(folder / "deep/big.png")
    noise((3, 2)).save(folder / "small.png")
    whole = (folder / "deep/photo.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.png").write_bytes((folder / "deep/big.png").read_bytes()[:-5000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image at all")
    (folder / "scan.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
    (folder / "figure.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    noise((4, 4)).save(folder / "film.gif", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    turned = Image.Exif()
    turned[0x0112] = 6
    noise((30, 20)).save(folder / "turned.jpg", exif=turned)
    if request.param == "folder":
        return ImageRoot(folder)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, arcname=".")
    return ImageRoot(tmp_path / "images.tar")


def test_images_are_found_and_measured(root):
    for name, size in (("deep/photo.jpg", (600, 400)), ("deep/big.png", (600, 400)), ("./small.png", (3, 2))):
        assert root.size(name, WHERE) == size
        image = root.load(name, WHERE)
        assert (image.mode, image.size) == ("RGB", size)
    assert np.array_equal(np.asarray(root.load("deep/big.png", WHERE)), np.asarray(noise()))


def test_a_turned_photo_stands_upright(root):
    assert root.size("turned.jpg", WHERE) == (20, 30) == root.load("turned.jpg", WHERE).size


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""EXIF's orientations: the picture that is meant, of the one that is stored."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_every_orientation_is_measured_and_turned(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise((7, 4)).save(tmp_path / f"a.{suffix}", exif=exif)
    expected = UPRIGHT[orientation](np.asarray(noise((7, 4))))
    found = ImageRoot(tmp_path)
    height, width = expected.shape[:2]
    assert found.size(f"a.{suffix}", WHERE) == (width, height) == found.load(f"a.{suffix}", WHERE).size
    if suffix == "png":
        assert np.array_equal(np.asarray(found.load("a.png", WHERE)), expected)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.png", "the image none.png is not in .*add the file"),
        ("deep", "the image deep "),
        ("cut.jpg", "cut.jpg is truncated or damaged .*replace it"),
        ("cut.png", "cut.png is truncated or damaged .*replace it"),
        ("empty.png", "the file empty.png is empty; replace it"),
        ("text.png", "the file text.png is no image that can be read; replace it"),
        ("scan.dcm", "the image scan.dcm is a DICOM file without an image"),
        ("figure.eps", "no image that can be read"),
        ("film.gif", "holds 2 frames; save the one"),
        ("../images.tar", "leaves the image root"),
        ("deep/../small.png", "leaves the image root"),
        ("/etc/hostname", "leaves the image root"),
        ("C:\\scan.png", "leaves the image root"),
        ("\\\\server\\scan.png", "leaves the image root"),
        ("", "path of the image is empty"),
        ("a\0b.png", "characters that cannot be printed"),
        ("x" * 5000, "the image xxx"),
    ],
)
def test_a_bad_image_is_named_before_and_during_training(root, name, said):
    for read in (root.size, root.load):
        with pytest.raises(DataError, match=said) as caught:
            read(name, WHERE)
        assert str(caught.value).startswith(WHERE)


def test_a_link_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "secret").mkdir()
    noise((2, 2)).save(tmp_path / "secret/a.png")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret/a.png")
    (folder / "way").symlink_to(tmp_path / "secret")
    (folder / "loop.png").symlink_to("loop.png")
    noise((2, 2)).save(folder / "real.png")
    (folder / "inner.png").symlink_to("real.png")
    root = ImageRoot(folder)
    assert root.load("inner.png", WHERE).size == (2, 2)
    for name in ("link.png", "way/a.png"):
        with pytest.raises(DataError, match="is a link that leaves the image root"):
            root.load(name, WHERE)
    with pytest.raises(DataError, match="loop.png"):
        root.load("loop.png", WHERE)


def test_a_root_that_is_itself_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    noise((2, 2)).save(tmp_path / "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert ImageRoot(tmp_path / "link").load("a.png", WHERE).size == (2, 2)


def test_an_image_made_to_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    noise((11, 10)).save(tmp_path / "a.png")
    noise((10, 10)).save(tmp_path / "b.png")
    root = ImageRoot(tmp_path)
    assert root.size("b.png", WHERE) == (10, 10)
    for read in (root.size, root.load):
        with pytest.raises(DataError, match="a.png has more than 100 pixels"):
            read("a.png", WHERE)


def test_a_bomb_by_pillows_own_measure(tmp_path):
    header = b"P6 30000 30000 255\n"
    (tmp_path / "a.ppm").write_bytes(header + b"\0" * 10)
    with pytest.raises(DataError, match="a.ppm has more than 80,000,000 pixels"):
        ImageRoot(tmp_path).load("a.ppm", WHERE)


def test_an_image_in_memory_is_that_of_the_file(root):
    for name in ("deep/photo.jpg", "deep/big.png", "turned.jpg"):
        with root._opened(name, WHERE) as found:
            data = found.read()
        assert image_of_bytes(data, "here") == root.load(name, WHERE)


def test_an_image_in_memory_is_refused_as_that_of_a_file(root):
    buffer = io.BytesIO()
    noise((20, 10)).save(buffer, format="PNG")
    assert image_of_bytes(buffer.getvalue(), "here", max_pixels=200).size == (20, 10)
    for data, most, said in (
        (buffer.getvalue(), 199, "has more than 199 pixels"),
        (b"not an image", None, "no image that can be read"),
        (b"", None, "is empty"),
        (buffer.getvalue()[:-200], None, "truncated or damaged"),
    ):
        with pytest.raises(DataError, match=f"here.*{said}"):
            image_of_bytes(data, "here", most)


def test_roots_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        ImageRoot(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="not a plain tar file"):
        ImageRoot(tmp_path / "a.txt")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.txt", arcname="a.txt")
    with pytest.raises(DataError, match="uncompressed"):
        ImageRoot(tmp_path / "a.tar.gz")


def test_of_two_members_of_one_name_the_last_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for width in (3, 5):
            data = io.BytesIO()
            noise((width, 2)).save(data, "PNG")
            member = tarfile.TarInfo("a.png")
            member.size = data.tell()
            archive.addfile(member, io.BytesIO(data.getvalue()))
    assert ImageRoot(tmp_path / "a.tar").size("a.png", WHERE) == (5, 2)


def test_a_root_travels_to_workers(root):
    copy = pickle.loads(pickle.dumps(root))
    assert copy.load("small.png", WHERE).size == (3, 2)


def test_a_tar_costs_little_memory_per_member(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(3000):
            archive.addfile(tarfile.TarInfo(f"some/long/folder/name/{number:08}.png"))
    assert len(pickle.dumps(ImageRoot(tmp_path / "a.tar"))) < 3000 * 24 + 2000
