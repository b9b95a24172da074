"""Converter of SQ-LLaVA weights between torchtune's names and the authors' layout; LLaVA-1.5 weights are read too."""

import hashlib
from functools import partial

import torch
from torch import Tensor

from medtune.errors import ModelError
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.llava import _convert_weights as llava
from medtune.models.llava._config import hf_config as llava_config
from medtune.models.sq_llava._shape import SqLlavaShape

PROJECTOR = "model.mm_projector."
_PROJECTION = "encoder.projection."
_LLAVA_LINEARS = {"encoder.projection.0.": "mlp.0.", "encoder.projection.2.": "mlp.2."}
_PROTOTYPE_LINEARS = ("c", "v", "f")


def hf_to_tune(state: StateDict, *, shape: SqLlavaShape) -> StateDict:
    """From the authors' names (heliossun/SQ-LLaVA) to torchtune's; or start from a LLaVA-1.5 in any of its layouts.

    A LLaVA-1.5 has no prototypes. Its two linear layers become the extractor's ``mlp``, and the layers of the
    prototypes begin with fresh values, which are the same each time. Rows of the vocabulary beyond the authors' are
    cut off: those that the published LLaVA-1.5 was padded with.

    Args:
        state: tensors by their name on disk, or by that of a live module.
        shape: sizes of the model.

    Raises:
        ModelError: if a tensor does not belong to this model or occurs twice, or if the vision tower is absent.
    """
    names = set(projector_names())
    extractor = {name: tensor for name, tensor in state.items() if name.removeprefix(PROJECTOR) in names}
    rest = llava.hf_to_tune({n: t for n, t in state.items() if n not in extractor}, shape=shape)
    sides = {key.partition(".")[0] for key in rest}
    if extractor and "decoder" in sides and "encoder" not in sides:
        raise ModelError(
            "it is saved in the authors' layout, without the vision tower. Put a safetensors file of "
            "openai/clip-vit-large-patch14-336 into the folder (and into its model.safetensors.index.json where it has "
            "one), with the tower's adapters merged"
        )
    linears = {
        f"{_PROJECTION}{ours}{key.removeprefix(theirs)}": rest.pop(key)
        for theirs, ours in _LLAVA_LINEARS.items()
        for key in list(rest)
        if key.startswith(theirs)
    }
    if extractor and linears:
        raise ModelError("it holds SQ-LLaVA's projection and LLaVA's; remove one of the files")
    tune = {key: tensor[: shape.image_id] if key in llava.VOCABULARY else tensor for key, tensor in rest.items()}
    if linears:
        return {**tune, **linears, **_fresh(shape, next(iter(linears.values())).dtype)}
    return {**tune, **{f"{_PROJECTION}{n.removeprefix(PROJECTOR)}": t for n, t in extractor.items()}}


def projector_names() -> list[str]:
    """Names of the extractor's tensors below their prefix; a LLaVA's projection has none of them."""
    layers = [*_PROTOTYPE_LINEARS, "ln_1", "mlp.0", "mlp.2"]
    return ["sim_alpha", "sim_beta", *(f"{layer}.{side}" for layer in layers for side in ("weight", "bias"))]


def _fresh(shape: SqLlavaShape, dtype: torch.dtype) -> StateDict:
    """Initial values of the prototypes' layers: torch's own distributions, drawn from the tensor's name."""
    dim = shape.vision_dim
    state = {
        "sim_alpha": torch.ones(1, 1, 1),
        "sim_beta": torch.zeros(1, 1, 1),
        "ln_1.weight": torch.ones(dim),
        "ln_1.bias": torch.zeros(dim),
    }
    for layer in _PROTOTYPE_LINEARS:
        state |= {f"{layer}.weight": _uniform(layer, (dim, dim)), f"{layer}.bias": _uniform(f"{layer}.bias", (dim,))}
    return {f"{_PROJECTION}{name}": tensor.to(dtype) for name, tensor in state.items()}


def _uniform(name: str, size: tuple[int, ...]) -> Tensor:
    """U(-1/sqrt(d), 1/sqrt(d)) for a layer of d inputs and d outputs, as ``nn.Linear`` begins."""
    seed = int.from_bytes(hashlib.sha256(f"sq_llava|{name}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(size, generator=generator) * 2 - 1) * size[-1] ** -0.5


def tune_to_hf(state: StateDict, *, shape: SqLlavaShape) -> StateDict:
    """From torchtune's names to the authors', vision tower included.

    Args:
        state: tensors by state-dict key, with adapters merged.
        shape: sizes of the model.
    """
    extractor = {key: tensor for key, tensor in state.items() if key.startswith(_PROJECTION)}
    rest = llava.tune_to_hf({key: tensor for key, tensor in state.items() if key not in extractor}, shape=shape)
    renamed = {f"{PROJECTOR}{key.removeprefix(_PROJECTION)}": tensor for key, tensor in extractor.items()}
    return {**llava.original_names(rest, shape.image_id), **renamed}


def hf_config(shape: SqLlavaShape) -> dict:
    """Contents of ``config.json``, as the authors' code reads it.

    ``unfreeze_mm_vision_tower`` makes their code read the tower from the file. ``vision_config`` is not read by it.
    """
    config = llava_config(shape)
    text = {key: value for key, value in config["text_config"].items() if key != "model_type"}
    return text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_projector_type": "cluster",
        "mm_hidden_size": shape.vision_dim,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        "unfreeze_mm_vision_tower": True,
        "vision_config": config["vision_config"],
    }


def sq_llava_family(name: str, shape: SqLlavaShape) -> ModelFamily:
    """Converters and config of one model of this shape."""
    return ModelFamily(
        name=name,
        model_type="llava",
        also_reads=("llava_llama",),
        hf_to_tune=partial(hf_to_tune, shape=shape),
        tune_to_hf=partial(tune_to_hf, shape=shape),
        hf_config=partial(hf_config, shape),
        tokenizer_files=llava.TOKENIZER_FILES,
        copies_config=False,  # that of a LLaVA-1.5 names another projection
    )
