"""The predict recipe on several processes: the same answers, kills, other numbers of processes, failures."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from medtune.recipes import predict
from tests.recipes.dying import VARIABLE, wait_for_answers
from tests.recipes.processes import start as start_processes
from tests.recipes.small_inputs import of_model, write_model, write_pictures, write_questions
from tests.runs import ended

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, random weights, and two questions on each of seven images."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder)
    write_pictures(folder, IMAGES)
    write_questions(folder, IMAGES)
    return folder


def arguments(world: Path, output: Path, *more: str) -> list[str]:
    return [
        "--config", "predict/mini", f"output_dir={output}", *of_model(world),
        "questions._component_=tests.recipes.dying.dying_dataset", f"questions.source={world}/test.jsonl",
        f"questions.image_root={world}", "batch_size=1", "window=2", "max_new_tokens=5", "device=cpu",
        "protocols=[open, letter_likelihood]", "swapped=[open]", *more,
    ]  # fmt: skip


def start(folder: Path, processes: int, words: list[str], die: str = "") -> list[BaseProcess]:
    """Start the recipe; ``die`` is what :func:`tests.recipes.dying.dying_dataset` is told."""
    return start_processes(predict.main, folder, processes, words, lambda rank: os.environ.update({VARIABLE: die}))


def run(folder: Path, processes: int, words: list[str], die: str = "") -> list[int | None]:
    return ended(start(folder, processes, words, die))


def answers(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def assert_same(output: Path, whole: Path) -> None:
    """The same lines in the same order; likelihoods to rounding, since batches differ."""
    found, wanted = answers(output), answers(whole)
    assert not list(output.glob("*.rank*")) and not list(output.glob("*.tmp"))
    for one, other in zip(found, wanted, strict=True):
        scores, others = one["meta"].pop("scores", []), other["meta"].pop("scores", [])
        assert scores == pytest.approx(others, abs=1e-4) and one == other


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert predict.main(arguments(world, output)) == 0
    assert len(answers(output)) == 6 * IMAGES
    return output


def test_more_processes_give_the_same_file(world: Path, whole: Path, tmp_path: Path) -> None:
    for processes in (2, 3):
        output = tmp_path / str(processes)
        assert run(tmp_path / f"log{processes}", processes, arguments(world, output)) == [0] * processes
        assert_same(output, whole)
        summary = json.loads((output / "predictions.summary.json").read_text())
        assert (summary["answered"], summary["asked_now"], summary["processes"]) == (42, 42, processes)
        said = [(tmp_path / f"log{processes}" / f"said{rank}").read_text() for rank in range(processes)]
        assert "42 of 42 queries answered" in said[0] and "42/42" in said[0], "one bar for all"
        assert said[1:] == [""] * (processes - 1)


def test_an_image_is_encoded_by_one_process_alone(world: Path, whole: Path, tmp_path: Path) -> None:
    words = ["batch_size=40", "window=9", "protocols=[open]", "swapped=[]"]
    assert run(tmp_path / "log", 2, arguments(world, tmp_path / "out", *words)) == [0, 0]
    assert json.loads((tmp_path / "out" / "predictions.summary.json").read_text())["images_encoded"] == IMAGES


@pytest.mark.parametrize(("killed", "processes", "after"), [(0, 2, 1), (1, 2, 1), (1, 2, 2), (0, 3, 2), (0, 1, 2)])
def test_killed_and_continued_with_another_number(
    killed: int, processes: int, after: int, world: Path, whole: Path, tmp_path: Path
) -> None:
    output, words = tmp_path / "out", arguments(world, tmp_path / "out")
    status = run(tmp_path / "log", processes, words, die=f"kill:{killed}:{output}:{processes}")
    assert status[killed] == -signal.SIGKILL and not (output / "predictions.summary.json").exists()
    for rank in set(range(processes)) - {killed}:
        assert (
            status[rank] == 2 and "another process of this run has gone" in (tmp_path / f"log/said{rank}").read_text()
        )
    kept = sum(path.read_bytes().count(b"\n") for path in output.glob("predictions*.jsonl"))
    assert processes <= kept < 42
    assert run(tmp_path / "again", after, words) == [0] * after
    assert_same(output, whole)
    assert json.loads((output / "predictions.summary.json").read_text())["asked_now"] == 42 - kept


def test_a_part_with_a_torn_line_is_read_up_to_it(world: Path, whole: Path, tmp_path: Path) -> None:
    output, words = tmp_path / "out", arguments(world, tmp_path / "out")
    run(tmp_path / "log", 2, words, die=f"kill:0:{output}:2")
    (part,) = output.glob("predictions.rank*.jsonl")
    part.write_bytes(part.read_bytes()[:-9])
    assert run(tmp_path / "again", 1, words) == [0]
    assert f"{part}: cut off a torn last line of " in (tmp_path / "again/said0").read_text()
    assert_same(output, whole)


def test_a_failure_of_one_process_is_said_and_ends_all(world: Path, whole: Path, tmp_path: Path) -> None:
    output, words = tmp_path / "out", arguments(world, tmp_path / "out")
    assert run(tmp_path / "log", 2, words, die=f"raise:1:{output}:2") == [2, 2]
    assert "error: q" in (said := (tmp_path / "log/said1").read_text()) and "has gone" in said
    assert "another process of this run has gone" in (tmp_path / "log/said0").read_text()
    assert run(tmp_path / "skip", 2, [*words, "on_error=skip"], die=f"raise:1:{output}:2") == [0, 0]
    summary = json.loads((output / "predictions.summary.json").read_text())
    left_out = {skip["id"] for skip in summary["skipped"]}
    assert left_out and left_out.isdisjoint(row["id"] for row in answers(output))
    assert summary["answered"] + len(left_out) == 42
    assert run(tmp_path / "again", 2, words) == [0, 0]
    assert_same(output, whole)


def test_a_wrong_setting_is_refused_by_every_process(world: Path, whole: Path, tmp_path: Path) -> None:
    words = arguments(world, whole, "max_new_tokens=6")
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert run(tmp_path / "log", 2, words) == [2, 2]
    for rank in range(2):
        assert "config.max_new_tokens: 5 before, 6 now" in (tmp_path / f"log/said{rank}").read_text()
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_two_runs_of_different_settings_never_mix(world: Path, tmp_path: Path) -> None:
    """A runs and B is refused; A is killed; B is refused still, in one process and in two, and A goes on."""
    output = tmp_path / "out"
    first, second = arguments(world, output), arguments(world, output, "max_new_tokens=6")
    record = output / "predictions.meta.json"
    for round_, processes in enumerate((1, 2)):
        running = start(tmp_path / f"a{round_}", processes, first, die=f"wait:{processes - 1}:{output}:{processes}")
        try:
            wait_for_answers(output, processes)
            kept = record.read_bytes()
            assert run(tmp_path / f"b{round_}", 1, second) == [2]
            assert "is being written by another run" in (tmp_path / f"b{round_}/said0").read_text()
            assert record.read_bytes() == kept
        finally:
            for child in running:
                child.kill()
            ended(running)
        for number in (1, 2):
            assert run(tmp_path / f"c{round_}", number, second) == [2] * number
            assert "config.max_new_tokens: 5 before, 6 now" in (tmp_path / f"c{round_}/said0").read_text()
        assert record.read_bytes() == kept
    assert run(tmp_path / "end", 1, first) == [0]
    assert len(answers(output)) == 42 and json.loads(record.read_text())["config"]["max_new_tokens"] == 5


def test_a_process_that_outlives_its_run_keeps_others_out(world: Path, tmp_path: Path) -> None:
    """The second process of A holds its part: B, of other settings, cannot take the folder while A may still write."""
    output = tmp_path / "out"
    running = start(tmp_path / "a", 2, arguments(world, output), die=f"wait:1:{output}:1")
    try:
        wait_for_answers(output, 1)
        running[0].kill()
        running[0].join()
        kept = (output / "predictions.meta.json").read_bytes()
        for number in (1, 2):
            assert run(tmp_path / "b", number, arguments(world, output, "max_new_tokens=6")) == [2] * number
            assert "is being written by another run" in (tmp_path / "b/said0").read_text()
        assert (output / "predictions.meta.json").read_bytes() == kept
    finally:
        running[1].kill()
        ended(running)


@pytest.mark.slow
def test_tune_run_with_two_processes(world: Path, whole: Path, tmp_path: Path) -> None:
    """The real command: from the start; killed, and continued by one process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])}

    def tune(output: Path, die: str = "") -> subprocess.CompletedProcess[str]:
        words = [str(Path(sys.executable).with_name("tune")), "run", "--nproc_per_node", "2"]
        words += ["medtune/recipes/predict.py", *arguments(world, output)]
        told = {**environment, VARIABLE: die}
        return subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=250, env=told, check=False)

    both = tune(tmp_path / "two")
    assert both.returncode == 0, both.stderr
    assert_same(tmp_path / "two", whole)
    output = tmp_path / "killed"
    assert tune(output, die=f"kill:1:{output}:2").returncode != 0
    assert 2 <= sum(path.read_bytes().count(b"\n") for path in output.glob("predictions*.jsonl")) < 6 * IMAGES
    assert run(tmp_path / "log", 1, arguments(world, output)) == [0]
    assert_same(output, whole)
