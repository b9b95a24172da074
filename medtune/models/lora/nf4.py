"""NF4 weights whose block scales are kept in 32 bits, without QLoRA's second quantisation.

torchao always quantises the scales of the blocks too (QLoRA, Dettmers et al. 2023, section 3, "double quantization").
Here a tensor of torchao holds the exact scales in the same fields: ``s = quantized_scalers / quantization_factor +
scaler_mean`` with ones, ``1 / s`` in fp32 and 0, one scale per block. Every operation of torchao reads it rightly; only
the quantisation of dense weights is done here. ``scaler_block_size`` 1 marks such a tensor.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import NF4Tensor, SubclassTensorArgs

_MARK = 1
_TINY = 1e-30  # the scale of a block of zeros
_TWO_ZEROS = 0x77


def quantize(dense: Tensor, block_size: int, scaler_block_size: int) -> NF4Tensor:
    """Quantise a weight, with double quantisation unless ``scaler_block_size`` is 1.

    Args:
        dense: [out, in], a multiple of ``block_size`` values.
        block_size: values that share a scale.
        scaler_block_size: scales that share a factor; 1 keeps the scales in fp32.
    """
    if scaler_block_size != _MARK:
        return NF4Tensor.from_tensor(dense, block_size, scaler_block_size)
    flat = dense.detach().contiguous().float().flatten()
    scales = flat.view(-1, block_size).abs().amax(dim=-1)
    table = NF4_VALUES.to(dense.device, torch.float32)
    data = NF4Tensor.convert_to_norm_float_weight(flat, len(scales), block_size, table)
    data = torch.where((scales == 0).repeat_interleave(block_size // 2), _TWO_ZEROS, data)
    meta = SubclassTensorArgs(
        dense.size(), dense.stride(), dense.storage_offset(), dense.dtype, dense.device, dense.requires_grad
    )
    return NF4Tensor(
        meta,
        block_size,
        len(scales),
        _MARK,
        torch.ones(len(scales), dtype=torch.int8, device=dense.device),
        1 / scales.clamp_min(_TINY),
        torch.zeros((), dtype=dense.dtype, device=dense.device),
        data,
        table.to(dense.dtype),
    )


# torchao's values, to four places
NF4_VALUES = torch.tensor(
    [
        -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0,
        0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0,
    ]
)  # fmt: skip


def is_single(weight: Tensor) -> bool:
    """Whether a weight is NF4 with scales in fp32."""
    return isinstance(weight, NF4Tensor) and weight.scaler_block_size == _MARK


def keep_scales(model: nn.Module) -> None:
    """Make every NF4 weight of a model keep its scales in fp32, now and when dense weights are loaded into it.

    Args:
        model: built with ``quantize_base``; may live on the meta device. Weights that are not NF4 stay as they are.
    """
    for module in model.modules():
        weight = module._parameters.get("weight")
        if isinstance(weight, NF4Tensor) and not is_single(weight):
            packed = quantize(weight.get_original_weight(), weight.block_size, _MARK)
            torch.utils.swap_tensors(weight, nn.Parameter(packed, requires_grad=False))
            module.register_load_state_dict_pre_hook(_quantize_loaded)


def _quantize_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    dense, own = state.get(f"{prefix}weight"), module.weight
    if isinstance(dense, Tensor) and not isinstance(dense, NF4Tensor):
        assert isinstance(own, NF4Tensor)
        state[f"{prefix}weight"] = quantize(dense.to(own.device), own.block_size, own.scaler_block_size)
