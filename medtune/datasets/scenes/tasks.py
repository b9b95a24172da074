"""The seven tasks of FLARE 2D about a scene: the answer of each, in the form of FLARE's answers."""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType

from medtune.datasets.scenes.draw import TYPES, Scene
from medtune.datasets.scenes.wording import LETTERS

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _letter(scene: Scene) -> str:
    return LETTERS[TYPES.index(scene.largest.kind)]


def _kinds(scene: Scene) -> str:
    return "; ".join(scene.kinds)


def _boxes(scene: Scene) -> str:
    return _compact([list(cell.box) for cell in scene.cells])


def _boxes_of_kinds(scene: Scene) -> str:
    return _compact({kind: [list(cell.box) for cell in scene.cells if cell.kind == kind] for kind in scene.kinds})


def _report(scene: Scene) -> str:
    counts = {kind: sum(cell.kind == kind for cell in scene.cells) for kind in scene.kinds}
    parts = [f"{_NUMBERS[n]} {kind}{'' if n == 1 else 's'}" for kind, n in counts.items()]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"There {'is' if len(scene.cells) == 1 else 'are'} {listed}. The largest cell is a {scene.largest.kind}."


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


ANSWERS: Mapping[str, Callable[[Scene], str]] = MappingProxyType(
    {
        "classification": _letter,
        "multi_label_classification": _kinds,
        "detection": _boxes,
        "instance_detection": _boxes_of_kinds,
        "counting": lambda scene: str(len(scene.cells)),
        "regression": lambda scene: str(scene.largest.diameter),
        "report_generation": _report,
    }
)
"""Task -> the answer about a scene."""
