"""The self_question recipe: whole runs, kills, several processes, real images, a server, and what it refuses."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medtune.evaluation.prediction import PredictionLog
from medtune.recipes import self_question
from tests.generation.chat_server import prompt_of, serve
from tests.recipes.processes import start
from tests.recipes.small_inputs import of_model, write_model, write_pictures, write_rows
from tests.runs import ended

IMAGES = 5
FILES = ("generations.jsonl", "candidates.jsonl", "manifest.json")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, random weights that often write a stop token, and two rows on each of five images."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder, std=0.25)
    write_pictures(folder, IMAGES)
    turns = [{"role": "user", "content": "never shown"}, {"role": "assistant", "content": "nor this"}]
    rows = [{"id": f"q{i}", "images": [f"cell{i // 2}.png"], "messages": turns, "meta": {}} for i in range(2 * IMAGES)]
    write_rows(folder / "rows.jsonl", rows)
    write_config(folder, folder / "rows.jsonl", folder)
    return folder


def write_config(folder: Path, rows: Path, images: Path) -> Path:
    """The packaged config with other images."""
    dataset = {"_component_": "medtune.datasets.jsonl_dataset", "source": str(rows), "image_root": str(images)}
    config = folder / "mini.yaml"
    config.write_text(f"base: self_question/mini\ndataset: {json.dumps(dataset)}\n")
    return config


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    return [
        "--config", f"{world}/mini.yaml", f"output_dir={output}", *of_model(world), "batch_size=4", "wave=2",
        "describe.max_new_tokens=8", "ask.max_new_tokens=60", "ask.sampling.temperature=2.0",
        "answer.max_new_tokens=60", "answer.sampling.temperature=2.0", *more,
    ]  # fmt: skip


def run(folder: Path, processes: int, words: list[str], harm: Callable[[int], None] | None = None) -> list[int | None]:
    return ended(start(self_question.main, folder, processes, words, harm))


def killed_after(rows: int, rank: int = 0) -> Callable[[int], None]:
    """Makes a process kill itself in the middle of writing the row after so many; half of the line is in the file."""

    def harm(own: int) -> None:
        if own != rank:
            return
        original, written = PredictionLog.append, [0]

        def append(self: PredictionLog, row: Any) -> None:
            if written[0] == rows:
                os.write(self._descriptor, b'{"id": "torn')
                os.kill(os.getpid(), signal.SIGKILL)
            original(self, row)
            written[0] += 1

        PredictionLog.append = append  # type: ignore[method-assign]

    return harm


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same(output: Path, whole: Path) -> None:
    for name in FILES:
        assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(output.glob("*.rank*")) and not list(output.glob("*.tmp"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "out"
    assert self_question.main(arguments(world, output)) == 0
    return output


def test_every_image_is_described_asked_about_and_answered(world: Path, whole: Path) -> None:
    rows, manifest = lines(whole / "generations.jsonl"), json.loads((whole / "manifest.json").read_text())
    counts, dropped = manifest["counts"], manifest["dropped"]
    empty = dropped.pop("image without a description")  # this policy ends one description at once
    assert counts | {"rows": 10, "images": 5, "chosen": 5, "descriptions": 5 - empty} == counts
    assert counts["questions"] == 5 * (5 - empty) >= 15
    tasks = [row["task"] for row in rows]
    assert tasks.count("describe") == 5 and tasks.count("ask") == counts["questions"]
    assert tasks.count("answer") == 2 * counts["answered_questions"]
    of_questions = sum(count for reason, count in dropped.items() if "question" in reason)
    assert counts["answered_questions"] == counts["questions"] - of_questions
    candidates = lines(whole / "candidates.jsonl")
    assert len(candidates) == counts["candidates"] == counts["questions"] - sum(dropped.values()) > 3
    assert {"question cut off", "answer cut off"} <= dropped.keys()
    by_id = {row["id"]: row for row in rows}
    for row in candidates:
        assert row["messages"] == [{"role": "user", "content": by_id[row["id"]]["prediction"]}]
        assert row["answers"] == [by_id[f"{row['id']}/answer/{seed}"]["prediction"] for seed in (40, 42)]
        assert row["meta"]["description"] == by_id[f"{row['meta']['source_id']}/description"]["prediction"]
        assert (world / row["images"][0]).is_file() and row["meta"]["temperature"] == 2.0
    assert manifest["identity"]["weights"]["weights.safetensors"]["sha256"] and manifest["identity"]["data"]
    assert "never shown" not in (whole / "generations.jsonl").read_text()


def test_a_finished_run_loads_no_model_and_leaves_its_files(
    world: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    monkeypatch.setattr("medtune.generation.answering.load_model", lambda *_, **__: pytest.fail("loaded again"))
    assert self_question.main(arguments(world, whole)) == 0
    assert "(0 texts now, 0 images encoded" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


@pytest.mark.parametrize("rows", [1, 7, 30], ids=["descriptions", "questions", "late"])
def test_killed_and_continued_it_repeats_nothing(rows: int, world: Path, whole: Path, tmp_path: Path) -> None:
    output, words = tmp_path / "out", arguments(world, tmp_path / "out")
    assert run(tmp_path / "log", 1, words, killed_after(rows)) == [-signal.SIGKILL]
    assert not (output / "candidates.jsonl").exists()
    kept = (output / "generations.jsonl").read_bytes().count(b"\n")
    assert kept == rows
    assert run(tmp_path / "again", 1, words) == [0]
    said = (tmp_path / "again/said0").read_text()
    total = len(lines(whole / "generations.jsonl"))
    assert "cut off a torn last line of 12 bytes" in said and f"({total - kept} texts now," in said
    assert_same(output, whole)


def test_two_processes_make_the_same_files(world: Path, whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "log", 2, arguments(world, tmp_path / "out")) == [0, 0]
    assert_same(tmp_path / "out", whole)
    said = [(tmp_path / "log" / f"said{rank}").read_text() for rank in (0, 1)]
    assert f"{IMAGES} images encoded" in said[0] and "text/s" in said[0] and said[1] == ""


@pytest.mark.parametrize(("rank", "after"), [(0, 1), (1, 3)])
def test_one_of_two_processes_is_killed_and_another_number_goes_on(
    rank: int, after: int, world: Path, whole: Path, tmp_path: Path
) -> None:
    output, words = tmp_path / "out", arguments(world, tmp_path / "out")
    status = run(tmp_path / "log", 2, words, killed_after(6, rank))
    assert status[rank] == -signal.SIGKILL and status[1 - rank] == 2
    kept = sum(path.read_bytes().count(b"\n") for path in output.glob("generations*.jsonl"))
    assert run(tmp_path / "again", after, words) == [0] * after
    assert_same(output, whole)
    total = len(lines(whole / "generations.jsonl"))
    assert f"({total - kept} texts now," in (tmp_path / "again/said0").read_text()


def test_other_batches_and_waves_make_the_same_files(world: Path, whole: Path, tmp_path: Path) -> None:
    words = ["batch_size=13", "wave=5", "share_prefix=false"]
    assert self_question.main(arguments(world, tmp_path / "out", *words)) == 0
    assert_same(tmp_path / "out", whole)


def test_other_settings_are_refused_and_change_nothing(
    world: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert self_question.main(arguments(world, whole, "ask.sampling.seed=1")) == 2
    assert "config.ask.sampling.seed: 0 before, 1 now" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_a_dry_run_tells_the_amount_and_writes_nothing(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert self_question.main(arguments(world, tmp_path / "out", "dry_run=true", "limit=3")) == 0
    said = capsys.readouterr().out
    assert "10 rows show 5 images; 3 are asked about" in said and "at most 48 texts" in said
    assert "assistant: {description} | virtual_user:, at most 60 tokens" in said and "never shown" not in said
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_gone(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (world / "rows.jsonl").read_text().splitlines()]
    rows[2]["images"] = rows[3]["images"] = ["gone.png"]
    write_rows(tmp_path / "rows.jsonl", rows)
    words = [f"dataset.source={tmp_path}/rows.jsonl"]
    assert self_question.main(arguments(world, tmp_path / "raise", *words, "on_error=raise")) == 2
    assert "gone.png" in capsys.readouterr().err
    assert self_question.main(arguments(world, tmp_path / "skip", *words)) == 0
    manifest = json.loads((tmp_path / "skip/manifest.json").read_text())
    assert [skip["id"] for skip in manifest["skipped"]] == ["q2/description"]
    assert manifest["counts"]["descriptions"] + manifest["dropped"]["image without a description"] == 5
    assert not any(row["images"] == ["gone.png"] for row in lines(tmp_path / "skip/candidates.jsonl"))


def test_a_question_prompt_that_the_policys_own_words_made_too_long_is_counted(world: Path, tmp_path: Path) -> None:
    words = ["transform.max_seq_len=70", "on_error=raise", "describe.max_new_tokens=40"]
    assert self_question.main(arguments(world, tmp_path / "out", *words)) == 2, "there is no candidate"
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["dropped"]["prompt that the model could not read"] == manifest["counts"]["questions"] > 0
    assert all("/question/" in skip["id"] and "the limit is 70" in skip["reason"] for skip in manifest["skipped"])


def test_no_candidate_is_an_error(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert self_question.main(arguments(world, tmp_path / "out", "ask.max_new_tokens=1")) == 2
    assert "no candidate is left; see 'dropped' in manifest.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/manifest.json").read_text())["dropped"]["question cut off"] > 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["wave=0"], "wave must be at least 1"),
        (["answer.seeds=[1, 1]"], "answer.seeds must be two different numbers"),
        (["~checkpoint"], "key 'checkpoint' is missing"),
        (["ask.temperatur=1"], "temperatur"),
    ],
)
def test_wrong_settings(
    words: list[str], problem: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert self_question.main(arguments(world, tmp_path / "out", *words)) == 2
    assert problem in capsys.readouterr().err and not (tmp_path / "out").exists()


def by_server(world: Path, output: Path, url: str, *more: str) -> list[str]:
    data = [f"dataset.source={world}/rows.jsonl", f"dataset.image_root={world}", f"output_dir={output}"]
    backend = [f"backend.base_url={url}", "backend.model=tiny-vlm", "backend.concurrency=4"]
    return ["--config", "self_question/openai_server", *data, *backend, *more]


def test_a_server_is_asked_for_questions_in_words(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.generation.chat_server.answer_to", lambda body: f"The number {body.get('seed', 0)}.")
    with serve() as server:
        assert self_question.main(by_server(world, tmp_path / "out", server.url)) == 0
    rows = lines(tmp_path / "out/generations.jsonl")
    assert len(server.bodies) == len(rows)
    prompts = [prompt_of(body) for body in server.bodies]
    assert any("Ask one question about this image" in prompt for prompt in prompts)
    seeds = [body["seed"] for body in server.bodies if "seed" in body]
    assert len(seeds) == len(set(seeds)) == len(rows) - IMAGES, "a seed for each text; descriptions are greedy"
    assert len(lines(tmp_path / "out/candidates.jsonl")) == 25


def test_a_server_has_no_virtual_user(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = by_server(world, tmp_path / "out", "http://127.0.0.1:9/v1", "ask.prompt=null")
    assert self_question.main(words) == 2
    assert "a backend has no virtual user; give ask.prompt" in capsys.readouterr().err


def test_real_radiographs(medtune_data: Path, tmp_path: Path) -> None:
    """The packaged mini base on images of VQA-RAD; it was not trained to ask, so only the plumbing is looked at."""
    folder = medtune_data / "vqa_rad"
    if not (folder / "images").is_dir():
        pytest.skip("VQA-RAD's images are not in MEDTUNE_DATA, so no real image can be asked about")
    names = sorted(path.name for path in (folder / "images").glob("*.jpg"))[:4]
    turn = [{"role": "user", "content": "?"}]
    rows = [{"id": name, "images": [name], "messages": turn, "meta": {}} for name in names]
    write_rows(tmp_path / "rows.jsonl", rows)
    config = write_config(tmp_path, tmp_path / "rows.jsonl", folder / "images")
    words = ["--config", str(config), "checkpoint=${asset:mini_base}", "ask.count=3"]
    assert self_question.main([*words, f"output_dir={tmp_path}/out"]) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["counts"]["descriptions"] == 4 and manifest["skipped"] == []
    assert {row["images"][0] for row in lines(tmp_path / "out/candidates.jsonl")} <= set(names)
    assert run(tmp_path / "log", 2, [*words, f"output_dir={tmp_path}/two"]) == [0, 0]
    assert_same(tmp_path / "two", tmp_path / "out")
