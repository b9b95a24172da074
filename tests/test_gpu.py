"""Each mini family on a GPU: a bf16 step, answers with a cache, NF4, compilation, a killed and resumed run.

pytest -m gpu                                    # on a machine with a GPU; skipped elsewhere
MEDTUNE_SMOKE_DEVICE=cpu pytest tests/test_gpu.py    # a rehearsal of the same lines on a CPU
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medtune.config import instantiate, save_config
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Request
from medtune.training.config import TrainConfig
from tests.runs import CELLS, SFT, losses, metrics, tiny, weights

DEVICE = os.environ.get("MEDTUNE_SMOKE_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU, and -m gpu"),
]
SIZES = {"vocab_size": 1024, "embed_dim": 16, "vision_layers": 2, "decoder_layers": 2, "image_size": 16}
MINI = "medtune.models.mini"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3_2_vision": {
        "model": {"_component_": f"{MINI}.mini_vlm", **SIZES},
        "transform": {"_component_": f"{MINI}.mini_transform", "image_size": 16},
        "trainable": ["fusion", "decoder"],
    },
    "internvl": {
        "model": {"_component_": f"{MINI}.mini_internvl", **SIZES},
        "transform": {"_component_": f"{MINI}.mini_internvl_transform", "image_size": 16, "max_num_tiles": 2},
        "trainable": ["projection", "decoder"],
    },
    "llava": {
        "model": {"_component_": f"{MINI}.mini_llava", **SIZES},
        "transform": {"_component_": f"{MINI}.mini_llava_transform", "image_size": 16},
        "trainable": ["projection", "decoder"],
    },
}
LOW_RANK = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2, "lora_alpha": 8}
RUN: dict[str, Any] = {**SFT, "device": DEVICE, "dtype": "bf16", "max_steps": 4, "export": "none"}

every_family = pytest.mark.parametrize("family", FAMILIES)


def low_rank(family: str, kind: str, **sizes: int) -> dict[str, Any]:
    """The family with adapters on a frozen base; ``qlora`` keeps the base in NF4."""
    model = FAMILIES[family]["model"]
    path = model["_component_"].replace(".mini_", f".{kind}_mini_")
    return {**FAMILIES[family], "model": {**model, "_component_": path, **LOW_RANK, **sizes}, "trainable": ["adapter"]}


def run(config: TrainConfig, die: int | None = None) -> int:
    """Train in a process of its own, which may end without a word at a step; a forked one could not use the GPU."""
    folder = Path(config.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".yaml")
    save_config(config, path)
    harm = "" if die is None else f"die_at({die})()\n"
    code = (
        "from medtune.config import load_config\nfrom medtune.training.config import TrainConfig\n"
        "from medtune.training.trainer import Trainer\nfrom tests.runs import die_at\n"
        f"{harm}raise SystemExit(Trainer(load_config({str(path)!r}, TrainConfig)).run())"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], timeout=280).returncode


def check(folder: Path, steps: int = 4) -> None:
    found = losses(folder)
    assert len(found) == steps and all(map(math.isfinite, found))
    assert all(line["grad_norm"] > 0 for line in metrics(folder) if "grad_norm" in line)
    if DEVICE == "cuda":
        assert all(line["peak_memory_gb"] > 0 for line in metrics(folder) if "loss" in line)


@every_family
def test_a_step_in_bf16(family: str, tmp_path: Path) -> None:
    assert run(tiny(tmp_path / "run", **RUN, **FAMILIES[family])) == 0
    check(tmp_path / "run")


@every_family
def test_adapters_on_an_nf4_base(family: str, tmp_path: Path) -> None:
    assert run(tiny(tmp_path / "run", **RUN, **low_rank(family, "qlora", embed_dim=128))) == 0
    check(tmp_path / "run")


@every_family
def test_compiled_layers_with_activation_checkpointing(family: str, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", **RUN, **FAMILIES[family], compile=True, activation_checkpointing=True)
    assert run(config) == 0
    check(tmp_path / "run")


@every_family
def test_a_killed_run_is_resumed(family: str, tmp_path: Path) -> None:
    settings = {**RUN, **low_rank(family, "lora"), "max_steps": 6, "save_every_steps": 2, "export": "torchtune"}
    assert run(tiny(tmp_path / "whole", **settings)) == 0
    assert run(tiny(tmp_path / "killed", **settings), die=3) == 9
    assert run(tiny(tmp_path / "killed", **settings)) == 0
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), abs=0 if DEVICE == "cpu" else 1e-3)
    first, second = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert first.keys() == second.keys()
    worst = max((first[name].double() - second[name].double()).abs().max().item() for name in first)
    assert worst <= (0 if DEVICE == "cpu" else 1e-2)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_answers_with_a_cache(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", **RUN, **FAMILIES[family])
    torch.manual_seed(0)
    model = instantiate(config.model).to(DEVICE, dtype)
    transform = instantiate(config.transform)
    source = instantiate({"_component_": CELLS, "size": 4, "seed": 3, "kind": "questions", "image_size": 16})
    requests = [Request(str(index), source[index], source, ("big", "small")) for index in range(len(source))]
    together, alone = (
        {
            answer.id: answer
            for answer in Generator(model, transform, batch_size=size, max_new_tokens=8, device=DEVICE, dtype=dtype)(
                requests
            )
        }
        for size in (4, 1)
    )
    for request in requests:
        assert together[request.id].tokens == 8 or together[request.id].stopped
        if dtype == torch.float32:
            assert together[request.id].text == alone[request.id].text
        wanted = alone[request.id].scores
        assert together[request.id].scores == pytest.approx(wanted, rel=1e-3 if dtype == torch.float32 else 0.1)
