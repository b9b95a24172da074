"""STLLaVA-Med as one sweep: trained, asked, judged, tuned and scored, and killed at every step."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from medtune.config import load_config
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_sweep
from tests.judges.judge_server import MODEL, serve
from tests.judges.passing_on import passing_on
from tests.judges.test_llama import llama  # noqa: F401

TINY = {
    "self_question": ["limit=4", "ask.count=2", "describe.max_new_tokens=8", "batch_size=4", "wave=2"],
    "dpo": ["batch_size=1", "max_steps=4", "epochs=4"],
}
# What a step has written when it is killed, in the order of the steps.
BEGUN = {
    "sft": "sft/metrics.jsonl",
    "self_question": "self_question/generations.jsonl",
    "dpo": "dpo/metrics.jsonl",
    "predict": "predict/predictions.jsonl",
    "evaluate": "results.json",
}
SAME = (
    "sft/weights/model.safetensors",
    "self_question/candidates.jsonl",
    "judge/pairs.jsonl",
    "dpo/weights/model.safetensors",
    "predict/predictions.jsonl",
)


def tiny(folder: Path, url: str) -> SweepConfig:
    """The packaged sweep with a few steps and images, and a judge behind a server; only the variant with DPO."""
    config = load_config("sweep/demo_dpo", SweepConfig, [f"output_dir={folder}", "processes=1", "samples=0"])
    config.before[0].overrides.append("data.limit_train=8")
    config.train_overrides += ["max_steps=6", "batch_size=2"]
    config.evaluate_overrides = ["protocols=[open]", "swapped=[]", "limit=6"]
    config.predict_overrides = [*config.evaluate_overrides, "max_new_tokens=8"]
    config.variants = config.variants[1:]
    for step in config.variants[0].steps or []:
        step.overrides += TINY.get(step.called, [])
        if step.called == "judge":
            step.config = "judge/llama_cpp"
            step.overrides = ["candidates={step:self_question}/candidates.jsonl", f"server.base_url={url}"]
            step.overrides += [f"server.model={MODEL}", "server.concurrency=1"]
    return config


def begun(config: SweepConfig) -> BaseProcess:
    """The sweep in a process of its own, the first of its group."""

    def run() -> None:
        os.setsid()
        run_sweep(config, lambda line: None)
        os._exit(0)

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    return child


def end(child: BaseProcess) -> None:
    """Kill a sweep with everything that it has started."""
    assert child.pid is not None
    os.killpg(child.pid, signal.SIGKILL)


def killed_when(config: SweepConfig, ready: Callable[[], bool]) -> None:
    """Start the sweep, and kill it as soon as it is ready for that."""
    child = begun(config)
    last = time.monotonic() + 120
    while not ready():
        assert child.is_alive() and time.monotonic() < last, "the sweep has ended before it was killed"
        time.sleep(0.002)
    end(child)
    child.join()
    assert child.exitcode == -signal.SIGKILL


def filled_file(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def bodies(asked: list[dict]) -> Counter[str]:
    return Counter(json.dumps(body, sort_keys=True) for body in asked)


@pytest.mark.slow
def test_a_sweep_that_is_killed_at_every_step_asks_the_judge_nothing_twice(tmp_path: Path) -> None:
    with serve() as server:
        whole = tiny(tmp_path / "whole", server.url)
        run_sweep(whole, lambda line: None)
        once = bodies(server.bodies)
    assert set(once.values()) == {1} and len(once) >= 4

    state: dict[str, BaseProcess] = {}

    def on_request(number: int) -> None:
        if number == 3:
            end(state["child"])  # before it gets the reply to this request

    with serve(on_request=on_request) as server:
        config = tiny(tmp_path / "killed", server.url)
        run = Path(config.output_dir) / "dpo"
        for step, file in BEGUN.items():
            if step == "dpo":
                state["child"] = begun(config)
                state["child"].join(120)
                assert state["child"].exitcode == -signal.SIGKILL and not (run / "judge/pairs.jsonl").exists()
            killed_when(config, partial(filled_file, run / file))
        run_sweep(config, lambda line: None)
        in_flight = json.dumps(server.bodies[2], sort_keys=True)
        asked = bodies(server.bodies)
    assert asked == once + Counter([in_flight]), "only the request whose reply was never received is sent again"
    for name in SAME:
        assert (run / name).read_bytes() == (Path(whole.output_dir) / "dpo" / name).read_bytes(), name
    found = [json.loads((place / "results.json").read_text())["protocols"] for place in (run, tmp_path / "whole/dpo")]
    assert found[0] == found[1] and found[0]["open"]["overall"]["accuracy_macro"]["n"] > 0


# What each step of the sweep on VQA-RAD has written when it is killed; the judge is killed between two replies.
STAGES = (
    "sft/metrics.jsonl",
    "predict_sft/predictions.jsonl",
    "self_question/generations.jsonl",
    "judge",
    "dpo/metrics.jsonl",
    "predict/predictions.jsonl",
    "win_rate",
    "results.json",
)


def few_questions(data: Path, folder: Path, images: int = 4) -> list[str]:
    """The first questions about real images of VQA-RAD as their owners' files, and what ``prepare`` is told of them."""
    told = []
    for split, name, count in (("train", "trainset.json", 4), ("test", "testset.json", 2)):
        rows = json.loads((data / name).read_text(encoding="utf-8"))
        shown = [row for row in rows if (data / "images" / row["image_name"]).is_file()]
        chosen = list(dict.fromkeys(row["image_name"] for row in shown))[:images]
        kept = [row for image in chosen for row in [row for row in shown if row["image_name"] == image][:count]]
        (folder / name).write_text(json.dumps(kept))
        told.append(f"data.{split}={folder / name}")
    return told


