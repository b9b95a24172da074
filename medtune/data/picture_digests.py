"""Digests of decoded images, by which identical and similar images are found; kept, so that each is read once."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image
from torch.utils.data import Dataset

from medtune.data.images import ImageRoot
from medtune.data.preflight_record import file_stamp
from medtune.data.workers import InOrder
from medtune.data.writing import file_sha256, write_files
from medtune.errors import ConfigError, DataError
from medtune.progress import tqdm

SUFFIX = ".pixels"
KEPT_FILES = 64
_BLOCK = 64
_WORKERS_FROM = 1000  # images; starting processes takes longer than reading fewer
_CODE = ("images.py", "pixels.py", "dicom.py", "picture_digests.py")


class Picture(NamedTuple):
    """What an image looks like.

    Attributes:
        pixels: SHA-256 of its size and its 8-bit RGB pixels.
        look: 64-bit perceptual hash (pHash); None if it was not asked for.
    """

    pixels: bytes
    look: int | None = None


def picture(image: Image.Image, look: bool = False) -> Picture:
    """Compute the digests of a decoded image.

    Args:
        image: As :meth:`medtune.data.images.ImageRoot.load` returns it.
        look: Whether to compute the perceptual hash too.

    Raises:
        ConfigError: If the package of perceptual hashes is not installed.
    """
    pixels = hashlib.sha256(f"{image.width}x{image.height}".encode() + image.tobytes()).digest()
    return Picture(pixels, _look(image) if look else None)


def _look(image: Image.Image) -> int:
    try:
        import imagehash
    except ImportError:
        raise ConfigError(
            "near_duplicates needs the package ImageHash; run: pip install -c constraints.txt -e '.[leakage]'"
        ) from None
    bits = imagehash.phash(image).hash.ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class PictureDigests:
    """The digests of the images of one root.

    Args:
        root: Folder or tar file of the images.
        folder: Where digests are kept between runs; None keeps none. An image is read again if its file (for a tar,
            the tar) changes its size or time.
        look: Whether to compute perceptual hashes.
        num_workers: Processes that decode images; None takes one for each core, at most 8, if there are many images.
        progress: Show a bar.
    """

    def __init__(
        self,
        root: ImageRoot,
        folder: Path | None = None,
        *,
        look: bool = False,
        num_workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.root, self.folder, self.look = root, folder, look
        self.num_workers, self.progress = num_workers, progress

    def of(self, names: Iterable[str]) -> dict[str, Picture]:
        """Return the digests of images by name; an image that cannot be read is left out.

        Args:
            names: Paths relative to the root.
        """
        wanted = list(dict.fromkeys(names))
        known = self._load()
        stamps = self._stamps(wanted)
        fresh = [name for name in wanted if not self._holds(known.get(name), stamps[name])]
        found = self._read(fresh)
        known |= {name: (stamps[name], one) for name, one in found.items()}
        if found and self.folder is not None:
            self._save(known)
        unusable = set(fresh) - found.keys()
        return {name: known[name][1] for name in wanted if name not in unusable}

    def unread(self, names: Iterable[str]) -> int:
        """Return the number of images whose digests are not kept."""
        wanted, known = list(dict.fromkeys(names)), self._load()
        stamps = self._stamps(wanted)
        return sum(not self._holds(known.get(name), stamps[name]) for name in wanted)

    def _holds(self, kept: tuple[tuple[int, int], Picture] | None, stamp: tuple[int, int]) -> bool:
        """Return whether the digests of a file are kept and the file has not changed since."""
        return kept is not None and kept[0] == stamp and not (self.look and kept[1].look is None)

    def _stamps(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        paths = {name: (self.root.files([name]) or [""])[0] for name in names}
        stamps = {path: file_stamp(os.fsencode(path)) for path in set(paths.values())}
        return {name: stamps[path] for name, path in paths.items()}

    def _read(self, names: Sequence[str]) -> dict[str, Picture]:
        blocks = [names[at : at + _BLOCK] for at in range(0, len(names), _BLOCK)]
        automatic = min(8, os.cpu_count() or 1) if len(names) >= _WORKERS_FROM else 0
        workers = automatic if self.num_workers is None else self.num_workers
        found: dict[str, Picture] = {}
        bar = tqdm(total=len(names), desc="compare images", unit="image", disable=not self.progress, leave=False)
        with bar, closing(InOrder(_Digested(self.root, self.look), blocks, min(workers, len(blocks)))) as results:
            for block in blocks:
                found |= {name: one for name, one in zip(block, results.next(), strict=True) if one is not None}
                bar.update(len(block))
        return found

    @property
    def _path(self) -> Path:
        assert self.folder is not None
        key = hashlib.sha256(self._made_of.encode()).hexdigest()[:16]
        return self.folder / f"{self.root.path.name[:40]}-{key}{SUFFIX}"

    @property
    def _made_of(self) -> str:
        code = [file_sha256(Path(__file__).with_name(name)) for name in _CODE]
        return json.dumps([str(self.root.path.resolve()), PIL.__version__, code])

    def _load(self) -> dict[str, tuple[tuple[int, int], Picture]]:
        """Return the kept digests by name; a file that cannot be used is the same as none."""
        if self.folder is None:
            return {}
        with suppress(OSError, ValueError, KeyError):
            return dict(_parsed(self._path.read_bytes(), self._made_of))
        return {}

    def _save(self, known: dict[str, tuple[tuple[int, int], Picture]]) -> None:
        assert self.folder is not None
        with suppress(OSError, DataError):  # the next run reads the images again
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_files(self.folder, {self._path.name: _written(known, self._made_of)}, overwrite=True)
            kept = sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in kept[KEPT_FILES:]:
                path.unlink(missing_ok=True)


class _Digested(Dataset[Any]):
    """Digests of blocks of images; None for one that cannot be read, which the data check reports."""

    def __init__(self, root: ImageRoot, look: bool) -> None:
        self.root, self.look = root, look

    def __getitem__(self, names: Sequence[str]) -> list[Picture | None]:
        return [self._one(name) for name in names]

    def _one(self, name: str) -> Picture | None:
        try:
            return picture(self.root.load(name, "leakage"), self.look)
        except DataError:
            return None


def tar_pictures(blocks: Callable[[], Iterator[bytes]], look: bool = False) -> dict[str, Picture]:
    """Return the digests of the images of a tar file that is not on disk yet.

    Args:
        blocks: Yields the bytes of the tar file.
        look: Whether to compute perceptual hashes.
    """
    import tarfile

    found = {}
    with tarfile.open(fileobj=io.BufferedReader(_Blocks(blocks())), mode="r|") as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                found[member.name] = picture(Image.open(io.BytesIO(file.read())).convert("RGB"), look)
    return found


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            self._rest = next(self._blocks, b"")
            if not self._rest:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _written(known: dict[str, tuple[tuple[int, int], Picture]], made_of: str) -> bytes:
    arrays: dict[str, Any] = {
        "header": np.frombuffer(json.dumps({"made_of": made_of, "names": list(known)}).encode(), dtype=np.uint8),
        "stamps": np.asarray([stamp for stamp, _ in known.values()], dtype=np.int64).reshape(-1, 2),
        "pixels": np.frombuffer(b"".join(one.pixels for _, one in known.values()), dtype=np.uint8).reshape(-1, 32),
        "looks": np.asarray([one.look or 0 for _, one in known.values()], dtype=np.uint64),
        "looked": np.asarray([one.look is not None for _, one in known.values()], dtype=bool),
    }
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def _parsed(raw: bytes, made_of: str) -> Iterator[tuple[str, tuple[tuple[int, int], Picture]]]:
    if hashlib.sha256(raw[32:]).digest() != raw[:32]:
        raise ValueError("damaged")
    with np.load(io.BytesIO(raw[32:]), allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in saved.files}
    header = json.loads(arrays["header"].tobytes())
    if header["made_of"] != made_of:
        raise ValueError("made of other files")
    for at, name in enumerate(header["names"]):
        seen = Picture(arrays["pixels"][at].tobytes(), int(arrays["looks"][at]) if arrays["looked"][at] else None)
        yield name, ((int(arrays["stamps"][at][0]), int(arrays["stamps"][at][1])), seen)
