"""What the rest of medtune must know about a model family to read and write its published weights."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

StateDict = dict[str, Tensor]


def _as_on_disk(name: str) -> str:
    return name


@dataclass(frozen=True)
class ModelFamily:
    """Conversion between torchtune's tensor names and the published (Hugging Face) layout of one built model.

    Attributes:
        name: family and size, as in ``llama3_2_vision_11b``; used in messages.
        model_type: the ``model_type`` that ``config.json`` of a published checkpoint carries.
        hf_to_tune: published state dict -> torchtune state dict (accepts names on disk and of a live module).
        tune_to_hf: torchtune state dict -> published names, as in a file.
        hf_config: gives the contents of ``config.json``.
        tensors: state-dict keys of the model without adapters: exactly what an export holds.
        also_reads: further values of ``model_type`` that ``hf_to_tune`` understands: the authors' own layouts.
        tokenizer_files: files that are copied to exported weights if the source folder has them.
        adapters_to_peft: adapter tensors in torchtune's names -> PEFT's; None where no layout is known.
        adapters_from_peft: the inverse.
        live_name: name of a tensor in a published file -> its name in a live transformers model, which PEFT uses.
        layouts: ``config.json`` in the further layouts and spellings that ``hf_to_tune`` reads, for comparisons.
        copies_config: whether exports copy the ``config.json`` of the base weights, which may hold more than
            ``hf_config``; False if that file describes what this run may have changed.
        own_files: further files of an export, by name, that no source folder has; for example a tokenizer that the
            model was given by itself.
        about: half a line on a model that was built from a folder: family, decoder, sizes.
    """

    name: str
    model_type: str
    hf_to_tune: Callable[[StateDict], StateDict]
    tune_to_hf: Callable[[StateDict], StateDict]
    hf_config: Callable[[], dict]
    tensors: frozenset[str] = frozenset()
    also_reads: tuple[str, ...] = ()
    tokenizer_files: tuple[str, ...] = ()
    adapters_to_peft: Callable[[StateDict], StateDict] | None = None
    adapters_from_peft: Callable[[StateDict], StateDict] | None = None
    live_name: Callable[[str], str] = _as_on_disk
    layouts: tuple[Callable[[], dict], ...] = ()
    copies_config: bool = True
    own_files: Callable[[], dict[str, bytes]] = dict
    about: str = ""
