"""NF4 weights without double quantisation: the scales of their blocks are exact, in a model too."""

import bitsandbytes.functional as bnb
import pytest
import torch
from torchao.dtypes.nf4tensor import NF4Tensor

from medtune.config import load_config
from medtune.errors import ConfigError, ModelError
from medtune.models.internvl import qlora_internvl3_8b
from medtune.models.lora.merge import round_to_nf4
from medtune.models.lora.nf4 import is_single, quantize
from medtune.models.mini import lora_mini_internvl, qlora_mini_internvl
from medtune.training.building import shard
from medtune.training.config import TrainConfig
from medtune.training.memory import tensor_bytes
from medtune.training.plan import _obstacles

SIZES = {"vocab_size": 300, "vision_layers": 1, "decoder_layers": 1}


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rows of very different size, and a block of zeros."""
    drawn = torch.randn(128, 128, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 1, 128)[:, None]
    drawn[5, :64] = 0
    return drawn.to(dtype)


def test_each_block_is_its_scale_times_the_nearest_value_of_nf4() -> None:
    dense = weight()
    packed = quantize(dense, 64, 1)
    blocks = dense.view(-1, 64)
    scales = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks / scales.clamp_min(1e-30)).unsqueeze(-1).sub(packed.nf4).abs().argmin(dim=-1)
    expected = scales * packed.nf4[nearest]
    torch.testing.assert_close(packed.get_original_weight().view(-1, 64), expected, rtol=3e-7, atol=0)
    assert packed.get_original_weight()[5, :64].eq(0).all()


def test_it_is_what_bitsandbytes_makes_without_nested_statistics() -> None:
    dense = weight()
    data, state = bnb.quantize_4bit(dense, blocksize=64, quant_type="nf4", compress_statistics=False)
    theirs = bnb.dequantize_4bit(data, state)
    ours = quantize(dense, 64, 1).get_original_weight()
    scale = dense.view(-1, 64).abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    # torchao's table has four places; a value at the middle between two of them may go either way
    close = ((ours - theirs).view(-1, 64).abs() / scale) < 1e-4
    assert close.float().mean() > 0.999


def test_double_quantisation_rounds_the_scales_and_this_does_not() -> None:
    dense = weight()
    tops = dense.abs().view(-1, 64).amax(dim=1)

    def error(scaler_block_size: int) -> float:
        again = quantize(dense, 64, scaler_block_size).get_original_weight().abs().view(-1, 64).amax(dim=1)
        return ((again - tops).abs() / tops.clamp_min(1e-30)).nan_to_num().max().item()

    assert error(1) < 3e-7 and error(256) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_dense_weights_keeps_the_scales_exact(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    try:
        plain = lora_mini_internvl(**SIZES)
        model = qlora_mini_internvl(**SIZES, double_quant=False)
    finally:
        torch.set_default_dtype(torch.float32)
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and not missing
    held = {name: p for name, p in model.named_parameters() if isinstance(p, NF4Tensor)}
    assert len(held) == 7 and all(is_single(p) for p in held.values())
    rounded = round_to_nf4(state, model, dtype)
    for name, parameter in held.items():
        assert torch.equal(parameter.get_original_weight(), quantize(state[name], 64, 1).get_original_weight())
        assert torch.equal(parameter.get_original_weight(), rounded[name])
    assert all(value is not None and torch.is_tensor(value) for value in state.values())


def test_a_step_trains_the_adapters_alone() -> None:
    model = qlora_mini_internvl(**SIZES, double_quant=False)
    before = {name: p.get_original_weight() for name, p in model.named_parameters() if isinstance(p, NF4Tensor)}
    tokens = torch.randint(0, 290, (2, 9))
    model.logits(model.hidden(tokens, None)).square().mean().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained and all(".lora_" in name for name in trained)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name].get_original_weight(), value) for name, value in before.items())


def test_memory_is_counted_as_it_is_stored() -> None:
    with torch.device("meta"):
        bits = {
            double: sum(
                tensor_bytes(p)
                for p in qlora_internvl3_8b(double_quant=double).parameters()
                if isinstance(p, NF4Tensor)
            )
            for double in (True, False)
        }
    weights = 28 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18_944)
    assert 8 * bits[True] / weights == pytest.approx(4.13, abs=0.02)
    assert 8 * bits[False] / weights == pytest.approx(4.63, abs=0.02)


def test_it_needs_weights_of_four_bits() -> None:
    with pytest.raises(ModelError, match="double_quant"):
        lora_mini_internvl(**SIZES, double_quant=False)


def test_several_processes_are_refused_before_they_would_round_the_scales() -> None:
    with torch.device("meta"):
        model = qlora_mini_internvl(**SIZES, double_quant=False)
    with pytest.raises(ConfigError, match="double_quant.*one process"):
        shard(model)
    config = load_config("sft/internvl3_8b_qlora_single_device", TrainConfig, ["model.double_quant=false"])
    assert any("double_quant" in one for one in _obstacles(config, 2, 0.0))
    assert not any("double_quant" in one for one in _obstacles(config, 1, 0.0))
