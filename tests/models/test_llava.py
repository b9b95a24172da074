"""LLaVA's builders: the real sizes on the meta device, the mini ones with adapters and with NF4."""

import inspect

import pytest
import torch
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

from medtune.errors import ModelError
from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.common.names import expected_shapes, is_adapter_key
from medtune.models.common.parts import names_of
from medtune.models.llava import (
    llava1_5_7b,
    llava1_5_13b,
    lora_llava1_5_7b,
    lora_llava1_5_13b,
    qlora_llava1_5_7b,
    qlora_llava1_5_13b,
)
from medtune.models.llava._component_builders import LORA_PARTS
from medtune.models.lora.options import ATTENTION
from medtune.models.mini import lora_mini_llava, mini_llava, qlora_mini_llava

SMALL = {"vocab_size": 300, "image_size": 16, "embed_dim": 32, "heads": 2, "vision_layers": 3, "decoder_layers": 2}
IMAGE, PATCHES = 300, 4


def count(model):
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return {part: sum(sizes[name] for name in names) for part, names in model.parts().items()}


def build(builder, *args, **kwargs):
    with torch.device("meta"):
        return builder(*args, **kwargs)


def loss(model: EarlyFusionVLM) -> torch.Tensor:
    tokens = torch.tensor([[1, *[model.image_id] * PATCHES, 5, 6, 7]])
    vision = {"images": torch.randn(1, 1, 1, 3, 16, 16), "tiles": torch.ones(1, 1, dtype=torch.long)}
    return model.logits(model.hidden(tokens, model.encode(vision))).square().mean()


UNUSED = 12_598_272  # the last of 24 layers, and the norm after it


@pytest.mark.parametrize(
    ("builder", "total", "projection", "decoder"),
    # totals of llava-hf/llava-1.5-7b-hf and -13b-hf
    [
        (llava1_5_7b, 7_063_427_072, 20_979_712, 6_738_939_904),
        (llava1_5_13b, 13_351_494_656, 31_467_520, 13_016_519_680),
    ],
)
def test_sizes_are_the_published_ones(builder, total, projection, decoder):
    model = build(builder)
    parts = count(model)
    assert parts == {"vision": 303_507_456 - UNUSED, "projection": projection, "decoder": decoder}
    assert sum(size.numel() for size in expected_shapes(model).values()) == total == sum(parts.values()) + UNUSED


def test_published_layout_has_the_published_shapes():
    model = build(llava1_5_7b)
    state = {key: torch.empty(size, device="meta") for key, size in expected_shapes(model).items()}
    published = model.family.tune_to_hf(state)
    assert published["vision_tower.vision_model.embeddings.position_embedding.weight"].shape == (577, 1024)
    assert published["vision_tower.vision_model.encoder.layers.23.mlp.fc1.weight"].shape == (4096, 1024)
    assert published["multi_modal_projector.linear_1.weight"].shape == (4096, 1024)
    assert published["language_model.model.embed_tokens.weight"].shape == (32_064, 4096)
    assert {k: t.shape for k, t in model.family.hf_to_tune(published).items()} == expected_shapes(model)
    config = model.family.hf_config()
    assert (config["image_token_index"], config["image_seq_length"]) == (32_000, 576)


@pytest.mark.parametrize("builder", [lora_llava1_5_7b, lora_llava1_5_13b, qlora_llava1_5_7b, qlora_llava1_5_13b])
def test_lora_adds_its_adapters_and_nothing_else(builder):
    parts = count(build(builder, ["q_proj", "v_proj"], lora_rank=4, lora_parts=["vision"], apply_lora_to_mlp=True))
    assert parts.pop("adapter.vision") == 23 * 4 * (2 * 2 * 1024 + 2 * 5 * 1024)
    without = count(build(llava1_5_13b if "13b" in str(builder) else llava1_5_7b))
    assert all(parts[part] == without[part] for part in parts)