def on_vqa_rad(data: Path, folder: Path, url: str) -> SweepConfig:
    """The packaged sweep on VQA-RAD with four images and few steps; only the variant with DPO."""
    places = [f"output_dir={folder}", f"prepared_dir={folder}/prepared", "processes=1"]
    config = load_config("sweep/stllava_med_vqa_rad_mini", SweepConfig, places)
    config.samples = 2
    config.before[0].overrides += few_questions(data, folder.parent)
    config.train_overrides += ["max_steps=4", "batch_size=2"]
    config.predict_overrides = ["protocols=[vqa]", "swapped=[]", "max_new_tokens=8"]
    config.variants = config.variants[1:]
    tiny_steps = {**TINY, "dpo": [*TINY["dpo"], "optimizer.lr=0.03"]}  # so that some answers change
    for step in config.variants[0].steps or []:
        step.overrides += tiny_steps.get(step.called, [])
        if step.recipe == "judge":
            step.overrides += [f"server.base_url={url}", "server.concurrency=1", "ties=second"]
    return config


@pytest.mark.slow
def test_the_sweep_on_vqa_rad_with_a_real_judge_is_killed_at_every_step(
    llama: str,  # noqa: F811
    medtune_data: Path,
    tmp_path: Path,
) -> None:
    """Each request reaches llama.cpp once, except the two that were on their way when the sweep was killed."""
    state: dict[str, Any] = {"at": 0}

    def on_request(number: int) -> None:
        if number == state["at"]:
            end(state["child"])

    with passing_on(llama, on_request=on_request) as server:
        config = on_vqa_rad(medtune_data / "vqa_rad", tmp_path / "sweep", server.url)
        run = Path(config.output_dir) / "dpo"
        for stage in STAGES:
            if stage in ("judge", "win_rate"):
                state["at"] = len(server.bodies) + 2
                state["child"] = begun(config)
                state["child"].join(240)
                assert state["child"].exitcode == -signal.SIGKILL and not (run / stage / "pairs.jsonl").exists()
                assert filled_file(run / stage / "replies.jsonl")
            else:
                killed_when(config, partial(filled_file, run / stage))
        page = run_sweep(config, lambda line: None).read_text()
    asked = Counter(server.bodies)
    judged, compared = (json.loads((run / step / "manifest.json").read_text()) for step in ("judge", "win_rate"))
    keys = [json.loads(line)["key"] for step in ("judge", "win_rate") for line in (run / step / "replies.jsonl").open()]
    assert sorted(asked.values())[-2:] == [2, 2] and sum(asked.values()) == len(asked) + 2
    assert len(set(keys)) == len(keys) == len(asked) == judged["replies"]["asked"] + compared["replies"]["asked"]
    won = compared["win_rate"]
    assert judged["counts"]["pairs"] > 0 and won["rate"]["n"] + won["left_out"] == 8
    scores = json.loads((run / "results.json").read_text())["protocols"]["vqa"]["overall"]
    assert scores["open_recall_micro"]["n"] + scores["closed_accuracy_strict_micro"]["n"] == 8
    for text in ("DPO: judge", "<h2>Win rate</h2>", "Preference pairs: DPO: judge", "Metrics of the method: dpo"):
        assert text in page, text
