"""Converter of InternVL adapters between torchtune's names and PEFT's."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from medtune.models.common.decoder_names import DECODER_MAPS, QKV
from medtune.models.common.family import StateDict
from medtune.models.internvl._convert_weights import disk_name, pack, reorder_rotary, unpack
from medtune.models.internvl._shape import InternVLShape, Layout
from medtune.models.lora.names import from_peft, to_peft
from medtune.models.lora.packed import PackedLayer, pack_adapters, unpack_adapters

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
    into one tensor are in :func:`packed_layers`.
    """
    hf = layout == "hf"
    decoder, vision = DECODER_MAPS, dict(_VISION_HF if hf else _VISION_ORIGINAL)
    if hf:
        vision |= {f"attn.{name}": f"attention.{name}" for name in QKV}
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
        ModelError: if a tensor is not an adapter of a model of this shape.
    """
    packed, rest = pack_adapters(state, packed_layers(shape, layout))
    return {
        **to_peft(rest, module_names(shape, layout), partial(reorder_rotary, shape=shape, published=True)),
        **packed,
    }


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
    unpacked, rest = unpack_adapters(state, packed_layers(shape, layout), disk_name)
    reorder = partial(reorder_rotary, shape=shape, published=False)
    return {**from_peft(rest, module_names(shape, layout), disk_name, reorder), **unpacked}


def packed_layers(shape: InternVLShape, layout: Layout) -> list[PackedLayer]:
    """The layers that hold q, k and v: of InternViT and InternLM2 in the original layout, none in the other."""
    if layout == "hf":
        return []
    stacks = [("vision_model.encoder.layers", "encoder.vision.layers", shape.vision_layers, "attn.qkv")]
    if shape.packed_decoder:
        stacks.append(("language_model.model.layers", "decoder.layers", shape.layers, "attention.wqkv"))
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found = []
    for theirs, ours, depth, module in stacks:
        rows = (shape.vision_dim,) * 3 if module == "attn.qkv" else (wide, narrow, narrow)
        for layer in range(depth):
            name, parts = f"{theirs}.{layer}.{module}", tuple(f"{ours}.{layer}.attn.{part}" for part in QKV)
            join = partial(_join, name=name, parts=parts, shape=shape)
            split = partial(_split, name=name, parts=parts, shape=shape)
            found.append(PackedLayer(name, parts, rows, join, split))
    return found


def _join(tensors: Sequence[Tensor], *, name: str, parts: Sequence[str], shape: InternVLShape) -> Tensor:
    keys = [f"{part}.lora_b.weight" for part in parts]
    ordered = [reorder_rotary(key, b, shape, published=True) for key, b in zip(keys, tensors, strict=True)]
    return pack(name, ordered, shape)


def _split(packed: Tensor, *, name: str, parts: Sequence[str], shape: InternVLShape) -> Sequence[Tensor]:
    keys = [f"{part}.lora_b.weight" for part in parts]
    split = zip(keys, unpack(name, packed, shape), strict=True)
    return [reorder_rotary(key, b, shape, published=False) for key, b in split]
