"""JSON as it comes from users: decoded with errors that name the row, and split into objects without loading a file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medtune.errors import DataError

_BLOCK = 1 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# A whole string, or a string that is still open at the end of the block (then without the group), or a bracket. The
# quantifiers are possessive, so that a string that is never closed is read once and not once per character.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(")?|[\[\]{}]', re.DOTALL)
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+(")?', re.DOTALL)


def decode_json(raw: bytes, where: str) -> Any:
    """Decode one JSON value.

    Args:
        raw: the bytes.
        where: file and row, for messages.

    Raises:
        DataError: if it is not UTF-8, not JSON, has a number of thousands of digits, or half of a surrogate pair, which
            no file and no tokenizer can hold.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: this is not UTF-8 text; save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: this is not valid JSON ({error.msg}); correct or remove the row.") from None
    except RecursionError:
        raise DataError(f"{where}: this is not valid JSON (nested too deep); correct or remove the row.") from None
    except ValueError:
        raise DataError(f"{where}: a number has too many digits; correct or remove the row.") from None
    if _SURROGATE.search(raw) and not _has_whole_characters(value):
        raise DataError(
            f"{where}: a text holds half of a character (a lone surrogate, \\ud800 to \\udfff); correct or remove the "
            "row."
        )
    return value


def _has_whole_characters(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_objects(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the byte range of each object in a JSON file that holds one array, without loading the file.

    Raises:
        DataError: if the file is not an array of objects.
    """
    depth, start = 0, 0
    for at, mark in _structure(path):
        if depth == 0 and mark != b"[":
            raise DataError(f"{path}: this must be a JSON array of objects, beginning with '['.")
        if mark in (b"[", b"{"):
            start = at if depth == 1 else start
            depth += 1
        else:
            depth -= 1
            if depth == 1:
                yield start, at + 1
    if depth:
        raise DataError(f"{path}: the JSON array is cut off; the file is truncated.")


def _structure(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield position and character of each bracket that is not inside a string, reading a block at a time.

    Each byte is read once, also in a string that spans many blocks; only a backslash that ends a block is read again
    with the character after it.
    """
    base, inside, escape = 0, False, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            data = escape + block
            at = 0
            if inside:
                match = _REST_OF_STRING.match(data)
                assert match is not None  # the pattern accepts an empty text
                at, inside = match.end(), match[1] is None
            if not inside:
                for match in _TOKEN.finditer(data, at):
                    at = match.end()
                    if match[0][:1] != b'"':
                        yield base + match.start(), match[0]
                    elif match[1] is None:
                        inside = True
                        break
            escape = b"\\" if inside and at < len(data) else b""
            base += len(data) - len(escape)
