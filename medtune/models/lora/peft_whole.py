"""Tensors that were fully trained in addition to the adapters: PEFT's ``modules_to_save``."""

from collections.abc import Collection

import torch
from torch import nn

from medtune.errors import ModelError
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import expected_shapes
from medtune.models.lora.names import PREFIX

_EMBEDDINGS, _OUTPUT = "decoder.tok_embeddings.weight", "decoder.output.weight"
_TIED_NAMES = ("embed_tokens.weight", "lm_head.weight")


def whole_to_peft(whole: StateDict, model: nn.Module, adapted: Collection[str]) -> tuple[StateDict, list[str]]:
    """Convert fully trained tensors to PEFT's names.

    PEFT saves modules, not tensors, so every tensor of a named module must be present.

    Args:
        whole: by state-dict key, on the CPU.
        model: gives shapes and family; may live on the meta device.
        adapted: names in the published model of the linear layers that carry an adapter.

    Returns:
        The tensors by their names in ``adapter_model.safetensors``, and the full names of the modules.

    Raises:
        ModelError: if a module of the published model holds adapters too, or tensors that were not trained, or if the
            embedding table of a model with tied weights was trained.
    """
    if not whole:
        return {}, []
    if _EMBEDDINGS in whole and _tied(model.family):  # type: ignore[arg-type]
        raise ModelError(
            "the embedding table was trained beside the adapters, and it is the output layer too (tied weights); PEFT "
            "would keep the change in one of the two: use --to hf"
        )
    published = _published(whole, model)
    trained = {name: tensor for name, tensor in published.items() if not tensor.is_meta}
    modules = _modules(trained, published.keys() - trained.keys(), adapted)
    return {f"{PREFIX}{name}": tensor for name, tensor in trained.items()}, modules


def whole_from_peft(state: StateDict, family: ModelFamily) -> StateDict:
    """The inverse of :func:`whole_to_peft`: tensors of ``modules_to_save`` by state-dict key.

    Raises:
        ModelError: if a tensor does not belong to this model, or is one of two that the model ties.
    """
    plain = {name.removeprefix(PREFIX).replace(".modules_to_save.", "."): tensor for name, tensor in state.items()}
    tied = [name for name in plain if name.endswith(_TIED_NAMES)] if _tied(family) else []
    if tied:
        raise ModelError(
            f"modules_to_save hold {tied[0]}; {family.name} has one tensor for its embeddings and its output layer "
            "(tied weights), and the adapter would change one of the two: merge it in PEFT and take the merged model"
        )
    try:
        return family.hf_to_tune(plain) if plain else {}
    except Exception as error:  # torchtune's converter raises a bare Exception on an unknown name
        raise ModelError(f"modules_to_save hold a tensor that is not of {family.name}: {error}") from error


def _tied(family: ModelFamily) -> bool:
    return _EMBEDDINGS in family.tensors and _OUTPUT not in family.tensors


def _published(whole: StateDict, model: nn.Module) -> StateDict:
    """Every tensor of the model by its name in a live published model; those not in ``whole`` are meta tensors."""
    family: ModelFamily = model.family  # type: ignore[assignment]
    shapes = expected_shapes(model)
    state = {
        key: whole[key] if key in whole else torch.empty(shapes[key], device="meta") for key in sorted(family.tensors)
    }
    unknown = sorted(whole.keys() - state.keys())
    if unknown:
        raise ModelError(f"{unknown[0]} is no tensor of {family.name}, which an adapter could hold; use --to hf")
    try:
        return {family.live_name(name): tensor for name, tensor in family.tune_to_hf(state).items()}
    except (RuntimeError, NotImplementedError) as error:  # a published tensor would join real and meta tensors
        raise ModelError(
            "what was trained beside the adapters is only a part of a published tensor, which PEFT saves whole; use "
            "--to hf"
        ) from error


def _modules(trained: Collection[str], others: Collection[str], adapted: Collection[str]) -> list[str]:
    owners = sorted({name.rpartition(".")[0] for name in trained})
    chosen: list[str] = []
    for owner in owners:  # sorted, so that a module comes before its submodules
        if any(owner.startswith(f"{outer}.") for outer in chosen):
            continue
        chosen.append(owner)
        carried = [name for name in adapted if f"{name}.".startswith(f"{owner}.")]
        if carried:
            raise ModelError(
                f"{carried[0]} carries an adapter and was trained whole too, or something that holds it was ({owner}); "
                "PEFT keeps only one of the two: use --to hf"
            )
        frozen = sorted(name for name in others if name.startswith(f"{owner}."))
        if frozen:
            raise ModelError(
                f"{owner} was trained whole in part ({frozen[0]} was not), and PEFT saves whole modules; use --to hf"
            )
    return chosen
