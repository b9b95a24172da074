"""`medtune plan`: the printout, the numbers behind it, and the sentence when a config cannot run."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from medtune.cli import catalog
from medtune.cli.main import main
from medtune.config import PACKAGE, load_config
from medtune.config.composition import compose
from medtune.errors import ConfigError, ModelError
from medtune.models.common.interface import BatchShape
from medtune.training import memory
from medtune.training import plan as plan_module
from medtune.training.config import TrainConfig
from medtune.training.plan import plan

LARGE = "instfree/llama3_2_vision_11b_single_device"
ROWS = 10


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A mini InstFree run on ten image-report pairs."""
    Image.new("RGB", (32, 32), "white").save(tmp_path / "cell.png")
    with (tmp_path / "train.jsonl").open("w") as file:
        for index in range(ROWS):
            messages = [{"role": "assistant", "content": "cell size: big, cell shape: round"}]
            file.write(json.dumps({"id": str(index), "images": ["cell.png"], "messages": messages, "meta": {}}) + "\n")
    values = {
        "output_dir": str(tmp_path / "run"),
        "model": {"_component_": "medtune.models.mini.mini_vlm", "vocab_size": 1024},
        "transform": {
            "_component_": "medtune.models.mini.mini_transform",
            "path": str(PACKAGE / "assets" / "mini_tokenizer"),
        },
        "dataset": {
            "_component_": "medtune.datasets.jsonl_dataset",
            "source": str(tmp_path / "train.jsonl"),
            "image_root": str(tmp_path),
        },
        "objective": {"_component_": "medtune.objectives.InstFree", "vectors": 4, "warmup_epochs": 1},
        "dtype": "fp32",
        "epochs": 3,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    path = tmp_path / "config.yaml"
    path.write_text(f"# tune run --nproc_per_node 1 x.py\n{json.dumps(values)}")
    return path


def test_a_config_that_can_run_prints_everything_and_exits_with_zero(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config)]) == 0
    printed = capsys.readouterr().out
    assert "Parts in stage warmup" in printed
    assert "Parts in stage tune" in printed
    assert f"training rows        {ROWS}" in printed
    # 10 rows in steps of 4 are 3 steps: one epoch of warm-up and three of tuning.
    assert "warmup 3, tune 9; 12 in all" in printed
    for item in ("weights", "gradients", "optimizer", "activations", "logits", "all"):
        assert f"\n{item} " in printed
    assert not (config.parent / "run").exists()


def test_memory_is_that_of_the_stage_that_needs_most(config: Path) -> None:
    found = plan(str(config))
    with torch.device("cpu"):
        from medtune.models.mini import mini_vlm

        model = mini_vlm(1024)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    trained = sum(sizes[n] for part in ("vision", "projection", "fusion") for n in model.parts()[part])
    proxy = 4 * 128
    assert found.memory["weights"] == 4 * (sum(sizes.values()) + proxy)
    assert found.memory["gradients"] == 4 * (trained + proxy)
    assert found.memory["optimizer"] == 8 * (trained + proxy)
    assert "gathered layers" not in found.memory


def test_several_gpus_share_what_is_sharded(config: Path) -> None:
    one, four = plan(str(config)), plan(str(config), gpus=4)
    for item in ("weights", "gradients", "optimizer"):
        assert four.memory[item] == pytest.approx(one.memory[item] / 4)
    assert four.memory["activations"] == one.memory["activations"]
    assert four.memory["gathered layers"] > 0
    assert "16 (2 x 2 accumulated x 4 processes)" in four.text()


def test_the_launch_line_says_how_many_gpus(config: Path) -> None:
    config.write_text(config.read_text().replace("--nproc_per_node 1", "--nproc_per_node 4"))
    assert "Memory on each of 4 GPUs" in plan(str(config)).text()


@pytest.mark.parametrize(("header", "gpus"), [("--nproc_per_node 0", None), ("--nproc_per_node 2", -1)])
def test_no_process_at_all_is_refused(header: str, gpus: int | None, config: Path) -> None:
    config.write_text(config.read_text().replace("--nproc_per_node 1", header))
    with pytest.raises(ConfigError, match="at least 1, got (0|-1)"):
        plan(str(config), gpus=gpus)


def test_checkpointing_and_a_smaller_batch_need_less(config: Path) -> None:
    base = plan(str(config)).memory["activations"]
    assert plan(str(config), ["activation_checkpointing=true"]).memory["activations"] < base
    assert plan(str(config), ["batch_size=1"]).memory["activations"] < base


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["dataset.source=absent.jsonl"], "absent.jsonl"),
        (["checkpoint=absent"], "checkpoint=absent does not exist"),
        (["transform.path=absent"], "absent"),
        (["batch_sise=2"], "did you mean 'batch_size'?"),
        (["trainable=[adapter]"], "the model has no part 'adapter'"),
        (["learning_rates.decoder=0.1"], "learning_rates.decoder: this run trains"),
        (["dtype=fp8"], "'fp8' is not one of 'fp32', 'bf16'"),
        (["transform.max_seq_len=5"], "the limit is 5"),
    ],
)
def test_a_config_that_cannot_run_says_why(
    config: Path, overrides: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(config), *overrides]) == 2
    assert sentence in capsys.readouterr().err


def test_offloading_leaves_the_largest_layers_activations_and_none_without_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config: Any = SimpleNamespace(dtype="fp32", activation_offloading=True)
    for inside, expected in (([3.0, 7.0, 5.0], 7.0), ([], 0)):
        counted = SimpleNamespace(inside=inside)
        monkeypatch.setattr(memory, "count_activations", lambda *_, counted=counted: counted)
        assert plan_module._activations(config, None, BatchShape(1, 2, 1, 1, 16), set(), False) == expected


