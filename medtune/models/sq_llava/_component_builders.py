"""Build an SQ-LLaVA from sizes: LLaVA's vision transformer and decoder, and the prototype extractor between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from medtune.models.common.early_fusion import EarlyFusionVLM, ImageEncoder
from medtune.models.llava._component_builders import language_decoder, vision_tower
from medtune.models.lora.finish import finish
from medtune.models.lora.options import AdapterOptions
from medtune.models.sq_llava._convert_weights import sq_llava_family
from medtune.models.sq_llava._peft import adapters_from_peft, adapters_to_peft
from medtune.models.sq_llava._shape import SqLlavaShape
from medtune.modules.prototype import PrototypeExtractor

LORA_PARTS = ("vision", "decoder")


@dataclass(frozen=True)
class LoraOptions(AdapterOptions):
    """Options of SQ-LLaVA's adapters; the projection carries none, because the authors train it fully."""

    known_parts: ClassVar[tuple[str, ...]] = LORA_PARTS
    without_effect: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("output",)}


def sq_llava_vlm(name: str, shape: SqLlavaShape, *, lora: LoraOptions | None = None) -> EarlyFusionVLM:
    """Build a complete model of the SQ-LLaVA architecture.

    Args:
        name: family and size, for messages.
        shape: sizes.
        lora: adapters; with adapters nothing else is trainable until a recipe says so.
    """
    extractor = PrototypeExtractor(shape.vision_dim, shape.dim, shape.prototypes, shape.iterations)
    model = EarlyFusionVLM(
        language_decoder(shape, lora),
        ImageEncoder(vision_tower(shape, lora), extractor),
        image_id=shape.image_id,
        family=sq_llava_family(name, shape),
        adapters_only=lora is not None,
    )
    finish(model, lora, adapters_to_peft, adapters_from_peft, shape=shape)
    return model
