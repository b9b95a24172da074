"""Logits equal transformers' InternVL, every weight randomised, with a Qwen2 decoder and with InternLM2 as a Llama."""

import pytest
import torch
from torch.nn import functional as F

from medtune.models.internvl._component_builders import LoraOptions
from medtune.models.internvl._convert_weights import table
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.weights import load_weights, save_hf
from tests.parity.internvl_twin import (
    SHAPES,
    batch_of,
    item,
    load,
    our_logits,
    randomise,
    their_logits,
    tiny,
    twin,
    worst,
)

TOLERANCE = 3e-5  # measured: 1.02e-5 on logits of about 2; it differs between CPUs
LONG = [1, 2, None, *range(3, 30)]
SHORT = [1, None, *range(40, 52)]


@pytest.fixture(scope="module", params=["internlm2", "qwen2"])
def pair(request, tmp_path_factory):
    ours = tiny(request.param)
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


CASES = {
    "one tile": [item(LONG, [1], 1)],
    "seven tiles": [item(LONG, [7], 2)],
    "padding": [item(LONG, [1], 5), item(SHORT, [1], 6)],
    "tiles and lengths mixed": [item(LONG, [1], 7), item(SHORT, [3], 8), item(SHORT[:5], [2], 9)],
    "two images": [item([None, None, *range(3, 20)], [2, 3], 10)],
    "interleaved images": [item([None, *range(3, 9), None, *range(9, 20)], [1, 4], 11)],
    "ragged images": [item(LONG, [1], 12), item([None, 5, None, 6, 7], [2, 3], 13)],
    "a sample without an image": [item(LONG, [2], 14), item([*range(3, 12)], [], 15)],
    "text alone": [item([*range(3, 30)], [], 16)],
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair, case):
    ours, theirs = pair
    batch = batch_of(*CASES[case])
    assert worst(our_logits(ours, batch), their_logits(theirs, batch), batch) < TOLERANCE


def test_left_padding_equals_transformers(pair):
    """The way in which answers are generated: positions count real tokens, padding is masked."""
    ours, theirs = pair
    batch = batch_of(*CASES["tiles and lengths mixed"], pad_side="left")
    real = batch["padding"]
    length = real.shape[1]
    positions = (real.cumsum(dim=1) - 1).clamp(min=0)
    mask = torch.ones(length, length, dtype=torch.bool).tril() & real[:, None] | torch.eye(length, dtype=torch.bool)
    mine = our_logits(ours, batch, mask=mask, input_pos=positions)
    assert worst(mine, their_logits(theirs, batch, position_ids=positions), batch) < TOLERANCE


def test_a_sample_does_not_depend_on_its_neighbours(pair):
    ours, _ = pair
    first = item(SHORT, [2], 20)
    alone, beside = batch_of(first), batch_of(first, item([None, *LONG], [5, 1], 21), tiles=6, images=3)
    n = len(first["tokens"])
    assert (our_logits(ours, alone)[0, :n] - our_logits(ours, beside)[0, :n]).abs().max() < TOLERANCE  # 3e-6, rounding


def test_without_the_row_order_of_rotary_heads_it_is_another_model(tmp_path, monkeypatch):
    """Should this fail, the parity above would not see an error in the permutation."""
    monkeypatch.setattr(
        "medtune.models.internvl._convert_weights.reorder_rotary", lambda key, tensor, shape, published: tensor
    )
    batch = batch_of(*CASES["one tile"])
    ours = tiny("internlm2")
    assert worst(our_logits(ours, batch), their_logits(twin(ours, tmp_path), batch), batch) > 0.01


# -- the original layout against its definition -----------------------------------------------------------------------


def test_vision_in_the_original_layout_equals_its_definition():
    """InternViT, pixel shuffle and mlp1 written out with the tensors of the original layout."""
    model = tiny("qwen2", layout="original")
    state = model.family.tune_to_hf(model.state_dict())
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        difference = (model.encoder(pixels) - _original_features(state, pixels)).abs().max()
    assert difference < TOLERANCE


