"""The messages that the tutorial explains are those of the code; its commands are run by tests/test_commands.py."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def test_the_messages_that_it_explains_are_those_of_the_code() -> None:
    tutorial = (CHECKOUT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", tutorial.partition("## What goes wrong")[2], flags=re.M)
    files = [*(CHECKOUT / "medtune").rglob("*.py"), *(CHECKOUT / "recipes").glob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # texts that go on over lines
    assert len(messages) >= 10
    for message in messages:
        for piece in message.split("…"):
            assert piece.strip(" ;:") in code, f"no code says {piece!r} (of {message!r})"
