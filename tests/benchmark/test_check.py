"""The check of benchmarks against their baseline, on made-up results."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.scripts import FOLDER, script

check = script("check")
CPU = ["train_step", "vitask_step", "dpo_step", "predict", "start", "data", "routing", "serve", "curation"]
START = {"remembered_seconds_377110": 15.0, "one_changed_seconds_377110": 15.0}
SHARED = {name: {"shared_prefix_speedup": value} for name, value in (("internvl", 2.5), ("llava", 4.0))}
DPO_STEP = {
    "time_ratio": 0.4,
    "precomputed_time_ratio": 0.3,
    "tensor_peak_ratio": 0.4,
    "encodes_per_pair": 1.0,
    "lm_tokens_ratio": 0.55,
}
RESULTS: dict[str, dict[str, Any]] = {
    "train_step": {"time_ratio": 1.0, "memory_ratio": 1.0},
    "vitask_step": {"time_ratio": 0.4, "memory_ratio": 0.5, "cached_time_ratio": 0.3, "cached_memory_ratio": 0.5},
    "dpo_step": {"cases": dict.fromkeys(("llava_336", "llava_224", "llama3_2_vision_224"), DPO_STEP)},
    "predict": {
        "speedup": 8.0,
        "speedup_over_transformers_batched": 1.5,
        "shared_prefix": SHARED,
        "same_answers": {"medtune_batched": 1.0},
    },
    "start": START,
    "data": {"ratio_to_pillow": {"workers_0": 0.7}},
    "routing": {
        "speedup_vs_merge": 5.0,
        "relative_to_single_adapter": 0.9,
        "same_answers": {"mixed_batch": 1.0},
        "memory": {"memory_over_base_and_adapters": 1.01},
    },
    "serve": {"speedup": 5.0, "lost": {"medtune": 2}, "same_answers": 1.0},
    "curation": {
        "requests": {"throughput_ratio": 1.0},
        "features": {"feature_ratio": 1.0},
        "selection": {"processor_seconds": 30.0, "peak_memory_bytes": 1.2e9},
        "annotation": {"p95_ms": 50.0, "lost": 2},
    },
}
GPU_STEP = {"time_ratio": 1.0, "tokens_per_second": 4000.0, "peak_memory_bytes": 40e9, "hardware": {"gpu": "H100"}}


def write(folder: Path, **changes: dict[str, Any] | None) -> Path:
    """Results of all benchmarks, some of them changed or (None) left out."""
    folder.mkdir(exist_ok=True)
    for name, result in {**RESULTS, **changes}.items():
        if result is not None:
            command = f"python benchmark/{name}.py --rounds 3 --out {folder}/{name}.json"
            (folder / f"{name}.json").write_text(json.dumps({"command": command, "commit": "c", **result}))
    return folder


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    folder = write(tmp_path / "first", gpu_instfree_11b=GPU_STEP)
    assert check.main(["--update", "--results", str(folder), "--baseline", str(path)]) == 0
    return path


def status(baseline: Path, folder: Path, *more: str) -> int:
    return check.main(["--baseline", str(baseline), "--results", str(folder), *more])


def changed(name: str, path: tuple[str, ...], value: float) -> dict[str, Any]:
    result = json.loads(json.dumps(RESULTS[name]))
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return {name: result}


FIGURES = [(name, figure) for name in CPU for figure in check.FIGURES[name]]


@pytest.mark.parametrize(("name", "figure"), FIGURES, ids=lambda one: getattr(one, "name", one))
def test_each_figure_fails_in_its_worse_direction_alone(
    name: str, figure: Any, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base, room = figure.of(RESULTS[name]), check.TOLERANCES[figure.kind]
    worse = -1 if figure.higher else 1
    for factor, wanted in ((1 + worse * (room + 0.005), 1), (1 + worse * max(0, room - 0.005), 0), (1 - worse / 2, 0)):
        folder = write(tmp_path / "now", **changed(name, figure.path, base * factor))
        capsys.readouterr()
        assert status(baseline, folder) == wanted
        shown = capsys.readouterr().out
        line = next(line for line in shown.splitlines() if line.startswith(name) and f" {figure.name} " in line)
        assert line.endswith("worse" if wanted else ("better" if abs(factor - 1) == 0.5 else "passed"))
        assert (f"not passed: {name}" in shown) == bool(wanted)


def test_memory_has_two_percent_and_ratios_ten() -> None:
    assert {figure.kind for name, figure in FIGURES if "memory" in figure.name} == {"memory"}
    assert check.TOLERANCES["memory"] == 0.02 and check.TOLERANCES["ratio"] == 0.10


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_worse(value: float, baseline: Path, tmp_path: Path) -> None:
    assert status(baseline, write(tmp_path / "now", **changed("predict", ("speedup",), value))) == 1


def test_a_benchmark_without_a_result_is_named_and_has_not_passed(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert status(baseline, write(tmp_path / "now", start=None)) == 1
    shown = capsys.readouterr().out
    assert "not passed: start" in shown and any(
        line.startswith("start") and line.endswith("not run") for line in shown.splitlines()
    )
    assert status(baseline, tmp_path / "now", "--only", "train_step", "data") == 0


def test_a_figure_that_is_missing_has_not_passed(baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert status(baseline, write(tmp_path / "now", train_step={"time_ratio": 1.0})) == 1
    assert "missing" in capsys.readouterr().out


def test_a_benchmark_that_was_never_run_is_named_and_decides_nothing(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = write(tmp_path / "now", gpu_resume={"resumed": {"largest_loss_difference": 0.0}})
    assert status(baseline, folder) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["gpu_predict_11b"].endswith("never run") and lines["gpu_resume"].endswith("no baseline")
    assert lines["gpu_instfree_11b"].endswith("not run")  # it has a baseline, and this machine has no GPU


def test_the_jobs_of_a_gpu_are_compared_on_the_same_card(
    baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert status(baseline, write(tmp_path / "now", gpu_instfree_11b=GPU_STEP)) == 0
    slow = {**GPU_STEP, "tokens_per_second": 3000.0}
    assert status(baseline, write(tmp_path / "now", gpu_instfree_11b=slow)) == 1
    other = {**GPU_STEP, "hardware": {"gpu": "A100"}}
    assert status(baseline, write(tmp_path / "now", gpu_instfree_11b=other)) == 1
    assert "another card than H100: A100" in capsys.readouterr().out


@pytest.mark.parametrize("result", [{"error": "OutOfMemoryError"}, {**GPU_STEP, "tiny": True}])
def test_neither_errors_nor_mini_models_make_a_baseline(result: dict[str, Any], tmp_path: Path) -> None:
    found = check.baseline_of(write(tmp_path / "now", gpu_instfree_11b=result))
    assert found["gpu_instfree_11b"] is None and found["train_step"]["figures"]["time_ratio"] == 1.0


def test_other_options_cannot_be_compared(baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = {**RESULTS["train_step"], "command": "python benchmark/train_step.py --batch-size 2 --rounds 9"}
    assert status(baseline, write(tmp_path / "now", train_step=other)) == 1
    assert "other options than none" in capsys.readouterr().out
    assert check.options_of("python x.py --rounds=4 --fresh-rows 2500 --whole --out a.json") == [
        "--fresh-rows 2500",
        "--whole",
    ]


def test_a_part_of_the_baseline_can_be_rewritten(baseline: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "now", start={name: 2 * value for name, value in START.items()}, data=None)
    assert check.main(["--update", "--only", "start", "--results", str(folder), "--baseline", str(baseline)]) == 0
    kept = json.loads(baseline.read_text())
    assert kept["start"]["figures"]["remembered_seconds_377110"] == 30.0 and kept["data"] is not None


def test_without_results_the_benchmarks_are_run_and_one_that_fails_has_not_passed(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    wanted = json.dumps({"command": "python benchmark/train_step.py", **RESULTS["train_step"]})
    (tmp_path / "train_step.py").write_text(
        f"import sys\nopen(sys.argv[sys.argv.index('--out') + 1], 'w').write('''{wanted}''')"
    )
    (tmp_path / "data.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(check, "FOLDER", tmp_path)
    assert check.main(["--baseline", str(baseline), "--only", "train_step"]) == 0
    assert check.main(["--baseline", str(baseline), "--only", "train_step", "data"]) == 1
    said = capsys.readouterr()
    assert "running train_step.py --rounds 40" in said.out and "not passed: data" in said.out
    assert "data.py ended with status 3" in said.err


def test_the_committed_baseline_is_that_of_the_committed_results() -> None:
    kept = json.loads(check.BASELINE.read_text())
    assert kept == check.baseline_of(check.RESULTS)
    for name in CPU:
        assert len(kept[name]["figures"]) == len(check.FIGURES[name])


def test_the_commands_are_those_of_the_baseline() -> None:
    kept = json.loads(check.BASELINE.read_text())
    for name, (option, arguments) in check.COMMANDS.items():
        assert check.options_of(" ".join(["python", name, *arguments])) == check.options_of(kept[name]["command"])
        assert f'"{option}"' in (FOLDER / f"{name}.py").read_text()


def test_every_job_of_the_gpu_has_figures() -> None:
    assert list(check.GPU) == [f"gpu_{name}" for name in script("gpu").JOBS]
