"""The real sizes, on the meta device."""

import pytest
import torch

from medtune.errors import ModelError
from medtune.models.common.names import expected_shapes
from medtune.models.llama3_2_vision import (
    VisionEncoder,
    llama3_2_vision_11b,
    llama3_2_vision_90b,
    lora_llama3_2_vision_11b,
    lora_llama3_2_vision_90b,
    qlora_llama3_2_vision_11b,
)


def count(model):
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return {part: sum(sizes[name] for name in names) for part, names in model.parts().items()}


def build(builder, *args, **kwargs):
    with torch.device("meta"):
        return builder(*args, **kwargs)


def test_11b_has_the_published_parameters():
    parts = count(build(llama3_2_vision_11b))
    assert parts == {
        "vision": 665_152_003,
        "projection": 188_839_952,
        "fusion": 1_744_930_832,
        "decoder": 8_030_261_248,  # Llama-3.1-8B
    }
    # The published file repeats positions per aspect ratio: 9 rows of 4 tiles instead of a table of 4 x 4.
    repeated = (9 * 4 - 4 * 4) * (1601 + 2) * 1280
    assert sum(parts.values()) + repeated == 10_670_220_835


def test_published_layout_has_the_published_shapes():
    model = build(llama3_2_vision_11b)
    state = {key: torch.empty(size, device="meta") for key, size in expected_shapes(model).items()}
    published = model.family.tune_to_hf(state)
    assert sum(tensor.numel() for tensor in published.values()) == 10_670_220_835
    assert published["vision_model.gated_positional_embedding.tile_embedding.weight"].shape == (9, 4 * 1601 * 1280)
    assert published["language_model.model.embed_tokens.weight"].shape == (128_264, 4096)
    assert published["language_model.model.layers.38.cross_attn.k_proj.weight"].shape == (1024, 4096)
    assert {k: t.shape for k, t in model.family.hf_to_tune(published).items()} == expected_shapes(model)


def test_11b_config_is_the_published_one():
    config = build(llama3_2_vision_11b).family.hf_config()
    text, vision = config["text_config"], config["vision_config"]
    assert text["cross_attention_layers"] == [3, 8, 13, 18, 23, 28, 33, 38]
    assert (text["num_hidden_layers"], text["intermediate_size"], config["image_token_index"]) == (40, 14336, 128256)
    assert vision["supported_aspect_ratios"] == [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    assert (vision["vision_output_dim"], vision["intermediate_layers_indices"]) == (7680, [3, 7, 15, 23, 30])


def test_90b_is_of_its_size():
    parts = count(build(llama3_2_vision_90b))
    assert parts["decoder"] == 70_553_706_496  # Llama-3.1-70B
    assert 88e9 < sum(parts.values()) < 89e9


@pytest.mark.parametrize("builder", [lora_llama3_2_vision_11b, lora_llama3_2_vision_90b])
def test_lora_adds_its_adapters_and_nothing_else(builder):
    plain = llama3_2_vision_11b if builder is lora_llama3_2_vision_11b else llama3_2_vision_90b
    parts = count(build(builder, ["q_proj", "v_proj"], lora_rank=4, lora_parts=["vision"]))
    assert parts.pop("adapter.vision") == 32 * 2 * 2 * 4 * 1280
    without = count(build(plain))
    assert all(parts[part] == without[part] for part in parts)


def test_qlora_is_lora_with_a_quantised_base():
    assert qlora_llama3_2_vision_11b.keywords == {"quantize_base": True}


def test_tiles_and_mode_reach_the_encoder():
    encoder = build(llama3_2_vision_11b).encoder
    assert isinstance(encoder, VisionEncoder) and (encoder.mode, encoder.pad_tiles) == ("checkpoint", 4)
    encoder = build(llama3_2_vision_11b, pad_tiles=1, encoder_mode="strict").encoder
    assert (encoder.mode, encoder.pad_tiles) == ("strict", 1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encoder_mode": "hf"}, "encoder_mode 'hf'"),
        ({"max_num_tiles": 5}, "max_num_tiles=5"),
        ({"max_num_tiles": 2, "pad_tiles": 1}, "pad_tiles=1"),
        ({"pad_tiles": 0}, "pad_tiles=0"),
    ],
)
def test_impossible_arguments_are_named(wrong, said):
    with pytest.raises(ModelError, match=said):
        build(llama3_2_vision_11b, **wrong)
