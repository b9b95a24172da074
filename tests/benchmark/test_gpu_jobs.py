"""The jobs of the GPU benchmark on their tiny models, and how they are run: in order, in time, whatever fails."""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.config import load_config
from medtune.training.config import TrainConfig
from tests.benchmark.scripts import script

gpu = script("gpu")
training, train_jobs, runner, resume = (
    importlib.import_module(f"gpu_jobs.{name}") for name in ("training", "train_jobs", "runner", "resume")
)
TINY = gpu.Setting(tiny=True, rounds=1, warmup=1)
STEPS = ["instfree_11b", "instfree_11b_batch8", "instfree_11b_no_checkpointing"]
RUNS = ["vitask_internvl2_2b", "dpo_llava_7b", "sft_lora_llava_7b", "qlora_internvl3_8b"]
Jobs = dict[str, Callable[[Any], dict]]


def check_training(name: str, found: dict[str, Any]) -> None:
    tokens = found["batch_size"] * found["tokens"] if name in STEPS else found["tokens_per_step"]
    assert found["tokens_per_second"] * found["median_seconds"] == pytest.approx(tokens)
    assert found["model_flops"] > 0 and found["model_flops_utilisation"] is None
    assert found["peak_memory_bytes"] is None is found["over_plan"]
    items = found["plan"]["items"]
    assert found["plan"]["bytes"] == pytest.approx(sum(items.values()))
    assert found["plan"]["allocated_bytes"] == pytest.approx(sum(items.values()) - items["allowance"])
    assert items["gradients"] > 0 < items["activations"]
    assert ("companions" in items) == (name == "vitask_internvl2_2b")
    assert (found["time_ratio"] is None) == (name in RUNS[2:]) == (found["peer"] is None)
    if name in STEPS:  # the plan is of the model that is measured; the proxy is in one of the two counts
        assert items["weights"] == pytest.approx(4 * found["parameters"]["all"], rel=2e-3)
        assert items["gradients"] == 4 * found["parameters"]["trained"]


def check_answers(name: str, found: dict[str, Any]) -> None:
    """The answers are those of the peer."""
    assert found["different_answers"] > 1
    if name == "predict_11b":
        assert set(found["same_answers"].values()) == {1.0} and len(found["same_answers"]) == 4
        assert found["speedup_over_transformers_batched"] > 0
    else:
        read = found["prompt_tokens_read"]
        assert found["same_answers"] == 1.0 and read["shared"] < read["plain"]


def check_resume(name: str, found: dict[str, Any]) -> None:
    """A killed run ends as one that was not."""
    assert found["bitwise"] and found["resumed"]["largest_weight_difference"] == 0 and found["steps"] == 10


CHECKS = {
    **dict.fromkeys(STEPS + RUNS, check_training),
    **dict.fromkeys(("predict_11b", "predict_8b_shared"), check_answers),
    "resume": check_resume,
}


@pytest.mark.parametrize("name", gpu.JOBS)
def test_each_job_on_its_tiny_model(name: str, tmp_path: Path) -> None:
    assert gpu.main(["--tiny", "--rounds", "2", name, "--output", str(tmp_path)]) == 0
    left = json.loads((tmp_path / "gpu_left.json").read_text())
    assert left == {"minutes": None, "done": [name], "failed": {}, "left": {}}
    found = json.loads((tmp_path / f"gpu_{name}.json").read_text())
    assert found["job"] == name and found["tiny"] and found["command"].startswith("python benchmark/gpu.py --tiny")
    assert found["versions"]["torch"] and found["hardware"]["gpu"] is None and "driver" in found["hardware"]
    assert "error" not in found and found["wall_seconds"] > 0 and "peer" in found
    CHECKS[name](name, found)


def test_a_run_that_differs_is_seen(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps({**resume.config(tmp_path / name, TINY), "seed": seed}))
        assert resume.train(path, None) == 0
    found = resume.difference(tmp_path / "one", tmp_path / "other")
    assert not found["bitwise"] and found["largest_loss_difference"] > 0 < found["largest_weight_difference"]


def test_operations_of_an_nf4_base_are_those_of_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(training, "measure", lambda values, *_: given.append(values))
    train_jobs.qlora_internvl(TINY)
    counts = set()
    for builder in ("lora_mini_internvl", "qlora_mini_internvl"):
        model = {**given[0]["model"], "_component_": f"medtune.models.mini.{builder}"}
        with training.config_file({**given[0], "model": model}) as path:
            counts.add(training.Steps(path).operations())
    assert len(counts) == 1 and counts.pop() > 0


