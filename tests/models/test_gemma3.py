"""Gemma 3's parts: config.json there and back, masks, quantised layers, and weights that do not fit."""

import json
from dataclasses import replace

import pytest
import torch
from torchao.dtypes.nf4tensor import NF4Tensor

from medtune.errors import ModelError
from medtune.models.common.branch_attention import BranchMask
from medtune.models.gemma3 import gemma3_4b, gemma3_27b, qlora_gemma3_4b
from medtune.models.gemma3._component_builders import LoraOptions
from medtune.models.gemma3._config import hf_config, shape_from_config
from medtune.models.gemma3._masks import layer_masks
from medtune.models.gemma3._model_builders import GEMMA3_4B, GEMMA3_27B
from medtune.models.mini import qlora_mini_gemma3
from medtune.models.published_config import builder_of, check_config, config_differences
from medtune.models.weights import load_weights, save_hf, save_tensors
from tests.parity.gemma3_twin import SHAPE, batch_of, item, our_logits, tiny

# -- config.json ------------------------------------------------------------------------------------------------------

VISION = {
    "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
TOP = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3", "torch_dtype": "bfloat16", "vision_config": VISION,
}  # fmt: skip
LINEAR = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "model_type": "gemma3_text"}
# As the first published files are: they leave out what has transformers' default value.
PUBLISHED = {
    "4B": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, **LINEAR},
    "27B": {
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
        "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168, **LINEAR,
    },
    "12B": {
        "hidden_size": 3840, "intermediate_size": 15360, "num_attention_heads": 16, "num_hidden_layers": 48,
        "num_key_value_heads": 8, **LINEAR,
    },
}  # fmt: skip


def published(size, **changes):
    return {**TOP, "text_config": {**PUBLISHED[size], **changes}}


def in_transformers_5(config):
    """The same in the spelling of transformers 5."""
    text = dict(config["text_config"])
    scaling, layers = text.pop("rope_scaling"), text["num_hidden_layers"]
    text["rope_parameters"] = {
        "full_attention": {"rope_theta": 1_000_000.0, **scaling},
        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
    }
    text["layer_types"] = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)]
    return {**config, "text_config": text, "image_token_id": 262144, "dtype": "bfloat16"}


@pytest.mark.parametrize("spelling", [dict, in_transformers_5], ids=["published", "transformers 5"])
@pytest.mark.parametrize(("size", "shape"), [("4B", GEMMA3_4B), ("27B", GEMMA3_27B)])
def test_published_files_are_the_shapes_of_the_builders(size, shape, spelling):
    assert shape_from_config(spelling(published(size))) == shape
    with torch.device("meta"):
        family = (gemma3_4b if size == "4B" else gemma3_27b)().family
    assert config_differences(spelling(published(size)), family) == []


def test_other_sizes_are_read_too():
    shape = shape_from_config(published("12B"))
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_dim, shape.query_scale) == (48, 16, 8, 256, 256)


@pytest.mark.parametrize("shape", [SHAPE, GEMMA3_4B, replace(SHAPE, rope_factor=1.0, pattern=2, eos_ids=(7,))], ids=str)
def test_a_shape_written_and_read_is_itself(shape):
    read = shape_from_config(json.loads(json.dumps(hf_config(shape))))
    assert replace(read, max_seq_len=shape.max_seq_len) == shape


LIES = {
    "text_config.num_key_value_heads": 2,
    "text_config.head_dim": 128,
    "text_config.query_pre_attn_scalar": 128,
    "text_config.sliding_window": 512,
    "text_config.sliding_window_pattern": 5,
    "text_config.rope_local_base_freq": 1e5,
    "text_config.rope_theta": 1e5,
    "text_config.rope_scaling": {"factor": 4.0, "rope_type": "linear"},
    "vision_config.num_attention_heads": 8,
    "vision_config.layer_norm_eps": 1e-5,
    "mm_tokens_per_image": 64,
    "image_token_index": 7,
}


@pytest.mark.parametrize("key", LIES)
def test_a_builder_notices_a_file_of_another_model(key, tmp_path):
    with torch.device("meta"):
        family = gemma3_4b().family
    config = hf_config(GEMMA3_4B)
    part, _, name = key.rpartition(".")
    (config[part] if part else config)[name] = LIES[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="describes another model than gemma3_4b") as raised:
        check_config(tmp_path, family)
    assert name.replace("_index", "_id").removeprefix("num_") in str(raised.value)


