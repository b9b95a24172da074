"""Reads pickle files that hold lists, dicts, tuples, texts and numbers, and refuses everything else.

Some owners ship their annotations as pickles. A pickle is a program: it can name any function of any module and call
it. Here every instruction is looked at first, and a file with an instruction that names, makes or changes an object is
refused before any instruction runs. The unpickler that reads the rest can find no class or function.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn

from medtune.errors import DataError

_ALLOWED = frozenset(
    # the file, the stack and what was read before
    "PROTO FRAME STOP MARK PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE "
    # None, truth values, numbers
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
    # texts, those of Python 2 included
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    # containers
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3".split()
)
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_OBJECTS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4")


class _Unpickler(pickle.Unpickler):
    """The second line of defence: it knows no class and no function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError("it names a class or a function")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it names an object outside of the file")


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of plain containers, texts and numbers.

    Args:
        path: the file; texts of Python 2 must be UTF-8.

    Raises:
        DataError: if the file is absent, is no pickle or is cut off, or holds anything else: a class, a function,
            bytes, a set. Nothing in it has run then.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist; correct its path.")
    content = path.read_bytes()
    _check(content, path)
    try:
        return _Unpickler(io.BytesIO(content), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises errors of many kinds
        raise DataError(f"{path} is not a whole pickle ({type(error).__name__}); copy it again.") from None


def _check(content: bytes, path: Path) -> None:
    """Refuse a file by its instructions, without running any."""
    try:
        for instruction, argument, _ in pickletools.genops(content):
            name = instruction.name
            if name not in _ALLOWED:
                what = (
                    "objects of a class, or calls of a function"
                    if name in _OBJECTS
                    else f"a value of another kind ({name})"
                )
                raise DataError(
                    f"{path} holds {what}; only lists, dicts, tuples, texts and numbers are read, because a pickle can "
                    "run any code. Do not open it with other programs unless you trust its origin."
                )
            # the unpickler would take memory up to that place
            if name in _PUTS and isinstance(argument, int) and argument > len(content):
                raise DataError(f"{path} is not a whole pickle (a wrong place); copy it again.")
    except DataError:
        raise
    except Exception as error:  # genops raises errors of many kinds on damaged files
        raise DataError(f"{path} is not a whole pickle ({type(error).__name__}); copy it again.") from None
