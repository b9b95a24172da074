"""``base:`` composes configs: what is merged, what replaces, what is deleted, and which file an error names."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medtune.config import Component, load_config
from medtune.config.composition import CONFIGS, compose, resolve_path
from medtune.errors import ConfigError
from medtune.training.config import TrainConfig

Write = Callable[..., Path]


@dataclass
class Small:
    """A config with one of each kind of value."""

    name: str = "n"
    number: float | None = 1.0
    items: list[int] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    part: Component | None = None


def call(size: int = 1, rate: float = 0.5, kind: str = "a") -> dict[str, Any]:
    """Stands for a component."""
    return {"size": size, "rate": rate, "kind": kind}


def other(size: int = 1) -> int:
    """Another one."""
    return size


CALL, OTHER = f"{__name__}.call", f"{__name__}.other"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def load(path: Path, *overrides: str) -> Small:
    return load_config(str(path), Small, overrides)


def test_mappings_are_merged_and_everything_else_replaces(write: Write) -> None:
    write("below.yaml", "name: below\nnumber: 2\nitems: [1, 2, 3]\ntable: {a: 1, b: 2}\n")
    loaded = load(write("above.yaml", "base: below\nname: above\nitems: [4]\ntable: {b: 3, c: 4}\n"))
    assert loaded == Small("above", 2.0, [4], {"a": 1.0, "b": 3.0, "c": 4.0})


def test_of_several_bases_the_later_wins_and_the_file_over_both(write: Write) -> None:
    write("one.yaml", "name: one\nnumber: 1\ntable: {a: 1, x: 1}\n")
    write("two.yaml", "number: 2\ntable: {a: 2, y: 2}\n")
    assert load(write("top.yaml", "base: [one, two]\ntable: {z: 3}\n")) == Small(
        "one", 2.0, [], {"a": 2.0, "x": 1.0, "y": 2.0, "z": 3.0}
    )


def test_a_base_has_bases_and_each_is_relative_to_its_own_file(write: Write) -> None:
    write("deep/inner/root.yaml", "name: root\nnumber: 1\n")
    write("deep/middle.yaml", "base: inner/root.yaml\nnumber: 2\n")
    path = write("top.yaml", "base: deep/middle\ntable: {a: 1}\n")
    assert load(path) == Small("root", 2.0, [], {"a": 1.0})
    assert [file.name for file in compose(path).files] == ["root.yaml", "middle.yaml", "top.yaml"]


def test_two_bases_may_share_one(write: Write) -> None:
    write("root.yaml", "name: root\ntable: {a: 1}\n")
    write("left.yaml", "base: root\ntable: {b: 2}\n")
    write("right.yaml", "base: root\nnumber: 3\n")
    path = write("top.yaml", "base: [left, right]\n")
    assert load(path) == Small("root", 3.0, [], {"a": 1.0, "b": 2.0})
    assert [file.stem for file in compose(path).files] == ["root", "left", "right", "top"]


def test_a_packaged_config_is_a_base_unless_a_file_of_that_name_lies_nearer(write: Write) -> None:
    path = write("mine.yaml", "base: instfree/mini\nmax_steps: 7\n")
    packaged = load_config("instfree/mini", TrainConfig)
    mine = load_config(str(path), TrainConfig)
    assert mine.max_steps == 7
    assert mine.model == packaged.model and mine.objective == packaged.objective
    write("instfree/mini.yaml", "base: instfree/mini.yaml\n")
    with pytest.raises(ConfigError, match="neither a file relative to .* nor a packaged config"):
        write("instfree/mini.yaml", "base: instfree/mino\n")
        load_config(str(path), TrainConfig)


def test_the_same_component_takes_its_arguments_over_and_another_none(write: Write) -> None:
    write("below.yaml", f"part: {{_component_: {CALL}, size: 2, rate: 0.1}}\n")
    same = load(write("same.yaml", f"base: below\npart: {{_component_: {CALL}, kind: b}}\n"))
    assert same.part == {"_component_": CALL, "size": 2, "rate": 0.1, "kind": "b"}
    silent = load(write("silent.yaml", "base: below\npart: {size: 3}\n"))
    assert silent.part == {"_component_": CALL, "size": 3, "rate": 0.1}
    changed = load(write("changed.yaml", f"base: below\npart: {{_component_: {OTHER}, size: 4}}\n"))
    assert changed.part == {"_component_": OTHER, "size": 4}


def test_null_sets_null_and_a_tilde_deletes(write: Write) -> None:
    write("below.yaml", "name: below\nnumber: 2\nitems: [1]\ntable: {a: 1, b: 2}\n")
    assert load(write("null.yaml", "base: below\nnumber: null\n")).number is None
    deleted = load(write("deleted.yaml", "base: below\n~number:\n~items:\ntable: {~a: }\n"))
    assert deleted == Small("below", 1.0, [], {"b": 2.0})
    emptied = write("emptied.yaml", "base: below\ntable:\n  ~a:\n  ~b:\n")
    assert load(emptied).table == {}
    assert load(write("on_top.yaml", "base: emptied\n")).table == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "base: below\n~nomber:\n",
            r"top.yaml: ~nomber: the base has no key 'nomber' to delete; did you mean 'number'",
        ),
        ("base: below\ntable: {~c: }\n", r"top.yaml: table.~c: the base has no key 'c' to delete; known: a"),
        (
            "base: below\n~number: 3\n",
            r"top.yaml: ~number: a key that begins with ~ is deleted, so it must have no value, got 3",
        ),
        ("base: below\npart: {~a: }\n", r"top.yaml: part.~a: there is no base to delete 'a' from"),
        ("~number:\n", r"top.yaml: ~number: the base has no key 'number' to delete"),
        ("base: 3\n", r"top.yaml: base: expected the name or path of a config, or a list of them, got 3"),
        ("base: belov\n", r"top.yaml: base 'belov' is neither a file relative to .* nor a packaged config"),
        ("base: instfree/minny\n", r"top.yaml: base 'instfree/minny' .*; did you mean 'instfree/mini'"),
    ],
)
def test_what_cannot_be_composed_is_refused(write: Write, text: str, said: str) -> None:
    write("below.yaml", "number: 2\ntable: {a: 1}\n")
    with pytest.raises(ConfigError, match=said):
        load(write("top.yaml", text))


def test_bases_in_a_circle_are_named_in_order(write: Write) -> None:
    write("a.yaml", "base: b\n")
    write("b.yaml", "base: sub/c\n")
    write("sub/c.yaml", "base: ../a\n")
    with pytest.raises(ConfigError, match=r"a.yaml -> \S*b.yaml -> \S*c.yaml -> \S*a.yaml: the bases form a cycle"):
        load(resolve_path(str(write("top.yaml", "base: a\n"))))


def test_a_missing_base_names_the_chain(write: Write) -> None:
    write("a.yaml", "base: absent\n")
    with pytest.raises(ConfigError, match=r"top.yaml -> \S*a.yaml: base 'absent'"):
        load(write("top.yaml", "base: a\n"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], r"below.yaml: part.size: expected a whole number, got 'big'"),
        (["part.size=2", "nam=x"], r"top.yaml, override 'nam=x': unknown key 'nam'; did you mean 'name'"),
        (["part.size=2"], r"middle.yaml: part: \S*call takes no 'sice'; did you mean 'size'"),
        (["part.size=2", "~part.sice"], r"top.yaml: table.b: expected a number, got 'x'"),
        (["part.size=2", "~part.sice", "table.b=1", "items=[a]"], r"override 'items=\[a\]': items.0: expected a whole"),
        (["part.size=2", "~part.sice", "table.b=1", "table={a: c}"], r"override 'table={a: c}': table.a: expected"),
    ],
)
def test_an_error_names_the_file_or_override_that_holds_the_key(write: Write, overrides: list[str], said: str) -> None:
    write("below.yaml", f"part: {{_component_: {CALL}, size: big}}\ntable: {{a: 1, b: 1}}\n")
    write("middle.yaml", "base: below\npart: {sice: 3}\n")
    with pytest.raises(ConfigError, match=said):
        load(write("top.yaml", "base: middle\ntable: {b: x}\n"), *overrides)


def test_a_broken_base_is_named(write: Write) -> None:
    write("below.yaml", "a: [1\n")
    with pytest.raises(ConfigError, match=r"below.yaml is not valid YAML"):
        load(write("top.yaml", "base: below\n"))
    write("below.yaml", "- 1\n")
    with pytest.raises(ConfigError, match=r"below.yaml: a config is a mapping"):
        load(write("top.yaml", "base: below\n"))


def test_interpolations_see_the_composed_values_and_the_overrides(write: Write) -> None:
    write("below.yaml", "name: below\ntable: {a: 1.5, b: '${table.a}'}\nnumber: ${table.a}\n")
    path = write("top.yaml", "base: below\ntable: {a: 2.5}\n")
    assert load(path) == Small("below", 2.5, [], {"a": 2.5, "b": 2.5})
    assert load(path, "table.a=3").number == 3.0
    assert compose(path).tree["number"] == "${table.a}"


def test_an_override_replaces_or_deletes_what_cannot_be_resolved_in_any_order(write: Write) -> None:
    text = "name: ${oc.env:NOT_SET_ANYWHERE}\nitems: ['${oc.env:NOT_SET_ANYWHERE}', 2]\nnumber: null\n"
    path = write("a.yaml", text + "table: {a: '${oc.env:NOT_SET_ANYWHERE}', b: 2}\n")
    for number, order in enumerate(itertools.permutations(["name=here", "~items.0", "~number", "~table.a"])):
        assert load(path, *order) == Small("here", 1.0, [2], {"b": 2.0}), number
    assert load(path, "name=here", "items=[]", "table={a: 3}").table == {"a": 3.0, "b": 2.0}
    for gone in ("~nomber", "~items.2", "~items.x", "~table.c", "~table.b.c", "~", "~name.x"):
        with pytest.raises(ConfigError, match="there is no key"):
            load(path, "name=here", gone)
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        load(path)


def test_a_base_changes_nothing_of_the_files_beneath(write: Write) -> None:
    """What is put over a base does not show in another config of the same base."""
    write("root.yaml", "table: {a: 1}\nitems: [1]\n")
    write("left.yaml", "base: root\ntable: {a: 2}\n")
    assert load(write("top.yaml", "base: [left, root]\n")).table == {"a": 1.0}


def test_base_is_no_key_that_an_override_sets(write: Write) -> None:
    with pytest.raises(ConfigError, match="unknown key 'base'"):
        load(write("top.yaml", "name: a\n"), "base=instfree/mini")


def test_a_packaged_base_is_no_config_to_run() -> None:
    bases = [*sorted(CONFIGS.glob("*/_*.yaml")), *sorted(CONFIGS.glob("_*/*.yaml"))]
    assert bases
    for path in bases:
        for name in (str(path), path.relative_to(CONFIGS).with_suffix("").as_posix()):
            with pytest.raises(ConfigError, match="is a base that other configs build on and cannot be run"):
                resolve_path(name)


def test_a_base_of_the_users_own_may_be_named_as_they_like(write: Write) -> None:
    assert load(write("_mine.yaml", "name: mine\n")).name == "mine"


def test_beside_is_a_file_in_the_same_folder(write: Write) -> None:
    part = "{_component_: " + CALL + ", kind: '${beside:${name},val.jsonl}'}"
    text = f"name: prepared/cells/train.jsonl\npart: {part}\n"
    path = write("a.yaml", text)
    assert load(path).part == {"_component_": CALL, "kind": "prepared/cells/val.jsonl"}
    assert load(path, "name=other/train.jsonl").part == {"_component_": CALL, "kind": "other/val.jsonl"}
    with pytest.raises(ConfigError, match="needs one path"):
        load(write("b.yaml", "items: [1]\nname: '${beside:${items},val.jsonl}'\n"))
