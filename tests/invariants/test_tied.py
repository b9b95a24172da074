"""Output layers that are the embedding table, on several processes: sharded once, trained once, exported once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medtune.config import instantiate
from medtune.models.from_checkpoint import from_checkpoint
from medtune.training.config import TrainConfig
from tests.families import FAMILIES, LORA
from tests.invariants.test_sft import MIXED
from tests.models.folders import internvl_hf
from tests.runs import SFT, SGD, largest_difference, launch, losses, tiny, weights

RUN: dict[str, Any] = {
    **SFT, "dataset": MIXED, "trainable": ["vision", "projection", "decoder"], "optimizer": SGD, "max_steps": 6,
    "bucket": False, "clip_grad_norm": 1.0, "schedule": {"kind": "constant"},
}  # fmt: skip
WORDS = "decoder.tok_embeddings.weight"


def run_of(case: str, folder: Path, made: Path, **changes: Any) -> TrainConfig:
    """A short run of a mini model with tied embeddings; InternVL's is read from a folder, as the 1B's may be."""
    if case == "internvl":
        model = {"_component_": "medtune.models.from_checkpoint", "checkpoint": str(made)}
        transform = {"_component_": "medtune.models.from_checkpoint_transform", "max_num_tiles": 2, "max_seq_len": 1024}
        config = tiny(folder, **{**RUN, "model": model, "transform": transform, "checkpoint": str(made), **changes})
        config.transform["path"] = str(made)
        return config
    family = FAMILIES[case]
    tied = {"tied": True} if case == "qwen2_5_vl" else {}
    return tiny(folder, **{**RUN, "model": {**family.plain, **tied}, "transform": family.transform, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return internvl_hf(tmp_path_factory.mktemp("internvl"), tied=True)


@pytest.mark.parametrize("case", ["gemma3", "qwen2_5_vl", "internvl"])
def test_two_processes_train_and_save_what_one_does(case: str, made: Path, tmp_path: Path) -> None:
    """Samples with and without images; the embedding table learns as words and as the output layer."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(run_of(case, one, made, batch_size=4)) == [0]
    assert launch(run_of(case, two, made, batch_size=2), world=2) == [0, 0]
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    first, second = weights(one), weights(two)
    assert largest_difference(first, second) < 1e-6
    assert WORDS in first and not any("decoder.output" in name for name in first), "the table is saved once"
    before = start(case, one, made)
    moved = (first[WORDS] - before[WORDS]).abs().amax(dim=1)
    assert moved.min() > 0, "every row has a gradient, as a row of the output layer"


def start(case: str, folder: Path, made: Path) -> dict[str, torch.Tensor]:
    """The weights before the first step."""
    config = run_of(case, folder, made)
    if case == "internvl":
        model = from_checkpoint(str(made))
        return dict(model.family.hf_to_tune(load_file(made / "model.safetensors")))
    torch.manual_seed(config.seed)
    return dict(instantiate(config.model).state_dict())


def test_gemma_3_on_a_base_in_nf4_trains_on_two_processes_as_on_one(tmp_path: Path) -> None:
    """256 wide and as many key/value heads as heads: each process has whole blocks of NF4's scales."""
    wide = {**FAMILIES["gemma3"].plain, "embed_dim": 256, "heads": 4}
    base = {
        **RUN,
        "model": wide,
        "transform": FAMILIES["gemma3"].transform,
        "trainable": ["projection"],
        "max_steps": 1,
    }
    assert launch(tiny(tmp_path / "base", **base)) == [0]
    run = {
        **RUN, "transform": FAMILIES["gemma3"].transform, "trainable": ["adapter"], "max_steps": 3,
        "model": {**wide, **LORA, "_component_": "medtune.models.mini.qlora_mini_gemma3", "lora_parts": ["decoder"]},
        "checkpoint": str(tmp_path / "base" / "weights" / "model.safetensors"),
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert launch(tiny(one, **run, batch_size=4)) == [0]
    assert launch(tiny(two, **run, batch_size=2), world=2) == [0, 0]
    assert losses(two) == pytest.approx(losses(one), abs=1e-6)
    assert losses(one)[-1] != losses(one)[0]
    assert largest_difference(weights(one), weights(two)) < 1e-6