def test_a_gpu_that_is_too_small_is_told_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=8e9))
    config = load_config("instfree/mini", TrainConfig, ["checkpoint=null", "device=auto"])
    (found,) = plan_module._obstacles(config, 1, 12e9)
    assert found.startswith("about 12 GB are needed on each GPU and this one has 8 GB; try ")
    assert plan_module._obstacles(config, 1, 7e9) == []


def test_an_eight_bit_optimizer_is_refused_on_several_gpus(config: Path) -> None:
    overrides = ["optimizer._component_=bitsandbytes.optim.PagedAdamW8bit"]
    assert not plan(str(config), overrides).problems
    assert "sharded over 2 processes" in plan(str(config), overrides, gpus=2).problems[0]
    with pytest.raises(ConfigError, match="--gpus"):
        plan(str(config), gpus=-1)


@pytest.mark.parametrize("gpus", [1, 2])
def test_an_optimizer_whose_state_cannot_be_saved_is_refused(config: Path, gpus: int) -> None:
    overrides = ["optimizer._component_=torchao.optim.AdamW8bit"]
    (problem,) = plan(str(config), overrides, gpus=gpus).problems
    assert problem.startswith("torchao.optim.AdamW8bit keeps its state in tensors that a checkpoint cannot hold")
    assert ("PagedAdamW8bit" in problem) == (gpus == 1)


def test_the_11b_is_planned_in_seconds_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.perf_counter()
    status = main(["plan", LARGE, "checkpoint=/absent"])
    assert time.perf_counter() - start < 30
    captured = capsys.readouterr()
    # Counted on the published weights' shapes: vision 0.67, projection 0.19, fusion 1.74, decoder 8.03 billion.
    for number in ("665,152,003", "188,839,952", "1,744,930,832", "8,030,261,248", "2,598,955,555"):
        assert number in captured.out
    assert status == 2
    assert "the base weights are not here" in captured.err


TRAINING = [entry.name for entry in catalog.configs() if "objective" in compose(entry.path).tree]
# What a machine without weights and data lacks; a config that is wrong has other problems.
LACKS = (
    "no tokenizer at models/",
    "the base weights are not here: ",
    "the task-specific model is not here: ",
    "the pretrained weights are not here: ",
    "The data file prepared/",
    "prepared/selector holds no features ",
    "The data file runs/",
    "The image root ",
    "medtune.datasets.jsonl_dataset: image_root lies in the data folder, but $MEDTUNE_DATA is not set",
)


@pytest.fixture(scope="module")
def built_once() -> Iterator[None]:
    """Lays out each model and counts its activations once: 4-bit weights of the 11B take seconds; data change none."""
    patch, build, count = pytest.MonkeyPatch(), plan_module._meta_model, memory.count_activations
    models: dict[str, Any] = {}
    counts: dict[tuple[Any, ...], Any] = {}

    def build_once(config: TrainConfig) -> Any:
        key = json.dumps([config.model, config.dtype], sort_keys=True)
        if key not in models:
            models[key] = build(config)
        return models[key]

    def count_once(model: Any, shape: BatchShape, trained: set[str], proxied: bool) -> memory.Activations:
        key = (id(model), shape, frozenset(trained), proxied)
        if key not in counts:
            counts[key] = count(model, shape, trained, proxied)
        return counts[key]

    patch.setattr(plan_module, "_meta_model", build_once)
    patch.setattr(memory, "count_activations", count_once)
    yield
    patch.undo()


@pytest.mark.parametrize("name", TRAINING)
def test_every_training_config_is_walked_through(name: str, built_once: None) -> None:
    if "90b_qlora" in name:
        pytest.skip("torchao takes a minute to lay out 90 billion 4-bit weights; the 11B stands for it")
    header = catalog.find(name).header
    if name.endswith("/auto") or name == "selector/biomed_clip_whole":
        with pytest.raises(ModelError, match=r"no weights at models/FOLDER|the pretrained model is not here: models/"):
            plan(name)
        return
    found = plan(name)
    assert [problem for problem in found.problems if not problem.startswith(LACKS)] == []
    assert found.memory["weights"] > 0 and "Parts in stage " in found.text()
    promised = re.search(r"(\d+) GB GPU", header)
    assert promised is None or sum(found.memory.values()) < 0.9e9 * int(promised[1])
    assert ("gathered layers" in found.memory) == name.endswith("_distributed")


def test_every_data_set_has_a_config_for_one_gpu_and_several_for_lora_and_qlora() -> None:
    for data in ("", "cbis_ddsm_", "skincon_", "mimic_cxr_"):
        for way in ("single_device", "distributed", "lora_single_device", "qlora_single_device"):
            assert f"instfree/llama3_2_vision_11b_{data}{way}" in TRAINING


def test_configs_for_one_data_set_differ_in_the_way_alone() -> None:
    for data in ("", "cbis_ddsm_", "skincon_", "mimic_cxr_"):
        one, *others = [
            load_config(f"instfree/llama3_2_vision_11b_{data}{way}", TrainConfig)
            for way in ("single_device", "distributed", "lora_single_device", "qlora_single_device")
        ]
        for other in others:
            for key in (
                "dataset",
                "dataset_val",
                "objective",
                "transform",
                "checkpoint",
                "epochs",
                "max_steps",
                "seed",
            ):
                assert getattr(other, key) == getattr(one, key), (data, key)
        assert len({config.output_dir for config in (one, *others)}) == 4
