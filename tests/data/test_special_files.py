"""FIFOs, sockets and devices with the name of a file are refused, and never waited for."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from medtune.data.images import ImageRoot
from medtune.data.opening import open_regular, refuse_special, special_kind
from medtune.data.source import JsonlSource
from medtune.data.tables import read_header
from medtune.datasets import llava_json_dataset, report_csv_dataset
from medtune.datasets.medmnist import FACTS
from medtune.datasets.medmnist.npz import MedMnistFile
from medtune.errors import ConfigError, DataError, MedtuneError

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    os.mkfifo(tmp_path / "fifo.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    (tmp_path / "link.png").symlink_to("fifo.png")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "said"), [("fifo.png", r"a FIFO \(named pipe\)"), ("socket.png", "a socket"), ("link.png", "a FIFO")]
)
def test_an_image_that_is_no_file(folder: Path, name: str, said: str) -> None:
    root = ImageRoot(folder)
    for read in (root.size, root.load):
        with pytest.raises(DataError, match=f"t.csv, line 2: the image {name} is {said}.*, not a file; replace it"):
            read(name, "t.csv, line 2")


def test_a_device() -> None:
    assert special_kind("/dev/null") == "a device"
    with pytest.raises(DataError, match="is a device, not a file"):
        open_regular(Path("/dev/null"))
    with pytest.raises(ConfigError, match="/dev/zero is a device, not a file; give a regular file"):
        refuse_special("/dev/zero", ConfigError)


def test_a_fifo_that_takes_the_place_of_a_file_while_it_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtune.data.opening.special_kind", lambda path: None)
    with pytest.raises(DataError, match="is a FIFO"):
        open_regular(folder / "fifo.png")


def test_files_folders_and_absent_paths_pass(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "a", tmp_path / "absent", tmp_path / ("x" * 5000)):
        assert special_kind(path) is None
        refuse_special(path)
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"x"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


@pytest.mark.parametrize(
    "reads",
    [
        lambda path, images: JsonlSource(path, None),
        lambda path, images: llava_json_dataset(str(path)),
        lambda path, images: report_csv_dataset(str(path), str(images)),
        lambda path, images: read_header(path, ["a"]),
        lambda path, images: ImageRoot(path),
        lambda path, images: MedMnistFile(path, FACTS["blood"]),
    ],
    ids=["jsonl", "llava_json", "report_csv", "table", "image_root", "medmnist"],
)
def test_a_data_file_that_is_a_fifo(folder: Path, reads: Callable[[Path, Path], object]) -> None:
    with pytest.raises(MedtuneError, match="fifo.png is a FIFO .*, not a file; give a regular file"):
        reads(folder / "fifo.png", folder)
