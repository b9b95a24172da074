"""Sizes of Qwen2.5-VL from a ``config.json`` in both spellings, and what is refused, by name."""

import pytest
import torch

from medtune.errors import ModelError
from medtune.models.published_config import builder_of, config_differences
from medtune.models.qwen2_5_vl import qwen2_5_vl_3b, qwen2_5_vl_7b
from medtune.models.qwen2_5_vl._config import hf_config, shape_from_config
from medtune.models.qwen2_5_vl._model_builders import QWEN2_5_VL_3B, QWEN2_5_VL_7B
from tests.parity.qwen2_5_vl_twin import SHAPES

EVERY = {"3b": QWEN2_5_VL_3B, "7b": QWEN2_5_VL_7B, **SHAPES}
# The decisive part of the file that Qwen/Qwen2.5-VL-7B-Instruct has.
PUBLISHED = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_written_config_reads_back(name, nested):
    assert shape_from_config(hf_config(EVERY[name], nested=nested)) == EVERY[name]


def test_the_published_file_is_the_7b():
    assert shape_from_config(PUBLISHED) == QWEN2_5_VL_7B
    assert builder_of(PUBLISHED) == "medtune.models.qwen2_5_vl.qwen2_5_vl_7b"
    with torch.device("meta"):
        assert config_differences(PUBLISHED, qwen2_5_vl_7b().family) == []
        found = config_differences(PUBLISHED, qwen2_5_vl_3b().family)
    assert "hidden_size is 3584, the model has 2048" in found and "num_hidden_layers is 28, the model has 36" in found


@pytest.mark.parametrize("nested", [False, True])
def test_every_difference_is_named_in_both_spellings(nested):
    with torch.device("meta"):
        family = qwen2_5_vl_7b().family
    given = hf_config(QWEN2_5_VL_7B, nested=nested)
    text = given["text_config"] if nested else given
    text["rope_theta"], text["rms_norm_eps"] = 5e5, 1e-5
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [24, 20, 20]}
    given["vision_config"]["fullatt_block_indexes"] = [7, 15]
    named = {difference.split(" is ")[0].rpartition(".")[2] for difference in config_differences(given, family)}
    assert named == {"rope_theta", "rms_norm_eps", "rope_scaling", "fullatt_block_indexes"}


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("", {"model_type": "qwen2_vl"}, "type 'qwen2_vl'"),
        ("", {"use_sliding_window": True}, "use_sliding_window is True"),
        ("", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is of type 'yarn'"),
        ("", {"num_hidden_layers": None}, "no num_hidden_layers"),
        ("", {"vision_config": None}, "no vision_config"),
        ("vision_config", {"spatial_merge_size": 4}, r"vision_config\.spatial_merge_size is 4"),
        ("vision_config", {"depth": 4}, "full_layers names layer 7 of 4"),
        ("vision_config", {"window_size": 100}, "window_size 100 must be a multiple of 28"),
        ("", {"num_attention_heads": 27}, "heads must divide"),
        ("", {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}, "must add up to half"),
    ],
)
def test_what_is_not_built_is_refused_by_the_key(where, change, message):
    config = hf_config(QWEN2_5_VL_7B)
    (config[where] if where else config).update(change)
    with pytest.raises(ModelError, match=message):
        shape_from_config(config)
