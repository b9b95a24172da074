"""The mini builders: ready to train from nothing, small, and quantisable."""

import inspect

import pytest
import torch
from torchao.dtypes.nf4tensor import NF4Tensor

from medtune.models.mini import lora_mini_vlm, mini_vlm, qlora_mini_vlm


def gates(model):
    return {p.item() for name, p in model.named_parameters() if name.endswith(("_scale.scale", "mlp_scale.scale"))}


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(mini_vlm(300).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_gates_start_where_asked(value):
    assert gates(mini_vlm(300, gate_init=value)) == {value}


def test_open_gates_let_the_image_be_seen_at_once():
    model = mini_vlm(300)
    tokens, seen = torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, 65, dtype=torch.bool)
    logits = [
        model.logits(model.hidden(tokens, model.encode({"images": image}), vision_mask=seen))
        for image in (torch.zeros(1, 1, 1, 3, 64, 64), torch.randn(1, 1, 1, 3, 64, 64))
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_a_few_million_parameters():
    assert 1e6 < sum(p.numel() for p in mini_vlm(1024).parameters()) < 4e6


def test_qlora_keeps_the_adapted_parts_as_nf4():
    model = qlora_mini_vlm(300, ["q_proj", "k_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True)
    quantised = {name for name, p in model.named_parameters() if isinstance(p.data, NF4Tensor)}
    linear = {name for name, p in model.named_parameters() if name.endswith("_proj.weight")}
    assert linear <= quantised
    assert {name.split(".")[0] for name in quantised} == {"encoder", "decoder"}
    assert not any("tok_embeddings" in name or name.endswith("output.weight") for name in quantised)


def test_adapted_builders_take_what_the_plain_one_takes():
    plain = inspect.signature(mini_vlm).parameters
    adapted = inspect.signature(lora_mini_vlm).parameters
    assert {name: p.default for name, p in plain.items()}.items() <= {n: p.default for n, p in adapted.items()}.items()
    assert inspect.signature(qlora_mini_vlm).parameters["quantize_base"].default is True
