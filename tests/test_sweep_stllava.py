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

import pytest

from medtune.config import load_config
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_sweep
from tests.judges import llama_server
from tests.judges.judge_server import MODEL, serve
from tests.judges.test_llama import HEADER, SCHEMA, llama  # noqa: F401

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


def tiny(folder: Path, url: str, model: str = MODEL, judge: tuple[str, ...] = ()) -> SweepConfig:
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
            step.overrides += [f"server.model={model}", "server.concurrency=1", *judge]
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


@pytest.mark.slow
def test_the_sweep_with_a_real_judge_behind_llama_cpp(llama: str, tmp_path: Path) -> None:  # noqa: F811
    """Killed between two replies of a real model: those on the disk are kept, and the loop ends with scores."""
    prompt = tmp_path / "short.txt"
    prompt.write_text(HEADER + "{question} Score 1: {answer_1} 2: {answer_2}")
    judge = (f"judge.prompt={prompt}", f"server.options={SCHEMA}", "judge.max_tokens=80", "ties=second")
    config = tiny(tmp_path / "sweep", llama, llama_server.MODEL, judge)
    run = Path(config.output_dir) / "dpo"
    replies = run / "judge" / "replies.jsonl"
    killed_when(config, lambda: replies.is_file() and b"\n" in replies.read_bytes())
    kept = replies.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    assert kept and not (run / "judge" / "pairs.jsonl").exists()
    run_sweep(config, lambda line: None)
    assert replies.read_bytes().startswith(kept)
    keys = [json.loads(line)["key"] for line in replies.read_bytes().splitlines()]
    judged = json.loads((run / "judge" / "manifest.json").read_text())
    assert len(keys) == len(set(keys)) == judged["replies"]["asked"] == 2 * judged["counts"]["judged"]
    assert judged["counts"]["pairs"] > 0
    results = json.loads((run / "results.json").read_text())
    assert results["protocols"]["open"]["overall"]["accuracy_macro"]["n"] > 0
