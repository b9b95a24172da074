"""A tiny SQ-LLaVA of ours, and the same weights in transformers' LLaVA with the authors' extractor in it."""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.sq_llava._component_builders import sq_llava_vlm
from medtune.models.sq_llava._shape import SqLlavaShape
from tests.modules.test_prototype import literal
from tests.parity import llava_twin

SHAPE = SqLlavaShape(**{**asdict(llava_twin.SHAPE), "vocab_size": llava_twin.SHAPE.image_id, "pad_id": 0}, prototypes=5)


def tiny(**kwargs: object) -> EarlyFusionVLM:
    """Our model, every parameter and kept tensor random."""
    model = llava_twin.randomise(sq_llava_vlm("tiny", SHAPE, **kwargs)).eval()
    with torch.no_grad():
        for tensor in model.encoder.projection.ln_1.buffers():
            tensor.add_(0.25)
    return model


class Literal(nn.Module):
    """The extractor as the authors' code writes it."""

    def __init__(self, model: EarlyFusionVLM) -> None:
        super().__init__()
        self.extractor = model.encoder.projection

    def forward(self, features: Tensor) -> Tensor:
        return literal(self.extractor, features)


def llava_of(model: EarlyFusionVLM) -> EarlyFusionVLM:
    """A LLaVA with this model's tower and decoder; rows beyond the vocabulary and the projection are its own."""
    other = llava_twin.tiny()
    own = other.state_dict()
    state = {key: tensor for key, tensor in model.state_dict().items() if key in own}
    for key in ("decoder.tok_embeddings.weight", "decoder.output.weight"):
        state[key] = torch.cat([state[key], own[key][SHAPE.image_id :]])
    other.load_state_dict(state, strict=False)
    return other


def twin(model: EarlyFusionVLM, folder: Path) -> nn.Module:
    """transformers' LLaVA with the same tower and decoder, and the authors' extractor for its projection."""
    theirs = llava_twin.twin(llava_of(model), folder)
    theirs.model.multi_modal_projector = Literal(model)
    return theirs


def batch_of(*items: dict) -> dict:
    """As for LLaVA; short rows are filled with the authors' token, because the vocabulary ends before LLaVA's."""
    batch = llava_twin.batch_of(*items)
    batch["tokens"] = batch["tokens"].masked_fill(batch["tokens"] == llava_twin.SHAPE.pad_id, SHAPE.pad_id)
    return batch