def test_the_configs_of_the_real_models_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = [train_jobs._vitask_config("classifier", tiny=False)]
    monkeypatch.setattr(training, "measure", lambda values, *_: given.append(values))
    real = gpu.Setting(tiny=False, rounds=1, warmup=1)
    train_jobs.qlora_internvl(real)
    train_jobs.sft_lora_llava(real)
    for values in given:
        with training.config_file(values) as path:
            config = load_config(str(path), TrainConfig)
        assert config.dtype == "bf16" and config.checkpoint is None and config.activation_checkpointing
    with training.config_file(given[-1]) as path:
        items = training.planned(str(path))["items"]
    assert 14.0 < items["weights"] / 1e9 < 15.5  # seven billion parameters in bf16, and CLIP


def test_a_peak_stands_beside_the_plan_without_context() -> None:
    items = {"weights": 6e9, "activations": 2e9, "allowance": 1.4e9}
    estimate = {"items": items, "bytes": 9.4e9, "allocated_bytes": training.allocated(items)}
    assert training.beside_plan(int(8.8e9), estimate)["over_plan"] == pytest.approx(1.1)


def run(jobs: Jobs, folder: Path, monkeypatch: pytest.MonkeyPatch, minutes: float | None = None) -> dict[str, Any]:
    """Run jobs of a test's own."""
    for name in list(gpu.JOBS):
        monkeypatch.delitem(gpu.JOBS, name)
    for name, job in jobs.items():
        monkeypatch.setitem(gpu.JOBS, name, runner.Job(name, 0.0, job))
    told = runner.run_jobs(list(jobs), TINY, folder, minutes, {"commit": "c"})
    assert told == json.loads((folder / "gpu_left.json").read_text())
    return told


def broken(setting: Any) -> dict:
    raise torch.cuda.OutOfMemoryError("no memory is left")


def killed(setting: Any) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fine(setting: Any) -> dict:
    return {"time_ratio": 0.5}


def test_a_job_that_fails_is_written_down_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run({"a": broken, "b": killed, "c": fine}, tmp_path, monkeypatch)
    assert told["done"] == ["c"] and list(told["failed"]) == ["a", "b"] and told["left"] == {}
    first, second, third = (json.loads((tmp_path / f"gpu_{name}.json").read_text()) for name in "abc")
    assert first["error"] == "OutOfMemoryError: no memory is left" and "broken" in first["traceback"]
    assert "status -9" in second["error"] and third["time_ratio"] == 0.5 and third["commit"] == "c"
    shown = runner.table(tmp_path, told)
    assert "failed: OutOfMemoryError" in shown and "0.500" in shown


def test_a_job_that_outlasts_the_minutes_is_stopped_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "a child went on"

    def slow(setting: Any) -> dict:
        if os.fork() == 0:
            time.sleep(1.5)
            mark.touch()
            os._exit(0)
        time.sleep(60)
        return {}

    (tmp_path / "gpu_slow.json").write_text('{"time_ratio": 9}')  # of an earlier run
    told = run({"first": fine, "slow": slow, "last": fine}, tmp_path, monkeypatch, minutes=0.8 / 60)
    assert told["done"] == ["first"] and list(told["left"]) == ["slow", "last"]
    assert "stopped after" in told["left"]["slow"] and not (tmp_path / "gpu_slow.json").exists()
    assert "left: stopped after" in runner.table(tmp_path, told)
    time.sleep(1.5)
    assert not mark.exists()


def test_a_job_that_needs_more_than_is_left_makes_room_for_a_shorter_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gpu.Setting(tiny=False, rounds=1, warmup=1)
    monkeypatch.setitem(gpu.JOBS, "long", runner.Job("long", 3.0, fine))
    monkeypatch.setitem(gpu.JOBS, "short", runner.Job("short", 0.2, fine))
    told = runner.run_jobs(["long", "short"], real, tmp_path, 1.0, {})
    assert told["done"] == ["short"] and "reckoned to take 180 s" in told["left"]["long"]


def test_a_failure_is_the_commands_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(gpu.JOBS, "broken", runner.Job("broken", 0.0, broken))
    assert gpu.main(["--tiny", "broken"]) == 1
    assert "failed: OutOfMemoryError" in capsys.readouterr().out


def test_the_jobs_are_listed_and_others_refused(capsys: pytest.CaptureFixture) -> None:
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(gpu.JOBS)
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "instfree_12b"])
    assert "no such job: instfree_12b; the jobs are instfree_11b," in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--minutes", "0"])


def test_card_and_driver_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "nvidia-smi"
    told.write_text(f"#!{sys.executable}\nprint('NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB')\n")
    told.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    hardware = runner.origin("command", "given", tiny=False)["hardware"]
    assert hardware["gpu"] == "NVIDIA H100 80GB HBM3" and hardware["driver"] == "580.95.05"
    told.write_text(f"#!{sys.executable}\nraise SystemExit('no device')\n")
    assert runner.driver() == {}
