"""docs/reliability.md lists these tests, all of them and no others."""

import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "reliability.md"


def test_the_page_lists_every_test_here() -> None:
    found = [
        name for file in FOLDER.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    ]
    listed = re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    own = {"test_the_page_lists_every_test_here"}
    assert len(listed) == len(set(listed)) and set(listed) == set(found) - own
