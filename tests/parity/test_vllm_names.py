"""Exports and adapters of every family have the names that vLLM's loader looks for; see ``vllm_names``."""

from typing import Any

import pytest
import torch

from medtune.models import gemma3, internvl, llava, qwen2_5_vl
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import peft_files
from tests.parity.vllm_names import (
    GEMMA3,
    INTERNVL_HF,
    INTERNVL_HF_LLAMA,
    INTERNVL_INTERNLM2,
    INTERNVL_QWEN2,
    LLAVA,
    QWEN2_5_VL,
    Architecture,
    adapted_module,
    renamed,
)

# Module, name of a builder, its arguments, vLLM's class, that class's name, whether the output layer is in the files.
CASES: dict[str, tuple[Any, str, dict[str, str], Architecture, str, bool]] = {
    "Gemma 3": (gemma3, "gemma3_4b", {}, GEMMA3, "Gemma3ForConditionalGeneration", True),
    "MedGemma": (gemma3, "medgemma_4b", {}, GEMMA3, "Gemma3ForConditionalGeneration", True),
    "Qwen2.5-VL": (qwen2_5_vl, "qwen2_5_vl_7b", {}, QWEN2_5_VL, "Qwen2_5_VLForConditionalGeneration", True),
    "Qwen2.5-VL, tied": (qwen2_5_vl, "qwen2_5_vl_3b", {}, QWEN2_5_VL, "Qwen2_5_VLForConditionalGeneration", False),
    "LLaVA": (llava, "llava1_5_7b", {}, LLAVA, "LlavaForConditionalGeneration", True),
    "LLaVA-Med": (llava, "llava_med_v1_5_7b", {"layout": "hf"}, LLAVA, "LlavaForConditionalGeneration", True),
    "InternVL, hf": (internvl, "internvl3_8b", {}, INTERNVL_HF, "InternVLForConditionalGeneration", True),
    "InternVL, hf, InternLM2": (
        internvl, "internvl2_2b", {"layout": "hf"}, INTERNVL_HF_LLAMA, "InternVLForConditionalGeneration", True,
    ),
    "InternVL": (internvl, "internvl3_8b", {"layout": "original"}, INTERNVL_QWEN2, "InternVLChatModel", True),
    "InternVL, InternLM2": (internvl, "internvl2_2b", {}, INTERNVL_INTERNLM2, "InternVLChatModel", True),
}  # fmt: skip


def adapters(case: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and config of the case's adapters in PEFT's format, without storage."""
    module, name, arguments, *_ = CASES[case]
    with torch.device("meta"):
        model = getattr(module, f"lora_{name}")(
            lora_attn_modules=ATTENTION, apply_lora_to_mlp=True, lora_rank=8, lora_alpha=16, lora_dropout=0.0,
            **arguments, **changes,
        )  # fmt: skip
    state = {n: torch.empty(p.shape, device="meta") for n, p in model.named_parameters() if is_adapter_key(n)}
    return peft_files(state, model, "some/base")


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_an_export_is_a_parameter_that_vllm_builds_and_none_is_missing(case: str) -> None:
    module, name, arguments, architecture, title, has_head = CASES[case]
    with torch.device("meta"):
        model = getattr(module, name)(**arguments)
        published = model.family.tune_to_hf(model.state_dict())
    assert model.family.hf_config()["architectures"] == [title]
    head = set() if has_head else {"language_model.lm_head.weight"}
    assert {renamed(key, architecture) for key in published} == architecture.parameters - head


@pytest.mark.parametrize("case", CASES)
def test_every_adapter_of_the_decoder_is_of_a_module_that_vllm_adapts(case: str) -> None:
    architecture = CASES[case][3]
    tensors, config = adapters(case)
    assert {adapted_module(key, architecture) for key in tensors} == architecture.adapters
    # what it checks of the config, and refuses otherwise
    assert config["r"] == 8 and config["lora_alpha"] == 16 and config["bias"] == "none"
    assert not config.get("modules_to_save") and not config.get("use_dora") and not config.get("use_rslora")
    # releases before 0.33.0 read no patterns, so that each adapter must have the scale that r and lora_alpha give
    ranks, alphas = config.get("rank_pattern", {}), config.get("alpha_pattern", {})
    assert ranks.keys() == alphas.keys() and all(alphas[key] / ranks[key] == 2 for key in ranks)


@pytest.mark.parametrize("case", ["Gemma 3", "Qwen2.5-VL", "LLaVA", "InternVL, hf", "InternVL"])
def test_an_adapter_of_the_tower_is_none_of_the_language_models(case: str) -> None:
    """vLLM leaves these out or refuses them; serving.md tells to train adapters in the decoder alone."""
    architecture = CASES[case][3]
    tensors, _ = adapters(case, lora_parts=["vision"])
    modules = {adapted_module(key, architecture) for key in tensors}
    assert modules and not modules & architecture.adapters
