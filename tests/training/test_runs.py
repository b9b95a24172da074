"""Whole runs: signals, one run per folder, loggers, skipped samples, compilation, what is refused."""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medtune.errors import ConfigError, DataError
from medtune.training import trainer as trainer_module
from medtune.training.runtime import Runtime
from medtune.training.trainer import Trainer
from tests.runs import LORA, SFT, SGD, die_at, largest_difference, launch, losses, metrics, tiny, weights


def told(number: int, step: int, ranks: tuple[int, ...]) -> Callable[[], None]:
    """Send a signal to these processes in the middle of a step."""

    def harm() -> None:
        original = Trainer._forward_backward

        def instead(self: Trainer, batches: list) -> torch.Tensor:
            if self.step == step and self.runtime.rank in ranks:
                signal.raise_signal(number)
            return original(self, batches)

        Trainer._forward_backward = instead  # type: ignore[method-assign]

    return harm


def steps_saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_signal_to_any_process_ends_all_with_one_checkpoint(
    ranks: tuple[int, ...], number: int, tmp_path: Path
) -> None:
    config = tiny(tmp_path, batch_size=2)
    assert launch(config, world=2, harm=told(number, 5, ranks)) == [128 + number] * 2
    assert steps_saved(tmp_path) == ["step_00000004", "step_00000006"] and not (tmp_path / "weights").exists()