@pytest.mark.parametrize("builder", [qlora_llava1_5_7b, qlora_llava1_5_13b])
def test_qlora_is_lora_with_a_quantised_base(builder):
    assert builder.keywords == {"quantize_base": True}


def test_only_adapters_train():
    model = lora_mini_llava(list(ATTENTION), apply_lora_to_mlp=True, lora_parts=LORA_PARTS, **SMALL)
    adapters = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapters == set(names_of("adapter", model.parts()))
    assert adapters == {n for n, _ in model.named_parameters() if is_adapter_key(n)}
    carried = {name.rsplit(".lora_", 1)[0] for name in adapters}
    # a tower of 3 layers of which 2 are used, with 6 maps each; 2 of the projection; 2 decoder layers with 7
    assert len(carried) == 2 * 6 + 2 + 2 * 7
    loss(model).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in adapters)


def test_adapted_maps_of_the_tower_keep_their_biases():
    """torchtune's own LoRA builder of CLIP loses them."""
    adapted = lora_mini_llava(["q_proj", "v_proj"], lora_parts=["vision"], **SMALL)
    plain = expected_shapes(mini_llava(**SMALL))
    assert plain == {key: size for key, size in expected_shapes(adapted).items() if not is_adapter_key(key)}
    assert "encoder.vision.layers.0.attn.q_proj.bias" in plain


def test_qlora_learns_on_an_nf4_base():
    sizes = {**SMALL, "embed_dim": 128}
    model = qlora_mini_llava(list(ATTENTION), apply_lora_to_mlp=True, lora_parts=LORA_PARTS, **sizes)
    quantised = {name for name, p in model.named_parameters() if isinstance(p.data, NF4Tensor)}
    assert {name.split(".")[1] for name in quantised} == {"vision", "layers"} and len(quantised) == 2 * 6 + 2 * 7
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_b." in name:
                p.normal_(std=0.1)
    loss(model).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == is_adapter_key(name), name
    state = model.state_dict()
    assert not any(isinstance(tensor, NF4Tensor) for tensor in state.values())
    assert {tensor.dtype for tensor in state.values()} <= {torch.float32, torch.bfloat16}


def test_qlora_takes_a_dense_base():
    sizes = {**SMALL, "embed_dim": 128}
    plain, adapted = mini_llava(**sizes), qlora_mini_llava(["q_proj"], lora_parts=LORA_PARTS, **sizes)
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(is_adapter_key(name) for name in missing)
    kept = "encoder.vision.unused.layer.attn.q_proj.weight"
    assert torch.equal(adapted.state_dict()[kept], plain.state_dict()[kept])
    torch.manual_seed(0)
    ours = loss(plain)
    torch.manual_seed(0)
    assert abs(loss(adapted) / ours - 1) < 0.2


def test_names_hold_under_activation_checkpointing():
    model = mini_llava(**SMALL)
    before = expected_shapes(model)
    set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    assert expected_shapes(model) == before == {key: t.shape for key, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lora_parts": ["fusion"]}, "lora_parts must be some of vision, projection, decoder"),
        ({"lora_parts": []}, "lora_parts"),
        ({"lora_attn_modules": ["o_proj"]}, "lora_attn_modules must be some of q_proj"),
    ],
)
def test_impossible_adapters_are_named(wrong, said):
    with pytest.raises(ModelError, match=said):
        lora_mini_llava(**{"lora_attn_modules": ["q_proj"], **SMALL, **wrong})


def test_adapted_builders_take_what_the_plain_one_takes():
    plain = inspect.signature(mini_llava).parameters
    adapted = inspect.signature(lora_mini_llava).parameters
    assert {name: p.default for name, p in plain.items()}.items() <= {n: p.default for n, p in adapted.items()}.items()


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(mini_llava(**SMALL).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_few_million_parameters():
    assert 1e6 < sum(p.numel() for p in mini_llava().parameters()) < 4e6
