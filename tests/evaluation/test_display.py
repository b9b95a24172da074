"""What protocols say of their presentation: it survives the results file, and the packaged ones are as documented."""

import json
from typing import Any

import pytest

from medtune.errors import DataError
from medtune.evaluation.display import Display
from medtune.evaluation.protocols.registry import REGISTRY


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_display_read_back_from_json_is_the_same(name: str) -> None:
    display = REGISTRY[name].display
    again = Display.from_dict(json.loads(json.dumps(display.to_dict())))
    assert again == display
    assert isinstance(again.followed, tuple) and isinstance(again.followed_of_sets, tuple)


def test_which_protocols_have_a_confusion_table_and_stand_in_the_radar_plot() -> None:
    shown = {name: REGISTRY[name].display for name in REGISTRY}
    confusions = {name: one.confusion for name, one in shown.items() if one.confusion != "none"}
    assert confusions == {"classification": "classes", "multiple_choice": "values", "open": "values"}
    assert {name for name, one in shown.items() if one.radar} == {"classification", "multiple_choice", "open"}


@pytest.mark.parametrize("node", [{"rank": 3}, {"title": "x", "densities": {"help": "without columns"}}, 3])
def test_what_describes_no_display_is_refused(node: Any) -> None:
    with pytest.raises(DataError, match="report.json: 'display' describes no protocol"):
        Display.from_dict(node, "report.json")
