"""The arguments of a component are held against the annotations of what it names, when the config is read."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, TypedDict

import pytest
import torch

from medtune.config import Component, check_component, instantiate
from medtune.config.argument_types import NUMBER, argument_hints, check_value, describe, fits
from medtune.config.composition import Place
from medtune.errors import ConfigError


class Row(TypedDict):
    """Nothing that is judged."""

    a: int


@pytest.mark.parametrize(
    ("hint", "fitting", "unfitting"),
    [
        (int, [0, -3], [True, 2.0, "2", None, [2]]),
        (float, [0, 1.5], [True, "1", None]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "a"], [1, 1.5, True, None, ["a"]]),
        (type(None), [None], [0, "", False]),
        (int | None, [1, None], [1.5, "1"]),
        (Optional[str], ["a", None], [1]),  # noqa: UP045
        (int | str, [1, "a"], [1.5, None]),
        (float | torch.Tensor, [1, 2.5], ["a", None, [1.0]]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0, 2]),
        (list[int], [[], [1, 2]], [1, "1", [1, "a"], [1.5], {}]),
        (list, [[], [1, "a"]], ["a", {}]),
        (Sequence[str], [["a"], []], ["a", [1], None]),
        (Iterable[float], [[1, 2.5]], ["a", 1]),
        (tuple[float, int], [[1.5, 2]], [[1.5], [1.5, 2.5], [1, 2, 3]]),
        (tuple[int, ...], [[], [1, 2, 3]], [["a"], 1]),
        (set[str], [["a"]], ["a"]),
        (dict[str, float], [{}, {"a": 1}], [{"a": "b"}, [], 1, {1: 1.0}]),
        (Mapping[str, list[int]], [{"a": [1]}], [{"a": 1}, {"a": ["b"]}]),
        (dict, [{}, {"a": "b"}], [[], "a"]),
        (Mapping[str, dict[str, bool]] | None, [None, {"a": {"b": True}}], [{"a": {"b": 1}}]),
        (Path, ["a/b"], [1, ["a"], True]),
        (str | Path, ["a"], [["a", "b"], 1]),
        (Any, [1, "a", None, [], {}], []),
        (torch.nn.Module, [1, "a", {"_component_": "x"}], []),
        (Callable[..., int], ["a", 1], []),
        (Row, [{"a": "b"}, 1], []),
        (int | torch.nn.Module, [1, "a"], []),
        (NUMBER, [1, 1.5, None, [1, 2], True], ["a", "1e-4"]),
    ],
    ids=str,
)
def test_what_fits(hint: Any, fitting: list[Any], unfitting: list[Any]) -> None:
    assert [value for value in fitting if not fits(value, hint)] == []
    assert [value for value in unfitting if fits(value, hint)] == []


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (float, "abc", "f.yaml: a.b: expected a number, got 'abc'"),
        (float, "1e-4", "f.yaml: a.b: expected a number, got '1e-4'; write 0.0001 without quotes"),
        (int, "3", "expected a whole number, got '3'"),
        (float, "nan", "expected a number, got 'nan'"),
        (str, 7, "expected a text, got 7; write it in quotes"),
        (str | None, ["side", "diagnosis"], "expected a text or null, got ['side', 'diagnosis']"),
        (Literal["cls", "all"], "patch", "expected one of 'cls', 'all', got 'patch'"),
        (list[int] | None, ["a"], "expected a list, each item a whole number or null, got ['a']"),
        (tuple[float, float], [1], "expected a list of 2 items (a number, a number), got [1]"),
        (dict[str, bool], {"a": 1}, "expected a mapping, each value true or false, got {'a': 1}"),
        (float | torch.Tensor, True, "expected a number, got True"),
        (Path, 3, "expected a path, got 3; write it in quotes"),
    ],
)  # fmt: skip
def test_the_sentence(hint: Any, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said) + "$"):
        check_value(value, hint, Place("f.yaml", ("a", "b")))


def test_what_a_program_put_there_passes() -> None:
    assert fits(Path("a"), str) and fits(torch.zeros(2), float) and fits([Path("a")], list[str])


def test_every_annotation_has_words() -> None:
    assert describe(None) == "null"
    assert describe(Any) == "Any"
    assert describe(NUMBER) == "a number"


class Plain:
    """A class whose constructor is annotated."""

    def __init__(self, size: int, rate=0.1, *, names: "Sequence[str]" = (), **rest: float) -> None:
        self.size = size


@dataclass
class Fields:
    """A dataclass."""

    size: int
    names: list[str] | None = None


def unreadable(size: "Nowhere", count: int = 1) -> None:  # noqa: F821
    """An annotation that names nothing: none is read."""


def nested(part: Mapping[str, Any], parts: Sequence[Mapping[str, Any]] = (), name: str = "") -> None:
    """Takes components."""


HERE = __name__


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ({"_component_": f"{HERE}.Plain", "size": "a"}, "f.yaml: part.size: expected a whole number"),
        ({"_component_": f"{HERE}.Plain", "size": 1, "rate": "fast"}, "f.yaml: part.rate: expected a number"),
        ({"_component_": f"{HERE}.Plain", "size": 1, "names": "a"}, "part.names: expected a list, each item a text"),
        ({"_component_": f"{HERE}.Fields", "size": 1.5}, "part.size: expected a whole number, got 1.5"),
        ({"_component_": f"{HERE}.Fields", "size": 1, "names": [1]}, "part.names: expected a list"),
        ({"_component_": "torch.optim.AdamW", "betas": [0.9]}, "part.betas: expected a list of 2 items"),
        ({"_component_": "torch.optim.AdamW", "lr": "1e-4"}, "part.lr: expected a number, got '1e-4'; write 0.0001"),
        ({"_component_": "bitsandbytes.optim.PagedAdamW8bit", "lr": "1e-4"}, "part.lr: expected a number"),
        (
            {"_component_": f"{HERE}.nested", "part": {"_component_": f"{HERE}.Fields", "size": "a"}},
            "f.yaml: part.part.size: expected a whole number",
        ),
        (
            {"_component_": f"{HERE}.nested", "part": {}, "parts": [{"_component_": f"{HERE}.Fields", "syze": 1}]},
            "f.yaml: part.parts.0: .*Fields takes no 'syze'; did you mean 'size'",
        ),
        (
            {"_component_": f"{HERE}.nested", "part": {"deep": [{"_component_": f"{HERE}.Absent"}]}},
            "f.yaml: part.part.deep.0: .* has no 'Absent'",
        ),
        ({"_component_": f"{HERE}.nested", "part": {}, "name": {"_component_": "int"}}, "part.name: expected a text"),
    ],
)
def test_a_components_arguments_are_checked(component: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_component(Component(component), Place("f.yaml", ("part",)))


@pytest.mark.parametrize(
    "component",
    [
        {"_component_": f"{HERE}.Plain", "size": 1, "rate": 1, "names": ["a"], "anything": "b"},
        {"_component_": f"{HERE}.unreadable", "size": "a", "count": "b"},
        {"_component_": "torch.optim.SGD", "lr": 1, "nesterov": True},
    ],
)
def test_what_is_not_understood_passes(component: dict[str, Any]) -> None:
    check_component(Component(component), "f.yaml")


def test_hints_are_those_of_the_constructor() -> None:
    assert argument_hints(Plain) == {"size": int, "rate": NUMBER, "names": Sequence[str], "rest": float}
    assert argument_hints(unreadable) == {}


def test_the_weight_of_a_mixtures_part_is_a_key_of_the_mixture_and_of_no_other_component() -> None:
    cells = {
        "_component_": "medtune.datasets.cells.rendered_cells_dataset",
        "size": 4,
        "seed": 1,
        "kind": "text",
        "weight": 0.5,
    }
    mixture = Component({"_component_": "medtune.datasets.mixture_dataset", "parts": [cells, cells]})
    check_component(mixture, "f.yaml: dataset")
    assert len(instantiate(mixture)) == 4
    with pytest.raises(ConfigError, match="takes no 'weight'"):
        check_component(Component(cells), "f.yaml: dataset")
    wrong = cells | {"wait": 2}
    with pytest.raises(ConfigError, match=r"parts.1: .* takes no 'wait'"):
        check_component(Component(dict(mixture) | {"parts": [cells, wrong]}), "f.yaml: dataset")
