"""Low-rank adapters as part of the weights that they adapt."""

from torch import nn
from torchtune.modules.peft import LoRALinear

from medtune.models.family import StateDict
from medtune.models.names import is_adapter_key, state_dict_names


def merge_adapters(state: StateDict, model: nn.Module) -> StateDict:
    """Add every low-rank adapter to the weight it adapts: W + (alpha / rank) B A (LoRA, Hu et al. 2021, Eq. 3).

    Args:
        state: the model's full state dict, on one device; not changed.
        model: gives each adapter's scale.

    Returns:
        A state dict without adapter tensors, as a plain model has it. Sums are taken in fp32.
    """
    keys = state_dict_names(model)
    scales = {
        keys[f"{name}.lora_a.weight"].removesuffix(".lora_a.weight"): module.alpha / module.rank
        for name, module in model.named_modules()
        if isinstance(module, LoRALinear)
    }
    merged = {key: tensor for key, tensor in state.items() if not is_adapter_key(key)}
    for prefix, scale in scales.items():
        base = merged[f"{prefix}.weight"]
        update = state[f"{prefix}.lora_b.weight"].float() @ state[f"{prefix}.lora_a.weight"].float()
        merged[f"{prefix}.weight"] = (base.float() + scale * update.to(base.device)).to(base.dtype)
    return merged
