"""One adapter at a time in the weights: the sum is LoRA's, and the weights come back bit for bit."""

import pytest
import torch

from medtune.errors import ModelError
from medtune.models.lora.bank import _linear_maps
from medtune.models.lora.merge import Adapter, Strength, discard_adapters
from medtune.models.lora.merging import WeightMerger
from medtune.models.mini import lora_mini_llava, mini_llava, qlora_mini_llava
from tests.models.banked import alone, random_adapter

SIZES = {"vocab_size": 300, "image_size": 16, "patch_size": 4, "vision_layers": 2, "decoder_layers": 2,
         "embed_dim": 32, "heads": 2}  # fmt: skip
TOKENS = torch.arange(10).view(2, 5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return mini_llava(**SIZES).eval()


def adapters(model):
    maps = [prefix for prefix in _linear_maps(model) if prefix.startswith("decoder.")]
    assert "decoder.output" in maps  # the bank cannot have it there
    first, second = (random_adapter(model, maps[i:], 2 + i, 3.0, seed=i) for i in range(2))
    norm = torch.linspace(0.5, 1.5, 32)
    return {"first": first, "whole": Adapter(second.state, second.strengths, {"decoder.norm.scale": norm})}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_is_lora_and_the_weights_come_back_to_the_bit(model, dtype):
    model = model.to(dtype)
    given, before = adapters(model), {key: value.clone() for key, value in model.state_dict().items()}
    base = model.hidden(TOKENS)
    merger = WeightMerger(model, given)
    for name in ("first", "whole", "first"):
        with merger.merged(name):
            found = model.logits(model.hidden(TOKENS))
        twin = alone(model, given[name])
        for key, tensor in given[name].whole.items():
            twin.load_state_dict({key: tensor.to(dtype)}, strict=False)
        wanted = twin.logits(twin.hidden(TOKENS))
        assert float((found - wanted).abs().max() / wanted.abs().max()) < (1e-5 if dtype == torch.float32 else 0.05)
        assert not torch.allclose(found, model.logits(base), rtol=0.1)
    with merger.merged(None):
        assert torch.equal(model.hidden(TOKENS), base)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_weights_come_back_after_an_error(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="broken"), WeightMerger(model, adapters(model)).merged("first"):
        raise RuntimeError("broken")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_what_does_not_fit_is_refused_and_named(model):
    maps = ["decoder.layers.0.attn.q_proj"]
    good = random_adapter(model, maps, 2, 4.0, seed=1)
    with pytest.raises(ModelError, match="there is no adapter 'other'"), WeightMerger(model, {}).merged("other"):
        pass
    with pytest.raises(ModelError, match=r"adapter 'x': decoder\.layers\.0\.attn\.q_proj has another rank"):
        WeightMerger(model, {"x": Adapter(good.state, {maps[0]: Strength(3, 4.0)})})
    wide = random_adapter(mini_llava(**{**SIZES, "embed_dim": 64}), maps, 2, 4.0, seed=1)
    with pytest.raises(ModelError, match=r"adapter 'x' is of another base: .*q_proj.weight is \[64, 64\].*\[32, 32\]"):
        WeightMerger(model, {"x": wide})
    with pytest.raises(ModelError, match="adapter 'x' is of another base: decoder.nothing is .*no such tensor"):
        WeightMerger(model, {"x": Adapter({}, {}, {"decoder.nothing": torch.zeros(1)})})


def test_nothing_is_merged_into_nf4():
    sizes = {**SIZES, "embed_dim": 128, "heads": 4}
    model = qlora_mini_llava(lora_attn_modules=["q_proj"], **sizes)
    adapter = random_adapter(mini_llava(**sizes), ["decoder.layers.0.attn.q_proj"], 2, 4.0, seed=1)
    with pytest.raises(ModelError, match="is NF4, which no adapter can be merged into"):
        WeightMerger(model, {"x": adapter})


@torch.no_grad()
def test_a_model_without_its_adapters_is_its_base():
    torch.manual_seed(0)
    model = lora_mini_llava(lora_attn_modules=["q_proj", "v_proj"], **SIZES).eval()
    base = model.hidden(TOKENS)  # B is zero
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.equal(model.hidden(TOKENS), base)
    discard_adapters(model)
    assert torch.equal(model.hidden(TOKENS), base)
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]