@pytest.mark.parametrize("world", [1, 2])
def test_a_signal_in_the_last_step_finds_the_run_finishing(world: int, tmp_path: Path) -> None:
    config = tiny(tmp_path, batch_size=4 // world)
    assert launch(config, world, harm=told(signal.SIGTERM, 11, (0,))) == [0] * world
    assert len(losses(tmp_path)) == 12 and (tmp_path / "weights" / "model.safetensors").exists()


def test_a_signal_while_the_weights_are_written_does_not_stop_them(tmp_path: Path) -> None:
    def harm() -> None:
        original = trainer_module.export_weights

        def export(*arguments: Any) -> None:
            signal.raise_signal(signal.SIGTERM)
            original(*arguments)

        trainer_module.export_weights = export

    assert launch(tiny(tmp_path), harm=harm) == [0]
    assert (tmp_path / "weights" / "model.safetensors").exists()


def test_a_kill_while_the_weights_are_written_is_made_up_for(tmp_path: Path) -> None:
    def harm() -> None:
        trainer_module.export_weights = lambda *_: os._exit(9)

    assert launch(tiny(tmp_path), harm=harm) == [9]
    assert launch(tiny(tmp_path)) == [0]
    assert len(losses(tmp_path)) == 12 and (tmp_path / "weights" / "model.safetensors").exists()


@pytest.mark.parametrize("world", [1, 2])
def test_a_folder_in_use_is_refused_by_every_process_at_once(world: int, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        started = time.perf_counter()
        assert launch(tiny(tmp_path), world) == [2] * world
        assert time.perf_counter() - started < 15
        for rank in range(world):
            assert "in use by another run" in (tmp_path / f"error_{rank}.txt").read_text()
    assert launch(tiny(tmp_path)) == [0]


def test_a_killed_run_with_data_workers_is_continued_at_once(tmp_path: Path) -> None:
    """Workers outlive a killed run by seconds; the lock must not."""
    options = {"num_workers": 2, "save_every_steps": 2}
    assert launch(tiny(tmp_path, **options), harm=die_at(6)) == [9]
    assert launch(tiny(tmp_path, **options)) == [0]
    assert len(losses(tmp_path)) == 12


def test_one_process_with_a_problem_ends_all_with_its_words() -> None:
    runtime = Runtime(torch.device("cpu"))

    def fail() -> None:
        raise DataError("row 7")

    with pytest.raises(DataError, match="row 7"):
        runtime.on_all_ranks(fail)
    assert runtime.on_rank0(lambda: 5) == 5


def broken_images(folder: Path, broken: tuple[int, ...], kind: str) -> dict[str, Any]:
    """Ten questions, some with an image that begins and ends well and cannot be decoded."""
    lines = []
    for index in range(10):
        path = folder / f"{index}.png"
        Image.effect_noise((16, 16), 90).convert("RGB").save(path)
        if index in broken:
            data = path.read_bytes()
            path.write_bytes(data[:100] + bytes(200) + data[300:])
        messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a cell"}]
        sample = {"id": f"s{index}", "images": [path.name], "messages": messages, "meta": {}}
        lines.append(json.dumps(sample))
    source = folder / f"{kind}.jsonl"
    source.write_text("\n".join(lines))
    return {"_component_": "medtune.datasets.jsonl_dataset", "source": str(source), "image_root": str(folder)}


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_an_image_found_broken_in_training_is_skipped_counted_and_listed(
    world: int, workers: int, tmp_path: Path
) -> None:
    data = broken_images(tmp_path, (1, 4, 7), "train")
    held = {"dataset_val": broken_images(tmp_path, (1, 4, 7), "val"), "allow_leakage": ["same_file"]}
    config = tiny(tmp_path / "run", **{**SFT, "dataset": data}, **held, on_error="skip", num_workers=workers)
    config.batch_size, config.max_steps, config.save_every_steps = 4 // world, 6, 2
    assert launch(config, world, harm=die_at(5)) == [9] * world
    assert launch(config, world) == [0] * world
    listed = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"]
    found = [(Path(entry["reason"].split(":")[0]).stem, entry["id"]) for entry in listed]
    assert sorted(found) == [(name, row) for name in ("train", "val") for row in ("s1", "s4", "s7")]
    assert all(f"{entry['id'][1:]}.png" in entry["reason"] for entry in listed)


@pytest.mark.parametrize("world", [1, 2])
def test_an_image_found_broken_in_training_stops_every_process_with_its_name(world: int, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", **{**SFT, "dataset": broken_images(tmp_path, (4,), "train")}, max_steps=6)
    config.batch_size = 4 // world
    assert launch(config, world) == [2] * world
    for rank in range(world):
        assert "4.png" in (tmp_path / "run" / f"error_{rank}.txt").read_text()


def test_a_row_found_wrong_before_training_is_listed_too(tmp_path: Path) -> None:
    data = broken_images(tmp_path, (), "train")
    (tmp_path / "3.png").unlink()
    config = tiny(tmp_path / "run", **{**SFT, "dataset": data}, on_error="skip", max_steps=1)
    assert launch(config) == [0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [entry["id"] for entry in summary["skipped"]] == ["s3"] and summary["samples"] == 9


def test_the_seconds_of_a_run_are_those_of_all_its_starts(tmp_path: Path) -> None:
    def slow_until_stopped() -> None:
        original = Trainer._forward_backward

        def instead(self: Trainer, batches: list) -> torch.Tensor:
            if self.step == 5:
                time.sleep(2)
                signal.raise_signal(signal.SIGTERM)
            return original(self, batches)

        Trainer._forward_backward = instead  # type: ignore[method-assign]

    assert launch(tiny(tmp_path), harm=slow_until_stopped) == [128 + signal.SIGTERM]
    stopped = json.loads((tmp_path / "checkpoints" / "step_00000006" / "state.json").read_text())["seconds"]
    assert stopped > 2
    assert launch(tiny(tmp_path)) == [0]
    seconds = json.loads((tmp_path / "summary.json").read_text())["seconds"]
    assert seconds > stopped
    assert launch(tiny(tmp_path)) == [0]
    again = json.loads((tmp_path / "summary.json").read_text())["seconds"]
    assert again <= seconds, "a finished run does not grow older"


def test_loggers_of_torchtune_write(tmp_path: Path) -> None:
    disk = {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": str(tmp_path / "disk")}
    board = {"_component_": "torchtune.training.metric_logging.TensorBoardLogger", "log_dir": str(tmp_path / "board")}
    config = tiny(tmp_path, loggers=[disk, board])
    assert launch(config) == [0]
    written = next((tmp_path / "disk").glob("*.txt")).read_text()
    assert all(f"Step {step} " in written for step in range(1, 13)) and "loss" in written
    events = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent), {"tensors": 0}).Reload()
    shown = [event.tensor_proto.float_val[0] for event in events.Tensors("loss")]
    assert shown == pytest.approx(losses(tmp_path), rel=1e-6)


def test_metrics_have_each_step_once_wherever_a_run_was_killed(tmp_path: Path) -> None:
    plain, killed = tmp_path / "plain", tmp_path / "killed"
    assert launch(tiny(plain, save_every_steps=3)) == [0]

    def after_the_log_line() -> None:
        trainer_module.Trainer._save = lambda self: os._exit(9)  # type: ignore[method-assign]

    assert launch(tiny(killed, save_every_steps=3), harm=die_at(4)) == [9]
    assert launch(tiny(killed, save_every_steps=3), harm=after_the_log_line) == [9]
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    assert launch(tiny(killed, save_every_steps=3)) == [0]
    assert metrics(killed) == metrics(plain)


def test_what_an_objective_measures_is_summed_like_the_loss_and_logged(tmp_path: Path) -> None:
    def harm() -> None:
        from medtune.objectives.base import StepOutput
        from medtune.objectives.instfree import InstFree

        original = InstFree.forward

        def forward(self: InstFree, model: Any, batch: dict[str, Any]) -> StepOutput:
            output = original(self, model, batch)
            return output._replace(metrics={"twice": 2 * output.loss_sum})

        InstFree.forward = forward  # type: ignore[method-assign]

    assert launch(tiny(tmp_path, batch_size=1, gradient_accumulation_steps=2), world=2, harm=harm) == [0, 0]
    for line in metrics(tmp_path):
        assert line["twice"] == pytest.approx(2 * line["loss"], rel=1e-12)


COMPILER = shutil.which("c++") or shutil.which("g++")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "checkpointing"),
    [
        ("aot_eager", True),
        pytest.param("inductor", False, marks=pytest.mark.skipif(not COMPILER, reason="it needs a C++ compiler")),
    ],
)
def test_compiled_layers_give_the_same_losses(backend: str, checkpointing: bool, tmp_path: Path) -> None:
    options = {"optimizer": SGD, "objective": {"warmup_steps": 0}, "max_steps": 2}
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"

    def choose() -> None:
        os.environ["TORCH_COMPILE_BACKEND"] = backend

    assert launch(tiny(plain, **options)) == [0]
    config = tiny(compiled, **options, compile=True, activation_checkpointing=checkpointing)
    assert launch(config, harm=choose) == [0]
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert largest_difference(weights(compiled), weights(plain)) < 1e-5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a part that the model lacks": ({"trainable": ["adapter"]}, "the model has no part 'adapter'; it has vision"),
    "a rate for nothing": ({"learning_rates": {"decoder": 1e-3}}, "learning_rates.decoder: this run trains"),
    "no weights there": ({"checkpoint": "absent"}, "no weights at absent"),
    "offloading without a GPU": (
        {"activation_checkpointing": True, "activation_offloading": True},
        "activation_offloading needs a GPU",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("world", [1, 2])
def test_refused_before_training_by_every_process(world: int, case: str, tmp_path: Path) -> None:
    changes, sentence = REFUSED[case]
    assert launch(tiny(tmp_path, **changes), world) == [2] * world
    for rank in range(world):
        assert sentence in (tmp_path / f"error_{rank}.txt").read_text()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_checkpoint_of_another_shape_or_model_is_refused(tmp_path: Path) -> None:
    assert launch(tiny(tmp_path / "base", max_steps=1)) == [0]
    saved = str(tmp_path / "base" / "weights" / "model.safetensors")
    for world in (1, 2):
        assert launch(tiny(tmp_path / "other", model={"embed_dim": 32}, checkpoint=saved), world) == [2] * world
        message = (tmp_path / "other" / "error_0.txt").read_text()
        assert "of another size" in message and saved in message
    assert launch(tiny(tmp_path / "base", model=LORA, trainable=["adapter"])) == [2]
    message = (tmp_path / "base" / "error_0.txt").read_text()
    assert "belongs to another run" in message and "model.lora_rank: absent there, 2 here" in message
    assert "model._component_: medtune.models.mini.mini_vlm there" in message and "\n  trainable: " in message


def test_an_output_dir_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="output_dir: cannot write into"):
        Trainer(tiny(tmp_path / "file" / "run")).run()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="process 1 finds 1 GPUs"):
        Runtime.start("cuda")
