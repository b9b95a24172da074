"""Adapters are merged into the weights that they were trained beside."""

import pytest
import torch
from torchao.dtypes.nf4tensor import NF4Tensor

from medtune.models.common.names import is_adapter_key
from medtune.models.lora.merge import adapted_layers, merge_adapters, round_to_nf4
from medtune.models.mini import lora_mini_vlm, mini_vlm, qlora_mini_vlm

SIZES = {"vision_layers": 2, "decoder_layers": 2}


def half(builder, *args, **kwargs):
    torch.set_default_dtype(torch.bfloat16)
    try:
        return builder(*args, **kwargs)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_base_is_rounded_exactly_as_a_qlora_model_holds_it():
    base = half(mini_vlm, 300, **SIZES).state_dict()
    model = half(qlora_mini_vlm, 300, ["q_proj"], apply_lora_to_mlp=True, **SIZES)
    model.load_state_dict(base, strict=False)
    held = {key: value for key, value in model.state_dict().items() if not is_adapter_key(key)}
    with torch.device("meta"):
        empty = half(qlora_mini_vlm, 300, ["q_proj"], apply_lora_to_mlp=True, **SIZES)
    rounded = round_to_nf4(dict(base), empty, torch.bfloat16)
    assert rounded.keys() == held.keys() and all(torch.equal(rounded[key], held[key]) for key in held)
    changed = {key for key in base if not torch.equal(rounded[key], base[key])}
    assert len(changed) == sum(isinstance(p, NF4Tensor) for p in model.parameters()) > 10


def test_without_nf4_nothing_is_rounded():
    state = mini_vlm(300, **SIZES).state_dict()
    rounded = round_to_nf4(state, lora_mini_vlm(300, ["q_proj"], **SIZES), torch.float32)
    assert all(rounded[key] is state[key] for key in state)


@pytest.mark.parametrize("alpha", [1.0, 8.0])
def test_a_model_on_the_meta_device_says_how_to_merge(alpha):
    arguments = (300, ["v_proj"], False, False, 4, alpha)
    model = lora_mini_vlm(*arguments, **SIZES)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_b.weight.normal_()
    with torch.device("meta"):
        empty = lora_mini_vlm(*arguments, **SIZES)
    state = model.state_dict()
    merged, key = merge_adapters(state, empty), "decoder.layers.1.fusion_layer.attn.v_proj"
    update = state[f"{key}.lora_b.weight"] @ state[f"{key}.lora_a.weight"]
    assert torch.allclose(merged[f"{key}.weight"], state[f"{key}.weight"] + alpha / 4 * update)
    assert set(adapted_layers(empty)) == {k.removesuffix(".lora_a.weight") for k in state if ".lora_a." in k}


@pytest.mark.parametrize("mode", ["torchtune", "checkpoint", "strict"])
def test_adapters_that_add_nothing_leave_the_image_features_as_they_are(mode):
    plain = mini_vlm(300, **SIZES, encoder_mode=mode)
    adapted = lora_mini_vlm(300, ["q_proj", "v_proj"], **SIZES, encoder_mode=mode)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    for name, parameter in adapted.named_parameters():
        if ".lora_b." in name:
            torch.nn.init.zeros_(parameter)
    vision = {
        "images": torch.rand(1, 1, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "aspect_ratio": torch.ones(1, 1, 2, dtype=torch.long),
        "tiles": torch.ones(1, 1, dtype=torch.long),
    }
    assert torch.allclose(plain.encode(vision), adapted.encode(vision), atol=1e-6)
