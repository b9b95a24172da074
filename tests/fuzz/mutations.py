"""What the fuzz tests share: damaged copies of whole files, the same in every run."""

from collections.abc import Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

NUMBERS = (0, 1, 2, 3, 8, 16, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
"""Numbers at which lengths, counts and offsets go wrong."""


def bounded(examples: int) -> settings:
    """The same inputs in every run, as many as given."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw: st.DrawFn, files: Sequence[bytes], header: int = 200) -> bytes:
    """A copy of one of the files with one to four damages, most of them in its first bytes.

    Args:
        draw: given by hypothesis.
        files: whole files.
        header: number of bytes in which two thirds of the damages are.
    """
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        most = len(data) - 1
        at = draw(st.one_of(st.integers(0, min(header, most)), st.integers(0, min(header, most)), st.integers(0, most)))
        kind = draw(st.sampled_from(["byte", "number", "cut", "remove", "repeat", "insert"]))
        if kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            width, order = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from(["little", "big"]))
            number = draw(st.sampled_from(NUMBERS)) % 256**width
            data[at : at + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
        elif kind == "cut":
            del data[at:]
        else:
            length = draw(st.integers(1, 16))
            piece = bytes(data[at : at + length]) if kind != "insert" else draw(st.binary(max_size=16))
            data[at : at + (length if kind == "remove" else 0)] = b"" if kind == "remove" else piece
    return bytes(data)
