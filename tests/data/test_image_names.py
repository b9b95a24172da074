"""What a message says of an image that is not found where the row says."""

import os
import tarfile
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from medtune.data.image_names import hidden_part, inside
from medtune.data.images import ImageRoot
from medtune.errors import DataError

WHERE = "rows.jsonl, line 1 (id 'a')"
COMPOSED = unicodedata.normalize("NFC", "Müller")
DECOMPOSED = unicodedata.normalize("NFD", "Müller")


@pytest.fixture(params=["folder", "tar"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> ImageRoot:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("sub/p0.png", "sub/Q1.PNG", f"{DECOMPOSED}.png"):
        Image.new("L", (2, 2)).save(folder / name)
    if request.param == "folder":
        return ImageRoot(folder)
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(folder, arcname=".")
    return ImageRoot(tmp_path / "images.tar")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (r"sub\p0.png", r"'sub\\\\p0.png' is written with backslashes; write 'sub/p0.png'\.$"),
        ("Sub/P0.png", "the image Sub/P0.png is not in .*, but sub/p0.png is; upper and lower case count"),
        ("sub/q1.png", "but sub/Q1.PNG is; upper and lower case count"),
        ("sub/p0.png ", "but sub/p0.png is"),
        (
            f"{COMPOSED}.png",
            r"a file whose name looks the same is: .*Unicode forms \(NFC and NFD\); rename the file, or write the row",
        ),
        ("sub/none.png", "the image sub/none.png is not in .*; correct the path or the image root, or add the file"),
    ],
)
def test_the_message_says_which_similar_image_is_there(root: ImageRoot, name: str, said: str) -> None:
    for read in (root.size, root.load):
        with pytest.raises(DataError, match=said) as caught:
            read(name, WHERE)
        assert str(caught.value).startswith(WHERE)
    assert root.size("sub/p0.png", WHERE) == (2, 2)


def test_an_absolute_path_inside_the_root_is_shown_relative(tmp_path: Path) -> None:
    (tmp_path / "real/sub").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "real/sub/a.png")
    (tmp_path / "link").symlink_to("real")
    for base in (tmp_path / "real", tmp_path / "link"):
        with pytest.raises(DataError, match="is absolute; it lies below the image root, so write 'sub/a.png'"):
            ImageRoot(base).size(f"{base}/sub/a.png", WHERE)
    with pytest.raises(DataError, match="so write 'sub/a.png'"):
        ImageRoot(tmp_path / "link").size(f"{tmp_path}/real/sub/a.png", WHERE)
    for outside in (f"{tmp_path}/realm/a.png", f"{tmp_path}/real/../secret.png", f"{tmp_path}/real"):
        with pytest.raises(DataError, match="leaves the image root"):
            ImageRoot(tmp_path / "real").size(outside, WHERE)


def test_a_relative_root_is_compared_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert inside(f"{tmp_path}/images/a.png", Path("images")) == "a.png"


def test_a_path_that_repeats_the_end_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "data/images").mkdir(parents=True)
    Image.new("L", (2, 2)).save(tmp_path / "data/images/a.png")
    for name in ("images/a.png", "data/images/a.png"):
        with pytest.raises(DataError, match="but a.png is: the path repeats the end of the image root; remove it"):
            ImageRoot(tmp_path / "data/images").size(name, WHERE)
    with pytest.raises(DataError, match="correct the path or the image root"):
        ImageRoot(tmp_path / "data/images").size("other/a.png", WHERE)


def test_another_suffix_of_the_same_name(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.b.png")
    for name in ("a.b.jpg", "a.b.dcm"):
        with pytest.raises(DataError, match=f"the image {name} is not in .*, but a.b.png is; correct the path"):
            ImageRoot(tmp_path).size(name, WHERE)


def test_a_file_that_was_added_later_is_seen(tmp_path: Path) -> None:
    root = ImageRoot(tmp_path)
    with pytest.raises(DataError, match="correct the path or the image root"):
        root.size("A.png", WHERE)
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    os.utime(tmp_path, ns=(1, 1))
    with pytest.raises(DataError, match="but a.png is; upper and lower case"):
        root.size("A.png", WHERE)


def test_a_resource_file_of_macos_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(100))
    with pytest.raises(DataError, match=r"the file \._a.png is a resource file of macOS, no image; remove the row"):
        ImageRoot(tmp_path).size("._a.png", WHERE)


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("benign/a.png", False),
        ("a..b/c.png", False),
        ("thumbs/a.png", False),
        (".ipynb_checkpoints/a-checkpoint.png", True),
        ("benign/.ipynb_checkpoints/a-checkpoint.png", True),
        ("__MACOSX/benign/._a.png", True),
        ("__MACOSX/benign/a.png", True),
        ("benign/._a.png", True),
        ("benign/.DS_Store", True),
        ("benign/Thumbs.db", True),
        ("benign/desktop.ini", True),
        ("benign/@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", True),
        ("System Volume Information/a.png", True),
        ("$RECYCLE.BIN/a.png", True),
        ("benign/~$a.png", True),
    ],
)
def test_what_counts_as_hidden(name: str, hidden: bool) -> None:
    assert (hidden_part(name) is not None) is hidden


def test_resource_files_of_macos_are_counted_together() -> None:
    assert {hidden_part(f"a/._{number}.png") for number in range(3)} == {"._*"}
    assert hidden_part("a/.ipynb_checkpoints/x.png") == ".ipynb_checkpoints"