def test_another_scaling_in_the_spelling_of_transformers_5_is_noticed():
    with torch.device("meta"):
        family = gemma3_4b().family
    config = in_transformers_5(published("4B"))
    config["text_config"]["rope_parameters"]["full_attention"]["factor"] = 2.0
    config["text_config"]["rope_parameters"]["sliding_attention"]["rope_theta"] = 5.0
    found = " ".join(config_differences(config, family))
    assert "rope_local_base_freq is 5.0" in found and "rope_scaling is {'rope_type': 'linear', 'factor': 2.0}" in found


def test_the_builder_of_a_published_file_is_found():
    assert builder_of(published("27B")) == "medtune.models.gemma3.gemma3_27b"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("text_config", None, "config.json has no text_config"),
        ("vision_config", 3, "config.json has no vision_config"),
        ("text_config.hidden_size", "wide", "text_config: hidden_size must be a positive whole number, got 'wide'"),
        ("text_config.hidden_size", True, "hidden_size must be a positive whole number"),
        ("text_config.rms_norm_eps", -1.0, "rms_norm_eps must be a positive number"),
        ("text_config.final_logit_softcapping", 30.0, "final_logit_softcapping is 30.0, which medtune's Gemma 3 does"),
        ("text_config.use_bidirectional_attention", True, "use_bidirectional_attention is True"),
        ("text_config.attention_bias", True, "attention_bias is True"),
        ("text_config.hidden_activation", "silu", "hidden_activation is 'silu'"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False"),
        ("text_config.rope_scaling", {"rope_type": "yarn", "factor": 8.0}, "positions are scaled by 'yarn'"),
        ("text_config.rope_scaling", {"rope_type": "linear"}, "linear scaling by a positive factor"),
        ("text_config.layer_types", ["full_attention"] * 3, "layer_types does not repeat one pattern"),
        ("vision_config.vision_use_head", True, "vision_use_head is True"),
        ("vision_config.patch_size", 15, "image_size 896 must be a multiple of the patch size 15"),
        ("mm_tokens_per_image", 200, "tokens_per_image 200 must be a square number"),
        ("text_config.num_key_value_heads", 3, "key/value heads the heads"),
    ],
)
def test_what_is_not_covered_is_refused_by_its_key(key, value, said):
    config = json.loads(json.dumps(published("4B")))
    part, _, name = key.rpartition(".")
    (config[part] if part else config)[name] = value
    with pytest.raises(ModelError, match=said):
        shape_from_config(config)


# -- masks ------------------------------------------------------------------------------------------------------------


def by_definition(image, window, real=None):
    """Causal or of one image, and not further back than the window, token by token."""
    s = len(image)
    runs, run = [0] * s, 0
    for i in range(s):
        run += image[i] and not (i and image[i - 1])
        runs[i] = run if image[i] else 0
    real = real or [True] * s
    whole = [[real[k] and (k <= q or (runs[q] > 0 and runs[q] == runs[k])) for k in range(s)] for q in range(s)]
    near = [[whole[q][k] and k > q - window for k in range(s)] for q in range(s)]
    return torch.tensor(whole), torch.tensor(near)


ROW = [False, True, True, True, False, False, True, True, False, *[False] * 6]


def test_masks_equal_their_definition():
    tokens = torch.zeros(1, len(ROW))
    whole, near = layer_masks(None, torch.tensor([ROW]), tokens, 4)
    expected = by_definition(ROW, 4)
    assert torch.equal(whole[0], expected[0]) and torch.equal(near[0], expected[1])


def test_left_padding_does_not_count_as_distance():
    s, missing = len(ROW), 3
    real = [False] * missing + [True] * (s - missing)
    row = [False] * missing + ROW[: s - missing]
    given = torch.ones(s, s, dtype=torch.bool).tril() & torch.tensor(real) | torch.eye(s, dtype=torch.bool)
    whole, near = layer_masks(given[None], torch.tensor([row]), torch.zeros(1, s), 4)
    expected = by_definition(row, 4, real)
    for found, wanted in ((whole, expected[0]), (near, expected[1])):
        assert torch.equal(found[0, missing:], wanted[missing:])


def test_a_mask_of_branches_is_that_of_its_rows():
    rest = torch.tensor([[[True] * 5 + [True, False], [True] * 5 + [False, True]]])
    mask = BranchMask(5, rest, 6)
    whole, near = layer_masks(mask, None, torch.zeros(1, 7), 3)
    assert torch.equal(whole[0, :5, :5], torch.ones(5, 5, dtype=torch.bool).tril()) and not whole[0, :5, 5:].any()
    assert torch.equal(whole[0, 5:], rest[0])
    # both branches are one token behind the prefix, whatever their columns are
    assert near[0, 5].tolist() == [False] * 3 + [True] * 2 + [True, False]
    assert near[0, 6].tolist() == [False] * 3 + [True] * 2 + [False, True]


