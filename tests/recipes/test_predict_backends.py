"""The predict recipe with a server or with transformers in place of medtune's own model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.generation.backends.openai_api import ServerAnswers
from medtune.recipes import evaluate, predict
from tests.generation.chat_server import images_of, prompt_of, serve
from tests.generation.tiny_llava import save_tiny_llava
from tests.recipes.small_inputs import write_pictures, write_questions


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Six questions on three pictures, and what evaluate needs beside them."""
    folder = tmp_path_factory.mktemp("world")
    write_pictures(folder, 3, width=24)
    write_questions(folder, 3)
    (folder / "training_majority.json").write_text(json.dumps({"cell shape": "round", "nucleus shape": "oval"}))
    return folder


def questions(world: Path, output: Path) -> list[str]:
    return [f"questions.source={world}/test.jsonl", f"questions.image_root={world}", f"output_dir={output}"]


def by_server(world: Path, output: Path, url: str, *more: str) -> list[str]:
    backend = [f"backend.base_url={url}", "backend.model=tiny-vlm", "backend.concurrency=4"]
    return ["--config", "predict/openai_server", *questions(world, output), *backend, *more]


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_a_server_is_asked_the_same_and_scored_by_the_same_code(world, output, capsys):
    with serve(say="The correct answer is A.") as server:
        assert predict.main(by_server(world, output, server.url)) == 0
    found = rows(output)
    assert len(found) == len(server.bodies) == 6 * 2 + 6 * 2 + 6 + 3
    assert {prompt_of(body) for body in server.bodies} == {row["prompt"] for row in found}
    shown = {images_of(body)[0].tobytes() for body in server.bodies}
    assert shown == {np.asarray(Image.open(world / f"cell{i}.png")).tobytes() for i in range(3)}
    summary = json.loads((output / "predictions.summary.json").read_text())
    assert (summary["device"], summary["answered"], summary["images_encoded"]) == ("server", 33, 33)
    scored = [f"predictions={output}/predictions.jsonl", f"prepared_dir={world}", f"output={output}"]
    scored += ["protocols=[multiple_choice, open, yes_no, description]", "bootstrap_draws=10"]
    assert evaluate.main(["--config", "evaluate/default", *scored]) == 0
    with (output / "verdicts.csv").open() as file:
        verdicts = [row for row in csv.DictReader(file) if row["id"].endswith("/multiple_choice")]
    assert [row["predicted"] for row in verdicts] == ["round"] * 6, "A stands for the first option"
    assert [row["correct"] for row in verdicts].count("1") == 2
    assert "What is the" not in capsys.readouterr().err


