"""Where low-rank adapters go, and how large they are: for every family."""

from dataclasses import dataclass
from typing import ClassVar

from medtune.errors import ModelError

ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")


@dataclass(frozen=True)
class AdapterOptions:
    """Adapters of a model (LoRA, Hu et al. 2021; QLoRA, Dettmers et al. 2023). Each family says which parts take them.

    Attributes:
        known_parts: parts that can be adapted.
        attn_modules: of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
        parts: of ``known_parts``.
        mlp: adapters in the MLPs too.
        output: adapters on the decoder's last linear map too.
        rank: rank of each adapter.
        alpha: scale of each adapter, divided by its rank.
        dropout: dropout before each adapter.
        quantize_base: keep the linear maps of adapted parts as NF4.

    Raises:
        ModelError: if a part or a module is unknown, or none is named.
    """

    known_parts: ClassVar[tuple[str, ...]] = ("decoder",)

    attn_modules: tuple[str, ...] = ATTENTION
    parts: tuple[str, ...] = ("decoder",)
    mlp: bool = False
    output: bool = False
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    quantize_base: bool = False

    def __post_init__(self) -> None:
        for key, given, known in (
            ("lora_parts", self.parts, self.known_parts),
            ("lora_attn_modules", self.attn_modules, ATTENTION),
        ):
            if not given or set(given) - set(known):
                raise ModelError(f"{key} must be some of {', '.join(known)}; got {list(given)}")
