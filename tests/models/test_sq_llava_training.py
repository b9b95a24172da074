"""Whole runs of a tiny SQ-LLaVA that starts from a LLaVA: a rate for each part, one process equals two, the export."""

import json

import pytest
import torch
from safetensors.torch import load_file

from medtune.models.mini import mini_llava, mini_sq_llava
from medtune.models.weights import load_weights, save_hf
from tests.models.test_llava_training import MODEL, RUN
from tests.runs import launch, losses, tiny, weights

SQ = {
    **MODEL,
    "_component_": "medtune.models.mini.lora_mini_sq_llava",
    "prototypes": 2,
    "lora_attn_modules": ["q_proj", "v_proj"],
    "apply_lora_to_mlp": True,
    "lora_parts": {"vision": {"rank": 2, "alpha": 4}, "decoder": {"rank": 3, "alpha": 6}},
}
SIZES = {key: value for key, value in SQ.items() if key in (*MODEL, "prototypes") and key != "_component_"}
PARTS = ["adapter.vision", "adapter.decoder", "projection"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A LLaVA in the published layout."""
    folder = tmp_path_factory.mktemp("llava")
    torch.manual_seed(0)
    llava = mini_llava(**{key: value for key, value in MODEL.items() if key != "_component_"})
    save_hf(llava.state_dict(), llava.family, folder)
    return folder


def run(folder, base, world=1, rates=None, **changes):
    changes = {"batch_size": 4 // world, "model": SQ, "trainable": PARTS, "checkpoint": str(base), **changes}
    config = tiny(folder, **{**RUN, **changes, "export": "hf"})
    config.learning_rates = rates or {}
    assert set(launch(config, world)) == {0}
    return weights(folder)


def test_a_run_from_a_llava_trains_each_part_and_one_process_equals_two(tmp_path, base):
    one, two = run(tmp_path / "1", base), run(tmp_path / "2", base, world=2)
    first, second = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) < 1e-6
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 1e-6
    model = mini_sq_llava(**SIZES)
    start, found = load_weights(base, model), load_weights(tmp_path / "1" / "weights", model)
    changed = {key for key in found if not torch.equal(found[key], start[key])}
    adapted = ("attn.q_proj.weight", "attn.v_proj.weight", "mlp.w1.weight", "mlp.w2.weight", "mlp.w3.weight")
    assert changed == {
        key
        for key in found
        if "unused" not in key and "ln_1" not in key and ("projection" in key or key.endswith(adapted))
    }
    assert any("encoder.vision.layers.0" in key for key in changed)
    config = json.loads((tmp_path / "1" / "weights" / "config.json").read_text())
    assert config["mm_projector_type"] == "cluster"


def test_each_part_has_its_own_learning_rate(tmp_path, base):
    """The first step of SGD is the rate times the gradient, and an adapter's second matrix begins at zero."""
    rate = RUN["optimizer"]["lr"]
    run(tmp_path / "one", base, max_steps=1)
    run(tmp_path / "own", base, max_steps=1, rates={"adapter.vision": 2 * rate, "projection": 4 * rate})
    one, own = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "own")
    start = load_weights(base, mini_sq_llava(**SIZES))
    for part, factor in (("encoder.vision", 2), ("encoder.projection", 4), ("decoder", 1)):
        stepped = [key for key in one if key.startswith(part) and "lora_a" not in key]
        steps = [(one[key] - start.get(key, 0), own[key] - start.get(key, 0)) for key in stepped]
        assert steps and all(torch.allclose(factor * a, b, rtol=1e-4, atol=1e-6) for a, b in steps), part
        assert max(a.abs().max() for a, _ in steps) > 1e-5, part


def checkpoint(folder):
    newest = max((folder / "checkpoints").glob("step_*"))
    return load_file(newest / "model.safetensors")
