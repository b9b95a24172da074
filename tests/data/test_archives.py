import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from medtune.data.archives import png_bytes, tar_blocks
from medtune.errors import DataError


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_png_is_lossless(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 9000])
def test_the_tar_file_is_that_of_the_standard_library(size):
    members = [("a/1.png", bytes(range(256)) * (size // 256) + b"x" * (size % 256)), ("b.png", b"end")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert b"".join(tar_blocks(members)) == buffer.getvalue()


def test_a_path_that_is_too_long():
    with pytest.raises(DataError, match="does not fit into a tar file"):
        list(tar_blocks([("x" * 300, b"")]))
