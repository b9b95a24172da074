"""ME-VLIP's adapters of InternVL3: their number, their names for PEFT and vLLM, and equal logits on the quantised base.

vLLM itself is not run here; ``vllm_names`` says from which source its names are.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torchao.dtypes.nf4tensor import NF4Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from medtune.models.common.names import is_adapter_key
from medtune.models.internvl import qlora_internvl3_8b
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.lora.peft import WEIGHTS_NAME, peft_files
from tests.parity.internvl_twin import SHAPES, batch_of, item, our_logits, randomise, their_logits, twin, worst
from tests.parity.peft_twin import adapters_of, assert_fits, in_peft, linear_maps, torchao_passed_over  # noqa: F401
from tests.parity.vllm_names import INTERNVL_HF, adapted_module

ME_VLIP = LoraOptions(mlp=True, rank=8, alpha=16, quantize_base=True)
# NF4's second quantisation needs 16,384 weights in each layer, so keys and values have as many heads as queries.
WIDE = {"dim": 128, "kv_heads": 4, "mlp_dim": 256}
BATCH = batch_of(item([1, None, *range(3, 30)], [1], 1), item([1, None, *range(3, 9)], [1], 2))
WIDER = {**BATCH, "vision": {**BATCH["vision"], "images": BATCH["vision"]["images"].double()}}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def paper(**changes):
    with torch.device("meta"):
        return qlora_internvl3_8b(lora_rank=8, lora_alpha=16, lora_dropout=0.0, **changes)


# -- InternVL3-8B, without storage ------------------------------------------------------------------------------------


def test_rank_8_on_the_seven_projections_has_the_papers_number_of_parameters():
    model = paper()
    adapters = {name: p for name, p in model.named_parameters() if is_adapter_key(name)}
    assert sum(p.numel() for p in adapters.values()) == 20_185_088
    assert {name for name, p in model.named_parameters() if p.requires_grad} == adapters.keys()
    packed = {name for name, p in model.named_parameters() if isinstance(p, NF4Tensor)}
    assert len(packed) == 7 * 28 and all(name.startswith("decoder.layers.") for name in packed)


def test_the_adapters_fit_transformers_language_model_and_nothing_else():
    model = paper()
    with torch.device("meta"):
        theirs = InternVLForConditionalGeneration(InternVLConfig(**model.family.hf_config()))
    linear = {name: shape for name, shape in linear_maps(theirs).items() if ".language_model.layers." in name}
    assert len(linear) == 7 * 28
    assert_fits(model, linear, rank=8)


def test_every_name_is_a_module_that_vllm_adapts():
    model = paper()
    state = {n: torch.empty(p.shape, device="meta") for n, p in model.named_parameters() if is_adapter_key(n)}
    tensors, config = peft_files(state, model, "OpenGVLab/InternVL3-8B-hf")
    # vLLM joins q, k and v, and gate and up, when it loads; the thirds come under their own names
    attention, mlp = PROJECTIONS[:4], PROJECTIONS[4:]
    modules = {f"language_model.model.layers.{n}.self_attn.{name}" for n in range(28) for name in attention}
    modules |= {f"language_model.model.layers.{n}.mlp.{name}" for n in range(28) for name in mlp}
    assert {adapted_module(name, INTERNVL_HF, numbers=True) for name in tensors} == modules
    assert len(tensors) == 2 * len(modules)
    # what it checks of the config, and refuses otherwise
    assert config["r"] == 8 and config["lora_alpha"] == 16 and config["bias"] == "none"
    assert "modules_to_save" not in config and not config.get("use_dora")
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == set(PROJECTIONS)


# -- tiny, with values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double_quant", [True, False])
def test_peft_on_the_quantised_base_has_the_same_logits(double_quant, tmp_path):
    shape = replace(SHAPES["qwen2"], **WIDE)
    plain = randomise(internvl_vlm("tiny", shape, layout="hf")).eval()
    lora = replace(ME_VLIP, double_quant=double_quant)
    adapted = internvl_vlm("tiny", shape, layout="hf", lora=lora).eval()
    dense = {key: value.clone() for key, value in plain.state_dict().items()}
    adapted.load_state_dict(dense, strict=False)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if is_adapter_key(name):
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    loaded = in_peft(adapted, plain, twin, tmp_path)
    ours = our_logits(adapted, BATCH)
    # in 32 bits each side is about 2e-5 from its own logits in 64 bits, which are up to 6.5
    assert worst(ours, their_logits(loaded, BATCH), BATCH) < 3e-5
    exact = internvl_vlm("tiny", shape, layout="hf", lora=replace(ME_VLIP, quantize_base=False)).eval()
    exact.load_state_dict({**plain.state_dict(), **adapters_of(adapted)})  # in_peft gave plain the quantised base
    assert torch.equal(our_logits(exact, BATCH), ours)
    assert worst(our_logits(exact.double(), WIDER), their_logits(loaded.double(), WIDER), BATCH) < 1e-5
    loaded.float()
    # neither the exact base nor a base without the adapter has these answers
    plain.load_state_dict(dense)
    assert worst(ours, our_logits(plain, BATCH), BATCH) > 0.1
    with loaded.disable_adapter():
        assert worst(our_logits(plain, BATCH), their_logits(loaded, BATCH), BATCH) > 0.01
    with safe_open(tmp_path / "adapter" / WEIGHTS_NAME, "pt") as file:
        assert len(list(file.keys())) == 2 * 7 * shape.layers
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 16