@pytest.mark.parametrize(("image", "s", "masks"), [(False, 4, (0, 0)), (False, 5, (1, 1)), (True, 4, (1, 1))])
def test_short_texts_need_no_mask(image, s, masks):
    """Plain causal attention takes the fast kernels."""
    seen = torch.zeros(1, s, dtype=torch.bool) if image else None
    found = layer_masks(None, seen, torch.zeros(1, s), 4)
    assert tuple(mask is not None for mask in found) == tuple(map(bool, masks))


# -- adapters and weights ---------------------------------------------------------------------------------------------


def test_qlora_keeps_what_nf4_cannot_hold_dense():
    """SigLIP's MLPs of 1152 x 4304 weights are no multiple of NF4's block."""
    with torch.device("meta"):
        model = qlora_gemma3_4b(lora_parts=["vision", "decoder"], lora_rank=4)
    packed = {name for name, p in model.named_parameters() if isinstance(p.data, NF4Tensor)}
    assert len(packed) == 34 * 7 + 27 * 4
    assert not any(".mlp." in name for name in packed if name.startswith("encoder."))
    assert model.encoder.vision.layers[0].mlp.w1.lora_a.weight.shape == (4, 1152)


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_quantised_model_trains_its_adapters_and_keeps_dense_state_dicts(double_quant):
    model = qlora_mini_gemma3(300, lora_parts=["vision", "decoder"], decoder_layers=2, double_quant=double_quant)
    assert sum(isinstance(p.data, NF4Tensor) for p in model.parameters()) > 14
    batch = {"images": torch.randn(1, 1, 1, 3, 64, 64), "tiles": torch.ones(1, 1, dtype=torch.long)}
    tokens = torch.tensor([[1, *[300] * 16, 2, 3]])
    for _ in range(2):  # at first B is zero, and so is the gradient of A
        model.logits(model.hidden(tokens, model.encode(batch))).square().mean().backward()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_b" in name:
                    parameter += 0.01
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == {n for part in ("adapter.vision", "adapter.decoder") for n in model.parts()[part]}
    assert all(p.grad.abs().max() > 0 for p in trained.values())
    assert all(type(value) is torch.Tensor and value.dtype == torch.float32 for value in model.state_dict().values())


def test_local_and_global_layers_share_one_table_each():
    model = tiny(lora=LoraOptions())
    tables = [id(layer.attn.pos_embeddings) for layer in model.decoder.layers]
    assert len(set(tables)) == 2 and tables.count(tables[5]) == 1  # of seven layers the sixth is global


def test_tables_are_built_anew_after_the_meta_device():
    with torch.device("meta"):
        model = tiny_on_meta()
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "rope_init"):
            module.rope_init()
    whole = tiny()
    for mine, other in zip(model.decoder.layers, whole.decoder.layers, strict=True):
        assert torch.equal(mine.attn.pos_embeddings.cache, other.attn.pos_embeddings.cache)


def tiny_on_meta():
    from medtune.models.gemma3._component_builders import gemma3_vlm

    return gemma3_vlm("tiny", SHAPE)


def test_a_text_longer_than_the_tables_is_refused():
    with pytest.raises(ModelError, match="a batch of 300 tokens is longer than the model's 256"):
        our_logits(tiny(), batch_of(item([5] * 300, 1)))


def test_an_output_layer_of_its_own_is_refused(tmp_path):
    model = tiny()
    published = model.family.tune_to_hf(model.state_dict())
    words = published["language_model.model.embed_tokens.weight"]
    save_tensors({**published, "language_model.lm_head.weight": words.clone()}, tmp_path / "same.safetensors")
    assert load_weights(tmp_path / "same.safetensors", model).keys() == model.state_dict().keys()
    save_tensors({**published, "language_model.lm_head.weight": words + 1}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="lm_head.weight is not the embedding table"):
        load_weights(tmp_path / "other.safetensors", model)


def test_weights_of_another_size_are_refused(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    with pytest.raises(ModelError, match=r"describes another model than tiny: text_config.sliding_window is 12"):
        load_weights(tmp_path, tiny(window=13))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="tensors that the model does not have"):
        load_weights(tmp_path, tiny(layers=6))
    with pytest.raises(ModelError, match="tensors 13 missing"):
        load_weights(tmp_path, tiny(layers=8))