def _original_features(state, pixels):
    def take(name):
        return state[f"vision_model.{name}"]

    def norm(x, prefix):
        return F.layer_norm(x, x.shape[-1:], take(f"{prefix}.weight"), take(f"{prefix}.bias"), 1e-6)

    def linear(x, prefix):
        return F.linear(x, take(f"{prefix}.weight"), take(f"{prefix}.bias"))

    heads, n = SHAPES["qwen2"].vision_heads, len(pixels)
    x = F.conv2d(pixels, take("embeddings.patch_embedding.weight"), take("embeddings.patch_embedding.bias"), stride=7)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([take("embeddings.class_embedding").expand(n, 1, -1), x], dim=1)
    x = x + take("embeddings.position_embedding")
    for i in range(SHAPES["qwen2"].vision_layers):
        layer = f"encoder.layers.{i}"
        # [b, n, 3 c] -> q, k, v of [b, heads, n, c / heads]
        qkv = linear(norm(x, f"{layer}.norm1"), f"{layer}.attn.qkv").unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{layer}.attn.proj") * take(f"{layer}.ls1")
        h = linear(F.gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.mlp.fc1")), f"{layer}.mlp.fc2")
        x = x + h * take(f"{layer}.ls2")
    side, c = 4, x.shape[-1]
    x = x[:, 1:].reshape(n, side, side, c)
    x = x.view(n, side, side // 2, 2 * c).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, side // 2, side // 2, 4 * c).permute(0, 2, 1, 3).reshape(n, -1, 4 * c)
    x = F.layer_norm(x, x.shape[-1:], state["mlp1.0.weight"], state["mlp1.0.bias"])
    x = F.gelu(F.linear(x, state["mlp1.1.weight"], state["mlp1.1.bias"]))
    return F.linear(x, state["mlp1.3.weight"], state["mlp1.3.bias"])


def test_packed_internlm2_gives_the_heads_of_transformers_llama(tmp_path):
    """One product with ``wqkv``, rows by group as InternLM2 parts them, equals a Llama with the split weights."""
    shape = SHAPES["internlm2"]
    model = tiny("internlm2", layout="original")
    packed = model.family.tune_to_hf(model.state_dict())
    assert not any("q_proj" in name for name in packed)
    llama = twin(_as("hf", model), tmp_path).model.language_model
    x = torch.randn(2, 5, shape.dim)
    for i, layer in enumerate(llama.layers):
        qkv = F.linear(x, packed[f"language_model.model.layers.{i}.attention.wqkv.weight"])
        groups = qkv.unflatten(-1, (shape.kv_heads, shape.heads // shape.kv_heads + 2, shape.head_dim))
        q, k, v = groups[..., :-2, :].flatten(2), groups[..., -2, :].flatten(2), groups[..., -1, :].flatten(2)
        for ours, theirs in ((q, "q_proj"), (k, "k_proj"), (v, "v_proj")):
            assert (ours - getattr(layer.self_attn, theirs)(x)).abs().max() < 1e-6


def test_the_internlm2_decoder_equals_its_definition():
    """Attention by packed groups, rotary halves, w2(silu(w1 x) * w3 x), with the tensors of the original layout."""
    model = tiny("internlm2", layout="original")
    state = model.family.tune_to_hf(model.state_dict())
    tokens = torch.randint(0, 95, (2, 11))
    with torch.no_grad():
        ours = model.logits(model.hidden(tokens))
        difference = (ours - _internlm2_logits(state, tokens)).abs().max()
    assert difference < TOLERANCE and ours.abs().max() > 1


def _internlm2_logits(state, tokens):
    shape = SHAPES["internlm2"]
    groups, size, length = shape.kv_heads, shape.head_dim, tokens.shape[1]

    def norm(x, name):
        return x * (x.square().mean(-1, keepdim=True) + shape.norm_eps).rsqrt() * state[f"language_model.{name}.weight"]

    def linear(x, name):
        return x @ state[f"language_model.{name}.weight"].T

    angles = torch.arange(length)[:, None] * shape.rope_base ** (-torch.arange(0, size, 2) / size)
    cos, sin = (f(torch.cat([angles, angles], dim=-1)) for f in (torch.cos, torch.sin))

    def turn(x):  # [b, heads, s, size]
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    hidden = state["language_model.model.tok_embeddings.weight"][tokens]
    causal = torch.full((length, length), float("-inf")).triu(1)
    for i in range(shape.layers):
        layer = f"model.layers.{i}"
        qkv = linear(norm(hidden, f"{layer}.attention_norm"), f"{layer}.attention.wqkv")
        qkv = qkv.unflatten(-1, (groups, shape.heads // groups + 2, size)).transpose(1, 2)  # [b, g, s, q.. k v, size]
        q = turn(qkv[..., :-2, :].permute(0, 1, 3, 2, 4).flatten(1, 2))
        k, v = turn(qkv[..., -2, :]), qkv[..., -1, :]
        k, v = (x.repeat_interleave(shape.heads // groups, dim=1) for x in (k, v))
        weights = (q @ k.transpose(-2, -1) / size**0.5 + causal).softmax(dim=-1)
        hidden = hidden + linear((weights @ v).transpose(1, 2).flatten(2), f"{layer}.attention.wo")
        x = norm(hidden, f"{layer}.ffn_norm")
        gated = F.silu(linear(x, f"{layer}.feed_forward.w1")) * linear(x, f"{layer}.feed_forward.w3")
        hidden = hidden + linear(gated, f"{layer}.feed_forward.w2")
    return linear(norm(hidden, "model.norm"), "output")


# -- weights there and back -------------------------------------------------------------------------------------------


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _as(layout, model):
    other = tiny(model.family.hf_to_tune.keywords["shape"].decoder, layout=layout)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("layout", ["original", "hf"])
@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_ours_to_published_and_back(tmp_path, decoder, layout):
    model = tiny(decoder, layout=layout)
    state = dict(model.state_dict())
    save_hf(state, model.family, tmp_path, shard_bytes=40_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same(load_weights(tmp_path, model), state)
    published = model.family.tune_to_hf(state)
    assert published.keys() == table(SHAPES[decoder], layout).keys()
    assert same(model.family.tune_to_hf(model.family.hf_to_tune(published)), published)


@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_both_layouts_hold_the_same_model(tmp_path, decoder):
    """A folder in one layout is read by a model that writes the other, whose export opens in transformers."""
    original = tiny(decoder, layout="original")
    save_hf(original.state_dict(), original.family, tmp_path / "original")
    (tmp_path / "original" / "conversation.py").write_text("# beside the weights")
    hf = tiny(decoder, layout="hf", seed=2)
    hf.load_state_dict(load_weights(tmp_path / "original", hf))
    save_hf(hf.state_dict(), hf.family, tmp_path / "hf", tmp_path / "original")
    assert same(load_weights(tmp_path / "hf", original), dict(original.state_dict()))
    assert not (tmp_path / "hf" / "conversation.py").exists()
    batch = batch_of(*CASES["ragged images"])
    assert worst(our_logits(original, batch), their_logits(load(tmp_path / "hf"), batch), batch) < TOLERANCE


def test_an_original_export_keeps_what_opens_it(tmp_path):
    model = tiny("internlm2", layout="original")
    save_hf(model.state_dict(), model.family, tmp_path / "a")
    (tmp_path / "a" / "modeling_internlm2.py").write_text("# beside the weights")
    save_hf(model.state_dict(), model.family, tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "b" / "modeling_internlm2.py").is_file()


def test_names_of_a_live_module_convert_like_those_on_disk(pair, tmp_path):
    ours, theirs = pair
    live = theirs.state_dict()
    assert any(name.startswith("model.vision_tower.") for name in live) and "lm_head.weight" in live
    assert same(ours.family.hf_to_tune(dict(live)), dict(ours.state_dict()))
    theirs.save_pretrained(tmp_path)
    assert same(load_weights(tmp_path, ours), dict(ours.state_dict()))


@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_merged_adapters_are_the_adapted_model_also_in_transformers(tmp_path, decoder):
    lora = LoraOptions(ATTENTION, ("vision", "decoder"), mlp=True, output=True, rank=3, alpha=7.0)
    adapted = tiny(decoder, lora=lora)
    merged = merge_adapters(adapted.state_dict(), adapted)
    plain = tiny(decoder)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    batch = batch_of(*CASES["ragged images"])
    ours = our_logits(adapted, batch)
    assert worst(our_logits(plain, batch), ours, batch) < TOLERANCE
    assert worst(our_logits(tiny(decoder), batch), ours, batch) > 0.1
    assert worst(ours, their_logits(twin(plain, tmp_path), batch), batch) < TOLERANCE


def test_randomising_leaves_no_parameter_at_its_start():
    """The parity above would hide an error behind a zero bias or a layer scale of one."""
    for name, parameter in randomise(tiny("qwen2")).named_parameters():
        assert parameter.abs().max() > 1e-3 and (parameter - 1).abs().max() > 1e-3, name
