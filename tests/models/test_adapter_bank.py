"""Each row of a batch with its own adapter: the adapter alone, and the base to the bit where a row has none."""

import itertools

import pytest
import torch

from medtune.errors import ModelError
from medtune.models.lora.bank import AdapterBank, _linear_maps
from medtune.models.lora.merge import Adapter, Strength, adapted_layers, adapter_of
from medtune.models.lora.peft import read_peft, save_peft
from medtune.models.mini import lora_mini_llava, mini_internvl, mini_llava, mini_vlm, qlora_mini_llava
from tests.models.banked import alone, random_adapter

SIZES = {"vocab_size": 300, "image_size": 16, "patch_size": 4, "vision_layers": 2, "decoder_layers": 2,
         "embed_dim": 32, "heads": 2}  # fmt: skip
BUILDERS = {
    "deep": lambda: mini_vlm(**SIZES, max_num_tiles=2),
    "strict": lambda: mini_vlm(**SIZES, max_num_tiles=2, encoder_mode="strict"),
    "llava": lambda: mini_llava(**SIZES),
    "internlm2": lambda: mini_internvl(**SIZES),
    "qwen2": lambda: mini_internvl(**SIZES, decoder="qwen2"),
}
B, IMAGES = 4, 2
RELATIVE = 1e-6  # of the largest logit; fp32


def is_deep(kind):
    return kind in ("deep", "strict")


@pytest.fixture(params=BUILDERS)
def kind(request):
    return request.param


@pytest.fixture(params=[1, 99], ids=["copied", "wide"])
def form(request, monkeypatch):
    """Each row's own A and B, as for prompts, or those of all adapters, as for single tokens."""
    monkeypatch.setattr("medtune.models.lora.bank.COPIED_FROM", request.param)


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    return BUILDERS[kind]().eval()


def places(model, *wanted):
    """The linear maps whose name holds one of the words."""
    found = [p for p in _linear_maps(model) if p != "decoder.output" and any(word in p for word in wanted)]
    assert found
    return found


def adapters(model, where="decoder"):
    """Three of unlike rank, scale and place."""
    in_part = places(model, f"{where}.")
    return {
        "all": random_adapter(model, in_part, 4, 6.0, seed=1),
        "queries": random_adapter(model, [p for p in in_part if ".q_proj" in p], 2, 5.0, seed=2),
        "mlp": random_adapter(model, [p for p in in_part if ".mlp." in p or ".v_proj" in p], 3, 1.0, seed=3),
    }


