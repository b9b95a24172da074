"""Parts: exactly those asked for train, the table's sums are right, a part without a gradient is found out in time."""

import re

import pytest
import torch
from torch import nn

from medtune.errors import ConfigError, TrainingError
from medtune.training.parts import FROZEN, GradientWatch, TrainedParts, canonical, check_parts, set_aside_frozen


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eye, self.text = nn.Linear(2, 3, bias=False), nn.Linear(3, 4)
        self.codes = nn.Parameter(torch.zeros(5, dtype=torch.uint8), requires_grad=False)


class Method(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proxy = nn.Parameter(torch.zeros(7))


@pytest.fixture
def parts() -> TrainedParts:
    members = {
        "vision": ["eye.weight"],
        "decoder": ["text.weight", "text.bias", "codes"],
        "adapter": [],
        "proxy": ["proxy"],
    }
    return TrainedParts(Model(), Method(), members)


@pytest.mark.parametrize("wanted", [["vision"], ["proxy"], ["decoder", "proxy"], ["vision", "decoder", "proxy"], []])
def test_exactly_the_parts_asked_for_train(wanted: list[str], parts: TrainedParts) -> None:
    parts.train_only(["vision", "decoder", "proxy"])
    parts.train_only(wanted)
    training = {name for name, parameter in parts.named().items() if parameter.requires_grad}
    assert training == {name for part in wanted for name in parts.members[part]} - {"codes"}, "4-bit codes never train"


def test_the_table_adds_up(parts: TrainedParts) -> None:
    rows = [line.replace(",", "").split() for line in parts.table(["vision", "proxy"]).splitlines()]
    assert rows == [
        ["part", "parameters", "trainable", "frozen"],
        ["vision", "6", "6", "0"],
        ["decoder", "21", "0", "21"],
        ["adapter", "0", "0", "0"],
        ["proxy", "7", "7", "0"],
        ["all", "34", "13", "21"],
    ]
    first = parts.table([]).splitlines()[0]
    assert first == "part" + 8 * " " + 6 * " " + "parameters" + 7 * " " + "trainable" + 10 * " " + "frozen"


@pytest.mark.parametrize("part", ["adapter", "fusion"])
def test_a_part_that_is_not_there_is_named_with_those_that_are(part: str, parts: TrainedParts) -> None:
    with pytest.raises(ConfigError, match=f"has no part '{part}'; it has vision, decoder, proxy"):
        parts.select(["vision", part])


def test_names_without_wrappers() -> None:
    assert canonical("a.0._checkpoint_wrapped_module._orig_mod.b") == "a.0.b"


MEMBERS = {"vision": ["eye.0.weight", "eye.1.weight"], "decoder": ["text.10.w", "text.1.w", "text.1.b"], "adapter": []}


def test_parameters_frozen_by_name_are_a_part_of_their_own() -> None:
    assert set_aside_frozen(MEMBERS, [], ["vision"]) == MEMBERS
    assert set_aside_frozen(MEMBERS, ["text.1.*", "eye.0.weight"], ["vision", "decoder"]) == {
        "vision": ["eye.1.weight"],
        "decoder": ["text.10.w"],
        "adapter": [],
        FROZEN: ["eye.0.weight", "text.1.w", "text.1.b"],
    }


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["text.1.*", "text.2.*"], "no parameter of the model matches 'text.2.*'"),
        (["eye.*"], "the whole part vision would be frozen; leave it out of `trainable`"),
        (["text.1.*", "text.10.w"], "the whole part decoder"),
        (["eye"], "matches 'eye'"),
    ],
)
def test_patterns_that_freeze_nothing_or_a_whole_part_are_refused(patterns: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        set_aside_frozen(MEMBERS, patterns, ["vision", "decoder"])


def test_patterns_may_cover_a_part_that_is_not_trained() -> None:
    assert set_aside_frozen(MEMBERS, ["eye.*"], ["decoder"])["vision"] == []


def test_what_is_frozen_by_name_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match="has no part 'frozen'; it has vision, decoder"):
        check_parts([FROZEN], set_aside_frozen(MEMBERS, ["text.1.*"], ["decoder"]))


def watched(patience: int) -> tuple[GradientWatch, dict[str, nn.Parameter]]:
    named = {name: nn.Parameter(torch.zeros(2)) for name in ("a", "b", "c")}
    return GradientWatch({"first": ["a", "b"], "second": ["c"]}, patience), named


def look(watch: GradientWatch, named: dict[str, nn.Parameter], elsewhere: float = 0.0) -> None:
    """One step: what this process has seen, and what another one has."""
    watch.note((watch.reached(named, torch.device("cpu")) + elsewhere).tolist())


def test_a_part_may_wait_for_its_gradient_as_long_as_the_patience_lasts() -> None:
    watch, named = watched(3)
    named["b"].grad = torch.tensor([0.0, 1.0])
    named["c"].grad = torch.zeros(2)  # no gradient, as good as none
    for _ in range(2):
        look(watch, named)
    with pytest.raises(TrainingError, match="no gradient has reached second although"):
        look(watch, named)

    watch, named = watched(3)
    for step in range(9):
        if step == 2:
            named["a"].grad = named["c"].grad = torch.ones(2)
        look(watch, named)
        named["a"].grad = named["c"].grad = None
    assert not watch.waiting


def test_a_gradient_on_another_process_counts() -> None:
    watch, named = watched(1)
    look(watch, named, elsewhere=1.0)
    assert not watch.waiting