def test_failures_and_a_kill_leave_the_same_file(world, tmp_path, monkeypatch, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with serve() as server:
        assert predict.main(by_server(world, whole, server.url)) == 0
    original = ServerAnswers.batches

    def dying(self, *args, **kwargs):
        for number, batch in enumerate(original(self, *args, **kwargs)):
            if number == 11:
                raise KeyboardInterrupt
            yield batch

    with serve(fail_every=5) as server, monkeypatch.context() as patch:
        patch.setattr(ServerAnswers, "batches", dying)
        assert predict.main(by_server(world, killed, server.url)) == 130
    assert len(rows(killed)) == 11
    capsys.readouterr()
    with serve(fail_every=5) as server:  # at another address
        assert predict.main(by_server(world, killed, server.url, "backend.concurrency=2", "backend.timeout=60")) == 0
        assert len(server.bodies) == 22, "answered queries are not asked again"
    assert "22 now" in capsys.readouterr().out
    assert (killed / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_another_model_or_option_is_not_mixed_in_and_no_address_is_recorded(world, output, capsys):
    few = ["protocols=[open]", "swapped=[]", "limit=2"]
    with serve(models=("tiny-vlm", "other")) as server:
        assert predict.main(by_server(world, output, server.url, *few)) == 0
        assert predict.main(by_server(world, output, server.url, *few, "backend.model=other")) == 2
        assert "weights.model: tiny-vlm before, other now" in capsys.readouterr().err
        assert predict.main(by_server(world, output, server.url, *few, "backend.options={top_k: 1}")) == 2
    assert "127.0.0.1" not in (output / "predictions.meta.json").read_text()


def test_a_finished_run_needs_no_server(world, output, capsys):
    few = ["protocols=[open]", "swapped=[]"]
    with serve() as server:
        assert predict.main(by_server(world, output, server.url, *few)) == 0
    assert predict.main(by_server(world, output, server.url, *few)) == 0
    assert "0 now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["protocols=[open, letter_likelihood]", "swapped=[]"], "'protocols=[open]'"),
        (["sampling={temperature: 0}"], "temperature"),
        (["exemplars={path: runs}"], "answers without exemplars"),
        (["checkpoint=weights"], "backend and checkpoint are both given"),
        (["~backend"], "'model' is missing"),
        (["backend.base_url=''"], "must be the address"),
        (["~backend.base_url"], "base_url"),
        (["backend.api_key=sk-1"], "takes no 'api_key'; did you mean 'api_key_env'"),
        (["backend.api_key_env=NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["backend.base_url=http://127.0.0.1:9/v1", "backend.max_retries=0"], "cannot be reached"),
    ],
)
def test_bad_settings_are_one_line(world, output, capsys, options, message):
    assert predict.main([*by_server(world, output, "http://127.0.0.1:9/v1"), *options]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and len(error.splitlines()) == 1
    assert not (output / "predictions.jsonl").is_file() or not (output / "predictions.jsonl").read_bytes()


def test_a_server_is_asked_by_one_process(world, output, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with serve() as server:
        assert predict.main(by_server(world, output, server.url)) == 2
    assert "by one process" in capsys.readouterr().err and not server.heads and not list(output.iterdir())


def test_sampling_and_usage_reach_the_server_and_the_summary(world, output, capsys):
    few = ["protocols=[open]", "swapped=[]", "sampling={temperature: 0.8, top_p: 0.9, top_k: 20, seed: 4}"]
    with serve() as server:
        assert predict.main(by_server(world, output, server.url, *few)) == 0
        assert {(body["temperature"], body["top_p"], body["top_k"]) for body in server.bodies} == {(0.8, 0.9, 20)}
        assert len({body["seed"] for body in server.bodies}) == len(server.bodies) == 6
        assert predict.main(by_server(world, output, server.url, *few[:2])) == 2
    assert "config.sampling" in capsys.readouterr().err
    summary = json.loads((output / "predictions.summary.json").read_text())
    assert summary["usage"] == {"requests": 6, "prompt_tokens": 54, "completion_tokens": 30}


def test_credentials_are_not_written_down(world, output, monkeypatch, capsys):
    monkeypatch.setenv("GATEWAY", "a-secret-of-the-gateway")
    few = ["protocols=[open]", "swapped=[]"]
    hidden = "backend.options={extra_headers: {X-Gateway: '${oc.env:GATEWAY}'}, session_token: '${oc.env:GATEWAY}'}"
    with serve() as server:
        assert predict.main(by_server(world, output, server.url, *few, hidden)) == 0
        assert server.bodies[0]["session_token"] == "a-secret-of-the-gateway"
        monkeypatch.setenv("GATEWAY", "a-new-secret")
        assert predict.main(by_server(world, output, server.url, *few, hidden)) == 0, "a new key is no other model"
        assert predict.main(by_server(world, output, server.url, *few)) == 2
    printed = capsys.readouterr()
    written = "".join(path.read_text() for path in output.iterdir())
    record = json.loads((output / "predictions.meta.json").read_text())
    assert record["weights"]["options"] == {"extra_headers": {"X-Gateway": "***"}, "session_token": "***"}
    assert "secret" not in written + printed.out + printed.err


def test_a_server_that_goes_away_leaves_what_was_answered(world, output, capsys):
    with serve() as server:
        assert predict.main(by_server(world, output, server.url, "protocols=[open]", "swapped=[]", "limit=3")) == 0
    assert len(rows(output)) == 3
    (output / "predictions.jsonl").write_text(
        "".join((output / "predictions.jsonl").read_text().splitlines(keepends=True)[:1])
    )
    arguments = by_server(world, output, server.url, "protocols=[open]", "swapped=[]", "limit=3")
    assert predict.main([*arguments, "backend.max_retries=0"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert len(rows(output)) == 1


def test_a_local_checkpoint_answers_goes_on_and_is_not_mixed(world, tmp_path, capsys):
    folder = save_tiny_llava(tmp_path / "llava")
    output = tmp_path / "out"
    options = [*questions(world, output), f"backend.path={folder}", "max_new_tokens=4", "device=cpu", "dtype=fp32"]
    arguments = ["--config", "predict/transformers_local", *options]
    assert predict.main(arguments) == 0
    whole = (output / "predictions.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 33 and len({json.loads(line)["prediction"] for line in lines}) > 1
    (output / "predictions.jsonl").write_bytes(b"".join(lines[:20]))
    capsys.readouterr()
    assert predict.main(arguments) == 0
    assert "13 now" in capsys.readouterr().out
    assert (output / "predictions.jsonl").read_bytes() == whole
    (folder / "preprocessor_config.json").touch()
    (folder / "generation_config.json").write_text("{}")
    assert predict.main(arguments) == 2
    assert "weights.files.generation_config.json" in capsys.readouterr().err
