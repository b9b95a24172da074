"""Whether the data of a PNG fill the size that its header names, without making the image."""

import struct
import zlib
from typing import Literal

_SIGNATURE = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_BEST_RATIO = 1032  # no DEFLATE stream becomes larger than this many times its size
_BLOCK = 1 << 16


def raw_bytes(width: int, height: int, bits: int, colour: int, interlaced: bool) -> int:
    """Return the number of bytes that a PNG's image data have once decompressed (PNG specification, 7.2 and 8.2).

    Args:
        width: in pixels.
        height: in pixels.
        bits: of a sample.
        colour: PNG's colour type.
        interlaced: whether the rows are in the seven passes of Adam7.
    """
    parts = [(width, height)]
    if interlaced:
        parts = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _PASSES]
    row_bits = bits * _SAMPLES.get(colour, 1)
    return sum(rows * (1 + -(-columns * row_bits // 8)) for columns, rows in parts if columns > 0 and rows > 0)


def filled(data: bytes, most: int) -> Literal["exactly", "less", "more", "damaged", "unknown"]:
    """Compare a PNG's image data with the size in its header.

    Args:
        data: the whole file.
        most: raw bytes up to which the data are decompressed, which takes a third of the time of decoding; of a larger
            image only a size that no compression can reach is noticed.

    Returns:
        How far the data fill the image; "damaged" for data that cannot be decompressed, "unknown" for a large image.
    """
    if len(data) < _SIGNATURE + 25:
        return "unknown"
    width, height, bits, colour, _, _, interlace = struct.unpack(">IIBBBBB", data[_SIGNATURE + 8 : _SIGNATURE + 21])
    wanted = raw_bytes(width, height, bits, colour, interlace == 1)
    parts = _image_data(data)
    if wanted > _BEST_RATIO * sum(len(part) for part in parts) + _BLOCK:
        return "less"
    if wanted > most:
        return "unknown"
    stream, found = zlib.decompressobj(), 0
    try:
        for part in parts:
            while part and found <= wanted and not stream.eof:
                found += len(stream.decompress(part, _BLOCK))
                part = stream.unconsumed_tail
    except zlib.error:
        return "damaged"
    return "exactly" if found == wanted else "less" if found < wanted else "more"


def _image_data(data: bytes) -> list[bytes]:
    parts, at = [], _SIGNATURE
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            parts.append(data[at + 8 : at + 8 + size])
        at += 12 + size
    return parts
