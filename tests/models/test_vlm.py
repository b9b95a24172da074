"""The seam: replaced embeddings, parts, and the same numbers by every way in."""

import pytest
import torch
from torchtune.modules import TransformerCrossAttentionLayer, TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

from medtune.errors import ModelError
from medtune.models.common.deep_fusion import PARTS
from medtune.models.common.parts import names_of
from medtune.models.mini import lora_mini_vlm, mini_vlm, qlora_mini_vlm

VOCAB = 300
SIZES = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [6, 2, 7, 2, 9]])


@pytest.fixture
def model():
    return mini_vlm(VOCAB, **SIZES)


def test_replaced_rows_go_in_in_row_major_order_and_get_gradients(model):
    where = TOKENS == 2
    rows = torch.randn(3, 32, requires_grad=True)
    hidden = model.hidden(TOKENS, replace=(where, rows))
    swapped = TOKENS.clone()
    swapped[where] = torch.tensor([11, 12, 13])
    table = model.decoder.tok_embeddings.embedding.weight
    assert torch.equal(model.hidden(TOKENS, replace=(where, table[[11, 12, 13]])), model.hidden(swapped))
    hidden.sum().backward()
    assert (rows.grad.abs().sum(-1) > 0).all()
    assert not table.grad[2].any(), "the placeholder's own embedding must not be trained"


@pytest.mark.parametrize("count", [2, 4])
def test_replaced_rows_must_fit_the_places(model, count):
    with pytest.raises(ModelError, match=f"{count} replacement embeddings .* 3 placeholder"):
        model.hidden(TOKENS, replace=(TOKENS == 2, torch.zeros(count, 32)))


def test_a_proxy_in_fp32_enters_a_bf16_model():
    model = mini_vlm(VOCAB, **SIZES).to(torch.bfloat16)
    rows = torch.randn(3, 32, requires_grad=True)
    logits = model.logits(model.hidden(TOKENS, replace=(TOKENS == 2, rows)))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert rows.grad.dtype == torch.float32 and rows.grad.any()


def test_too_many_tokens_are_named(model):
    with pytest.raises(ModelError, match="1025 tokens"):
        model.hidden(torch.ones(1, 1025, dtype=torch.long))


def test_logits_can_be_made_in_chunks(model):
    hidden = model.hidden(TOKENS)
    whole = model.logits(hidden)
    assert torch.equal(whole, model(TOKENS))
    assert (
        torch.cat([model.logits(c) for c in hidden.flatten(0, 1).split(3)]) - whole.flatten(0, 1)
    ).abs().max() < 1e-6


def test_compute_calls_with_the_model(model):
    assert model.compute(lambda m, x: (m is model, x), 5) == (True, 5)


BUILDERS = {
    "plain": lambda: mini_vlm(VOCAB, **SIZES),
    "lora": lambda: lora_mini_vlm(VOCAB, ["q_proj", "output_proj"], True, True, **SIZES),
    "qlora": lambda: qlora_mini_vlm(VOCAB, ["v_proj"], apply_lora_to_mlp=True),
    "hf rows": lambda: mini_vlm(VOCAB, hf_rows=True, **SIZES),
}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", BUILDERS)
def test_every_parameter_is_in_exactly_one_part(kind, checkpointed):
    model = BUILDERS[kind]()
    if checkpointed:
        set_activation_checkpointing(
            model, auto_wrap_policy={TransformerSelfAttentionLayer, TransformerCrossAttentionLayer}
        )
    parts = model.parts()
    assert tuple(parts)[: len(PARTS)] == PARTS
    listed = [name for names in parts.values() for name in names]
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert all(name.startswith("encoder.clip.") for name in parts["vision"])
    assert all(name.startswith("encoder.projection.") for name in parts["projection"])
    assert all(".fusion_layer." in name or "fusion_embedding" in name for name in parts["fusion"])
    assert "decoder.tok_embeddings.fusion_embedding.weight" in parts["fusion"]
    assert all(name.startswith("decoder.") and ".fusion_layer." not in name for name in parts["decoder"])
    assert {"decoder.tok_embeddings.embedding.weight", "decoder.norm.scale"} <= set(parts["decoder"])
    adapters = [name for name in listed if ".lora_" in name]
    places = {"fusion": ".fusion_layer.", "vision": "encoder.clip.", "projection": "encoder.projection."}
    for part in set(parts) - set(PARTS):
        group, _, place = part.partition(".")
        assert group == "adapter" and parts[part]
        assert all(".lora_" in name and places.get(place, "decoder.") in name for name in parts[part])
        assert all((".fusion_layer." in name) == (place == "fusion") for name in parts[part])
    assert sorted(names_of("adapter", parts)) == sorted(adapters) and bool(adapters) == ("lora" in kind)
    assert ("adapter.vision" in parts) == ("adapter.projection" in parts) == ("adapter.decoder" in parts)


def test_an_attached_module_is_in_no_part(model):
    model.proxy = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="proxy.weight"):
        model.parts()


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_adapters_alone_are_trainable_and_all_get_gradients(kind):
    model = BUILDERS[kind]()
    adapters = set(names_of("adapter", model.parts()))
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == adapters
    for name in adapters:
        if ".lora_b." in name:  # zero at the start, and then lora_a has no gradient
            torch.nn.init.normal_(parameters[name], std=0.1)
    size = model.encoder.clip.conv.kernel_size[0] * int(model.encoder.clip.patches_per_tile**0.5)
    features = model.encode({"images": torch.randn(2, 1, 1, 3, size, size)})
    seen = torch.ones(2, 5, features.shape[1], dtype=torch.bool)
    model.logits(model.hidden(TOKENS, features, vision_mask=seen)).square().mean().backward()
    without = [name for name in adapters if parameters[name].grad is None or not parameters[name].grad.any()]
    assert not without


@pytest.mark.parametrize(("chosen", "prefixes"), [(["vision"], {"encoder.clip"}), (["decoder"], {"decoder.layers"})])
def test_adapters_stand_only_where_asked(chosen, prefixes):
    model = lora_mini_vlm(VOCAB, ["q_proj"], lora_parts=chosen, **SIZES)
    assert {".".join(name.split(".")[:2]) for name in names_of("adapter", model.parts())} == prefixes
    assert not any("fusion_layer" in name for name in names_of("adapter", model.parts()))


def test_unknown_lora_part_is_named():
    with pytest.raises(ModelError, match="vison"):
        lora_mini_vlm(VOCAB, ["q_proj"], lora_parts=["vison"], **SIZES)
