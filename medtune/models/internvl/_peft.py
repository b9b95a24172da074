"""Converter of InternVL adapters between torchtune's names and PEFT's."""

from functools import partial

from medtune.errors import ModelError
from medtune.models.common.family import StateDict
from medtune.models.internvl._convert_weights import disk_name, reorder_rotary
from medtune.models.internvl._shape import InternVLShape, Layout
from medtune.models.lora.names import from_peft, to_peft

_QKV = {"attn.q_proj": "q_proj", "attn.k_proj": "k_proj", "attn.v_proj": "v_proj"}
_DECODER = {
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
_INTERNLM2 = {
    "attn.output_proj": "attention.wo",
    "mlp.w1": "feed_forward.w1",
    "mlp.w2": "feed_forward.w2",
    "mlp.w3": "feed_forward.w3",
}
_VISION_HF = {"attn.output_proj": "attention.projection_layer", "mlp.w1": "mlp.fc1", "mlp.w2": "mlp.fc2"}
_VISION_ORIGINAL = {"attn.output_proj": "attn.proj", "mlp.w1": "mlp.fc1", "mlp.w2": "mlp.fc2"}


def module_names(shape: InternVLShape, layout: Layout) -> dict[str, str]:
    """Every linear layer that can carry an adapter: torchtune's state-dict prefix -> its name in the published model.

    In the ``hf`` layout the names are those of a live transformers 5 model. Layers that the ``original`` layout packs
    into one tensor are left out, because three adapters cannot be written as one adapter of the packed layer.
    """
    hf = layout == "hf"
    decoder, vision = dict(_DECODER), dict(_VISION_HF if hf else _VISION_ORIGINAL)
    decoder |= {ours: f"self_attn.{theirs}" for ours, theirs in _QKV.items()}
    if hf:
        vision |= {ours: f"attention.{theirs}" for ours, theirs in _QKV.items()}
    elif shape.packed_decoder:
        decoder = _INTERNLM2
    text = "model.language_model.layers" if hf else "language_model.model.layers"
    sight = "model.vision_tower.encoder.layer" if hf else "vision_model.encoder.layers"
    head = "output" if not hf and shape.packed_decoder else "lm_head"
    names = {} if shape.tied else {"decoder.output": head if hf else f"language_model.{head}"}
    for ours, theirs, depth, maps in (
        ("decoder.layers", text, shape.layers, decoder),
        ("encoder.vision.layers", sight, shape.vision_layers, vision),
    ):
        for layer in range(depth):
            names |= {f"{ours}.{layer}.{a}": f"{theirs}.{layer}.{b}" for a, b in maps.items()}
    return names


def adapters_to_peft(state: StateDict, *, shape: InternVLShape, layout: Layout) -> StateDict:
    """From torchtune's names to those of ``adapter_model.safetensors``.

    Args:
        state: adapter tensors by state-dict key, ``lora_a`` [rank, in] and ``lora_b`` [out, rank].
        shape: sizes of the model.
        layout: layout of the base weights that the adapter will be loaded with.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape, or adapts a layer that the layout packs.
    """
    modules = module_names(shape, layout)
    if layout == "original":
        _refuse_packed({key for key in state if key.partition(".lora_")[0] not in modules})
    return to_peft(state, modules, partial(reorder_rotary, shape=shape, published=True))


def adapters_from_peft(state: StateDict, *, shape: InternVLShape, layout: Layout) -> StateDict:
    """From the names of ``adapter_model.safetensors`` to torchtune's; the inverse of :func:`adapters_to_peft`.

    Names of transformers before 4.52 (``language_model.model.layers``) are read too.

    Args:
        state: tensors as PEFT saves them.
        shape: sizes of the model.
        layout: layout of the base weights that the adapter was trained on.

    Raises:
        ModelError: if a tensor is not an adapter of a model of this shape in this layout.
    """
    modules = module_names(shape, layout)
    return from_peft(state, modules, disk_name, partial(reorder_rotary, shape=shape, published=False))


def _refuse_packed(unknown: set[str]) -> None:
    packed = sorted(key for key in unknown if any(f".{part}.lora_" in key for part in _QKV))
    if packed:
        raise ModelError(
            f"the original layout holds q, k and v in one tensor, which cannot carry {len(packed)} adapters of their "
            f"own (first: {packed[0]}); set model.layout=hf, or merge the adapters (--to hf)"
        )
