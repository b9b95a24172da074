"""Prompts: packaged files keep their versions, headers are checked, what is filled in is never searched."""

from pathlib import Path

import pytest

from medtune.clients.prompt_files import read_prompt_file
from medtune.errors import ConfigError
from medtune.judges.prompts import FOLDER, read_prompt

# A packaged prompt is never changed: caches and results name it. Another wording is a new file.
VERSIONS = {
    "chat-v1": "4b5a737a2c61",
    "chat_short-v1": "6167b7d07e55",
    "chat_text-v1": "68e2fde66656",
    "pair-v1": "247555be2685",
    "pair_short-v1": "4735e98852cf",
    "pair_text-v1": "c4ff205c27fd",
    "reference-v1": "f88966038d3a",
    "reference_text-v1": "71221fcf3dd0",
    "verdict-v1": "634502620b90",
    "verdict_short-v1": "af21d3720a58",
    "verdict_text-v1": "7f3a2233e61b",
}


def test_packaged_prompts_are_as_they_were_released() -> None:
    files = {path.stem: read_prompt_file(path.stem, FOLDER, ()) for path in FOLDER.glob("*.txt")}
    assert {name: file.version.split("@")[1] for name, file in files.items()} == VERSIONS
    assert all(file.yes("images") == ("_" not in name) for name, file in files.items())
    assert read_prompt("pair-v1").images and not read_prompt("pair_text-v1").images
    assert (read_prompt("pair-v1").low, read_prompt("pair-v1").high) == (1.0, 10.0)
    assert "#" not in read_prompt("pair-v1").text


def test_what_is_filled_in_is_not_filled_in_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("# scale: 0 5\n# images: no\n{question}|{answer_1}|{answer_2}|{other}")
    prompt = read_prompt(str(path))
    values = {"question": "{answer_2}?", "answer_1": "{question}", "answer_2": r"\1 {answer_1}"}
    assert prompt.filled(values) == r"{answer_2}?|{question}|\1 {answer_1}|{other}"
    assert prompt.version.startswith("mine@") and (prompt.low, prompt.high, prompt.images) == (0.0, 5.0, False)
    path.write_text(path.read_text() + " ")
    assert read_prompt(str(path)).version != prompt.version


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# images: no\n{question}{answer_1}{answer_2}", "'# scale: 1 10'"),
        ("# scale: 5 5\n# images: no\n{question}{answer_1}{answer_2}", "'# scale: 1 10'"),
        ("# scale: low high\n# images: no\n{question}{answer_1}{answer_2}", "'# scale: 1 10'"),
        ("# scale: 1 10\n{question}{answer_1}{answer_2}", "'# images: yes' or"),
        ("# scale: 1 10\n# images: maybe\n{question}{answer_1}{answer_2}", "'# images: yes' or"),
        ("# scale: 1 10\n# images: no\n{question}{answer_1}", "does not contain {answer_2}"),
        (b"\xff", "cannot be read as UTF-8"),
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused_by_name(text: str | bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match="mine.txt") as caught:
        read_prompt(str(path))
    assert says in str(caught.value)


def test_a_prompt_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'pair_text-v1'"):
        read_prompt("pair_text-v2")
    with pytest.raises(ConfigError, match="there is no prompt"):
        read_prompt(str(tmp_path / "none.txt"))
