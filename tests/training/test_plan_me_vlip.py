"""The configs of ME-VLIP's adapters, planned without weights: what is trained, and what docs/me_vlip.md says."""

import re
from pathlib import Path

import pytest

from medtune.training.plan import plan

TABLE = (Path(__file__).parents[2] / "docs" / "me_vlip.md").read_text(encoding="utf-8")
HERE = r"not here|no tokenizer|MEDTUNE_DATA|does not exist"  # what this machine lacks


@pytest.mark.parametrize(("name", "card"), [("single_device", 24), ("a100", 40)])
def test_the_config_fits_its_card_as_the_page_says(name: str, card: int) -> None:
    found = plan(f"sft/internvl3_8b_qlora_{name}")
    assert all(re.search(HERE, problem) for problem in found.problems), found.problems
    parts = dict(found.sections)["Parts in stage train"]
    row = next(line.split() for line in parts.splitlines() if line.startswith("all"))
    assert row[2] == "20,185,088"
    needed = sum(found.memory.values()) / 1e9
    said = re.search(rf"`sft/internvl3_8b_qlora_{name}`.*\| ([\d.]+) GB \|", TABLE)
    assert said is not None and float(said[1]) == pytest.approx(needed, abs=0.06)
    assert needed < 0.8 * card