def vision_of(kind, rows=B, seed=1):
    """Two images a row, some of two tiles, one row without any."""
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.tensor([[2, 1], [1, 0], [0, 0], [1, 2]] * (rows // 4) if rows >= 4 else [[2, 1]] * rows)
    if kind == "llava":
        tiles = tiles.clamp(max=1)
    t = int(tiles.max())
    vision = {"images": torch.randn(rows, IMAGES, t, 3, 16, 16, generator=generator), "tiles": tiles}
    if is_deep(kind):
        vision["aspect_ratio"] = torch.stack([tiles.clamp(min=1), torch.ones_like(tiles)], dim=-1)
    return vision


def pick(vision, rows):
    return {name: value[rows] for name, value in vision.items()}


def read(model, kind, vision, features, rows=None):
    """Logits [b, s, V] of prompts that hold a row's images; padding at the end where a row has fewer."""
    tiles = vision["tiles"]
    per_tile = features.shape[1] // tiles.shape[1] // vision["images"].shape[2]
    t = vision["images"].shape[2]
    exists = (torch.arange(t) < tiles[..., None]).repeat_interleave(per_tile, -1).flatten(1)
    texts = torch.arange(3, 15) + torch.arange(len(tiles))[:, None] if rows is None else None
    if texts is None:
        texts = torch.arange(3, 15) + torch.as_tensor(rows)[:, None]
    if is_deep(kind):
        return model.logits(model.hidden(texts, features, vision_mask=exists[:, None].expand(-1, 12, -1)))
    most = int(exists.sum(1).max())
    lines = []
    for row, text in zip(exists, texts, strict=True):
        count = int(row.sum())
        lines.append(torch.cat([torch.full((count,), 300), text, torch.zeros(most - count, dtype=torch.long)]))
    tokens = torch.stack(lines)
    logits = model.logits(model.hidden(tokens, features, vision_mask=exists))
    starts = exists.sum(1)
    return torch.stack([line[start : start + 12] for line, start in zip(logits, starts, strict=True)])


def close(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def test_each_row_is_its_adapter_alone(model, kind, form):
    vision, given = vision_of(kind), adapters(model)
    features = model.encode(vision)
    base = read(model, kind, vision, features)
    single = [read(alone(model, one), kind, vision, features) for one in given.values()]
    merged = [read(alone(model, one, merged=True), kind, vision, features) for one in given.values()]
    assert all(close(one, base) > 0.01 for one in single)  # else any row would do
    bank = AdapterBank(model, given)
    worst = off = 0.0
    for rows in ([0, 1, 2, -1], [2, 2, 0, 1], [-1, 0, -1, 1], ["mlp", None, "all", "queries"]):
        with bank.route(rows):
            found = read(model, kind, vision, features)
        for place, row in enumerate(rows):
            index = -1 if row is None else bank.index(row) if isinstance(row, str) else row
            if index == -1:
                assert torch.equal(found[place], base[place])
            else:
                worst = max(worst, close(found[place], single[index][place]))
                off = max(off, close(found[place], merged[index][place]))
    print(f"{kind}: alone {worst:.1e}, merged {off:.1e}")
    assert worst < RELATIVE and off < 1e-5


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours_their_adapters_or_their_number(model, kind, form):
    vision, given = vision_of(kind), adapters(model)
    bank = AdapterBank(model, given)
    chosen = torch.tensor([1, 0, -1, 2])
    with bank.route(chosen):
        whole = read(model, kind, vision, model.encode(vision))
    for order in ([2, 0, 3, 1], [3, 2, 1, 0], [1], [0, 3], [0, 0, 1, 1, 2, 3]):
        part = pick(vision, order)
        with bank.route(chosen[order]):
            found = read(model, kind, part, model.encode(part), rows=order)
        assert close(found, whole[order]) < 2e-6, order


@torch.no_grad()
def test_all_rows_without_an_adapter_are_the_base(model, kind, form):
    vision = vision_of(kind)
    wanted = read(model, kind, vision, model.encode(vision))
    bank = AdapterBank(model, adapters(model))
    with bank.route([-1] * B):
        assert torch.equal(read(model, kind, vision, model.encode(vision)), wanted)
    bank.close()
    assert torch.equal(read(model, kind, vision, model.encode(vision)), wanted)


@torch.no_grad()
def test_adapters_in_the_image_encoder_follow_the_tiles_of_their_row(model, kind, form):
    """Tower and projection run on all real tiles, or all images, of the batch in one go."""
    vision = vision_of(kind)
    given = {
        "tower": random_adapter(model, places(model, "encoder."), 3, 4.0, seed=1),
        "both": random_adapter(model, places(model, "encoder.", "q_proj"), 2, 5.0, seed=2),
    }
    single = []
    for one in (None, *given.values()):
        other = model if one is None else alone(model, one)
        single.append(read(other, kind, vision, other.encode(vision)))
    bank = AdapterBank(model, given)
    assert bank.adapts_encoder
    for rows in itertools.permutations([0, 1, -1, 0]):
        with bank.route(rows):
            found = read(model, kind, vision, bank.encode(vision))
        for place, row in enumerate(rows):
            assert close(found[place], single[row + 1][place]) < 2e-6
    assert close(single[1][0], single[0][0]) > 0.01 and close(single[1][3], single[0][3]) > 0.01


def test_features_of_an_adapted_encoder_cannot_be_shared(model, kind):
    bank = AdapterBank(model, {"tower": random_adapter(model, places(model, "encoder."), 3, 4.0, seed=1)})
    vision = vision_of(kind)
    with bank.route([0] * B), pytest.raises(ModelError, match=r"stands in the image encoder \(encoder\..*by the bank"):
        model.encode(vision)
    with bank.route([0] * (B + 1)), pytest.raises(ModelError, match="images of 4 rows .* a route of 5"):
        bank.encode(vision)
    with pytest.raises(ModelError, match=r"outside of `with bank\.route"):
        bank.encode(vision)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def llava():
    torch.manual_seed(0)
    return BUILDERS["llava"]().eval()


def pass_of(model, rows):
    return model.hidden(torch.ones(rows, 5, dtype=torch.long))


def test_another_number_of_rows_is_refused_in_every_layer(llava):
    bank = AdapterBank(llava, adapters(llava))
    for rows in (1, 2, 4):  # a route of one row would otherwise be stretched
        with bank.route([0] * rows), pytest.raises(ModelError, match=rf"q_proj: a pass of 3 rows .* route of {rows}"):
            pass_of(llava, 3)
    with pytest.raises(ModelError, match="outside of"):
        pass_of(llava, 3)


@torch.no_grad()
def test_rows_that_are_repeated_or_reordered_are_said(llava):
    bank = AdapterBank(llava, adapters(llava))
    with bank.route([0, -1, 2]):
        with bank.rows([2, 0, 0, 1]):
            found = pass_of(llava, 4)
        with bank.rows(torch.tensor([1])):
            pass_of(llava, 1)
        with pytest.raises(ModelError, match="rows 0 to 3 of a batch of 3"), bank.rows([0, 3]):
            pass
        wanted = pass_of(llava, 3)
    assert close(found, wanted[[2, 0, 0, 1]]) < RELATIVE
    with pytest.raises(ModelError, match="outside of"), bank.rows([0]):
        pass


def test_routes_nest_and_names_are_checked(llava):
    bank = AdapterBank(llava, adapters(llava))
    with bank.route([0]):
        with bank.route([1, 2]):
            pass_of(llava, 2)
        pass_of(llava, 1)
    for rows, said in (([3], "adapters 0 to 2"), ([-2], "adapters 0 to 2"), (["quaries"], "did you mean 'queries'")):
        with pytest.raises(ModelError, match=said), bank.route(rows):
            pass
    with pytest.raises(ModelError, match="at least one adapter"):
        AdapterBank(llava, {})


def broken(adapter, **changes):
    return Adapter(**{"state": dict(adapter.state), "strengths": dict(adapter.strengths), "whole": {}, **changes})


def test_what_cannot_be_chosen_per_row_is_refused_by_name(llava):
    good = adapters(llava)["queries"]
    key = "decoder.layers.0.attn.q_proj"
    a, b = f"{key}.lora_a.weight", f"{key}.lora_b.weight"
    cases = {
        r"1 tensors as a whole \(first: encoder\.projection": broken(good, whole={"encoder.projection.0.bias": a}),
        "stands on the output head": random_adapter(llava, ["decoder.output"], 2, 4.0, seed=1),
        r"no linear map decoder\.layers\.9": Adapter(
            {f"decoder.layers.9.x.lora_{side}.weight": torch.ones(1, 1) for side in "ab"},
            {"decoder.layers.9.x": Strength(1, 1.0)},
        ),
        "is not whole": broken(good, state={k: t for k, t in good.state.items() if k != b}),
        r"has A and B of \(\(2, 31\)": broken(good, state={**good.state, a: good.state[a][:, 1:]}),
        "the model needs": broken(good, strengths={**good.strengths, key: Strength(3, 5.0)}),
        f"{key} is not finite": broken(good, state={**good.state, b: good.state[b] * float("inf")}),
    }
    for said, wrong in cases.items():
        with pytest.raises(ModelError, match=f"adapter 'wrong'.*{said}"):
            AdapterBank(llava, {"good": good, "wrong": wrong})
    assert not any(module._forward_hooks for module in llava.modules())  # nothing was left behind


# -- bases ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_an_nf4_base(dtype, form):
    """Each row is what a QLoRA model with that adapter gives; the base has adapters of its own, which are off."""
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        sizes = {**SIZES, "embed_dim": 128, "heads": 4}
        options = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, **sizes}
        model = qlora_mini_llava(**options, lora_alpha=6.0).eval()
        base = model.hidden(torch.arange(10).view(2, 5))  # B is zero
        given = []
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            for layer in adapted_layers(model).values():
                for side in (layer.lora_a, layer.lora_b):
                    side.weight.copy_(torch.randn(side.weight.shape, generator=generator) * 0.1)
            own = adapter_of(model)
            given.append(Adapter({key: tensor.clone() for key, tensor in own.state.items()}, own.strengths))
        tokens = torch.arange(10).view(2, 5)
        wanted = [base, model.hidden(tokens)]  # the second adapter is still in
    finally:
        torch.set_default_dtype(torch.float32)
    bank = AdapterBank(model, {"first": given[0], "second": given[1]})
    with bank.route([1, -1]):
        found = model.hidden(tokens)
    assert torch.equal(found[1], base[1])
    if dtype == torch.bfloat16:
        assert torch.equal(found[0], wanted[1][0])  # sums of products in fp32, then the same rounding
    assert close(found[0].float(), wanted[1][0].float()) < RELATIVE
    assert close(base[0].float(), wanted[1][0].float()) > 0.01
    bank.close()
    assert torch.equal(model.hidden(tokens), wanted[1])  # its own adapters are back


@torch.no_grad()
def test_adapters_come_from_folders_of_peft(llava, tmp_path):
    """Of any rank and place: the bank's model needs to know neither."""
    given = {}
    for number, options in enumerate(({"lora_rank": 2, "lora_parts": {"decoder": {"rank": 5, "alpha": 3}}}, {})):
        torch.manual_seed(number)
        source = lora_mini_llava(["q_proj", "v_proj"], **{"lora_alpha": 7.0, **options}, **SIZES)
        for layer in adapted_layers(source).values():
            torch.nn.init.normal_(layer.lora_b.weight, std=0.2)
        save_peft(adapter_of(source).state, source, tmp_path / str(number), "base")
        given[str(number)] = read_peft(tmp_path / str(number), llava.family)
        assert given[str(number)].strengths == adapter_of(source).strengths
    bank = AdapterBank(llava, given)
    with bank.route(["1", "0"]):
        found = pass_of(llava, 2)
    bank.close()
    for row, name in enumerate(("1", "0")):
        assert close(found[row], pass_of(alone(llava, given[name]), 2)[row]) < RELATIVE


def test_the_model_is_not_changed(llava):
    before, parts = {key: value.clone() for key, value in llava.state_dict().items()}, llava.parts()
    bank = AdapterBank(llava, adapters(llava))
    after = llava.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert llava.parts() == parts
    bank.close()
    assert not any(module._forward_hooks for module in llava.modules())
