"""The shared tables of published names are those of transformers' own language models and vision transformers."""

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from medtune.models.common.decoder_names import CLIP_MAPS, CLIP_NORMS, DECODER_MAPS, decoder_tensors

SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 32,
}  # fmt: skip
DECODERS = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_every_tensor_of_a_decoder_has_its_name(kind: str, tied: bool) -> None:
    model, config = DECODERS[kind]
    with torch.device("meta"):
        theirs = model(config(**SIZES, tie_word_embeddings=tied))
    names = decoder_tensors("model.", 3, head=None if tied else "lm_head.weight", biased=kind == "qwen2")
    assert names.keys() == dict(theirs.named_parameters()).keys()
    assert len(set(names.values())) == len(names)
    linear = {name for name, module in theirs.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    assert {f"model.layers.{n}.{theirs}" for n in range(3) for theirs in DECODER_MAPS.values()} == linear
    assert decoder_tensors("language_model.model.", 3, head=None, biased=False).keys() == {
        f"language_model.{name}" for name in decoder_tensors("model.", 3, head=None, biased=False)
    }


def test_a_name_goes_to_the_layer_of_the_same_work() -> None:
    """Gate, up and down, and the two norms, have one shape each and could be swapped without an error."""
    names = decoder_tensors("model.", 2, head="lm_head.weight", biased=True)
    assert names["model.layers.1.mlp.gate_proj.weight"] == "decoder.layers.1.mlp.w1.weight"
    assert names["model.layers.1.mlp.up_proj.weight"] == "decoder.layers.1.mlp.w3.weight"
    assert names["model.layers.1.mlp.down_proj.weight"] == "decoder.layers.1.mlp.w2.weight"
    assert names["model.layers.0.input_layernorm.weight"] == "decoder.layers.0.sa_norm.scale"
    assert names["model.layers.0.post_attention_layernorm.weight"] == "decoder.layers.0.mlp_norm.scale"
    assert names["model.layers.0.self_attn.k_proj.bias"] == "decoder.layers.0.attn.k_proj.bias"
    assert names["lm_head.weight"] == "decoder.output.weight"


@pytest.mark.parametrize(
    ("model", "config"), [(CLIPVisionModel, CLIPVisionConfig), (SiglipVisionModel, SiglipVisionConfig)]
)
def test_layers_of_clip_and_siglip_have_their_names(model: type, config: type) -> None:
    sizes = {
        key: SIZES[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    with torch.device("meta"):
        theirs = model(config(**sizes, image_size=28, patch_size=14, vision_use_head=False))
    found = {name.split("layers.2.")[1] for name, _ in theirs.named_parameters() if "encoder.layers.2." in name}
    both = [*CLIP_MAPS.values(), *CLIP_NORMS.values()]
    assert found == {f"{name}.{side}" for name in both for side in ("weight", "bias")}
