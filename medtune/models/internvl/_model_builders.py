"""InternVL2, 2.5 and 3 with InternViT-300M, 1B to 14B: plain, with LoRA and with QLoRA."""

from collections.abc import Callable
from functools import partial

from medtune.models.common.early_fusion import EarlyFusionVLM
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.internvl._shape import Layout
from medtune.models.internvl._sizes import SIZES
from medtune.models.lora.options import ATTENTION, LoraParts

INTERNVL2_2B = SIZES["internvl2_2b"]
INTERNVL3_8B = SIZES["internvl3_8b"]
Builder = Callable[..., EarlyFusionVLM]


def builders(name: str, title: str, decoder: str, default: Layout) -> tuple[Builder, Builder, Builder]:
    """The three builders of one size: plain, with LoRA and with QLoRA.

    Args:
        name: that of the plain builder, in :data:`SIZES`.
        title: name of the model, for docstrings.
        decoder: name of its language model.
        default: the layout of the folder on the hub.
    """
    shape = SIZES[name]

    def plain(layout: Layout = default) -> EarlyFusionVLM:
        return internvl_vlm(name, shape, layout=layout)

    def lora(
        lora_attn_modules: tuple[str, ...] | list[str] = ATTENTION,
        apply_lora_to_mlp: bool = True,
        apply_lora_to_output: bool = False,
        lora_rank: int = 16,
        lora_alpha: float = 32.0,
        lora_dropout: float = 0.05,
        quantize_base: bool = False,
        double_quant: bool = True,
        lora_parts: LoraParts = ("decoder",),
        layout: Layout = default,
    ) -> EarlyFusionVLM:
        options = LoraOptions.from_arguments(locals())
        return internvl_vlm(name, shape, layout=layout, lora=options)

    plain.__doc__ = _PLAIN.format(title=title, decoder=decoder)
    lora.__doc__ = _LORA.format(title=title, plain=name)
    for function, own in ((plain, name), (lora, f"lora_{name}")):
        function.__name__ = function.__qualname__ = own
    qlora = partial(lora, quantize_base=True)
    qlora.__doc__ = f"{title}, adapters on an NF4 base: see ``lora_{name}``."
    return plain, lora, qlora


_PLAIN = """{title} (InternViT-300M, {decoder}), every parameter trainable until a recipe freezes parts.

Args:
    layout: layout of exports: ``original`` (OpenGVLab's own) or ``hf`` (transformers'). Weights of either layout are
        read. The default is that of the folder on the hub.
"""
_LORA = """{title} with low-rank adapters, the only trainable parameters until a recipe names more.

The defaults are those of InternVL's LoRA script: all linear layers of the decoder except its output, rank 16, alpha 32,
dropout 0.05. In that script q, k and v of InternLM2 share one adapter of rank 16; here each has its own.

Args:
    lora_attn_modules: some of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj``.
    apply_lora_to_mlp: adapters in the MLPs too.
    apply_lora_to_output: adapters on the decoder's output layer too.
    lora_rank: rank of each adapter.
    lora_alpha: scale of each adapter, divided by its rank.
    lora_dropout: dropout before each adapter.
    quantize_base: keep the linear layers of adapted parts as NF4 (QLoRA).
    double_quant: with ``quantize_base``, quantise the scales of NF4's blocks too: 4.13 bits per weight; without it
        4.63, and no rounding of the scales.
    lora_parts: which of ``vision`` and ``decoder`` carry adapters, or a mapping from a part to the options that differ
        there (``rank``, ``alpha``, ``dropout``, ``attn_modules``, ``mlp``, ``output``), as in
        ``{{vision: {{rank: 32, alpha: 64}}, decoder: {{rank: 128, alpha: 256}}}}``. To train the connector, which is
        trained in full, name ``projection`` in ``trainable``.
    layout: see ``{plain}``.
"""

internvl2_1b, lora_internvl2_1b, qlora_internvl2_1b = builders("internvl2_1b", "InternVL2-1B", "Qwen2-0.5B", "original")
internvl2_2b, lora_internvl2_2b, qlora_internvl2_2b = builders(
    "internvl2_2b", "InternVL2-2B", "InternLM2-1.8B", "original"
)
internvl2_8b, lora_internvl2_8b, qlora_internvl2_8b = builders(
    "internvl2_8b", "InternVL2-8B", "InternLM2.5-7B", "original"
)
internvl2_5_1b, lora_internvl2_5_1b, qlora_internvl2_5_1b = builders(
    "internvl2_5_1b", "InternVL2.5-1B", "Qwen2.5-0.5B", "original"
)
internvl2_5_2b, lora_internvl2_5_2b, qlora_internvl2_5_2b = builders(
    "internvl2_5_2b", "InternVL2.5-2B", "InternLM2.5-1.8B", "original"
)
internvl2_5_4b, lora_internvl2_5_4b, qlora_internvl2_5_4b = builders(
    "internvl2_5_4b", "InternVL2.5-4B", "Qwen2.5-3B", "original"
)
internvl2_5_8b, lora_internvl2_5_8b, qlora_internvl2_5_8b = builders(
    "internvl2_5_8b", "InternVL2.5-8B", "InternLM2.5-7B", "original"
)
internvl3_1b, lora_internvl3_1b, qlora_internvl3_1b = builders("internvl3_1b", "InternVL3-1B", "Qwen2.5-0.5B", "hf")
internvl3_2b, lora_internvl3_2b, qlora_internvl3_2b = builders("internvl3_2b", "InternVL3-2B", "Qwen2.5-1.5B", "hf")
internvl3_8b, lora_internvl3_8b, qlora_internvl3_8b = builders("internvl3_8b", "InternVL3-8B", "Qwen2.5-7B", "hf")
internvl3_14b, lora_internvl3_14b, qlora_internvl3_14b = builders("internvl3_14b", "InternVL3-14B", "Qwen2.5-14B", "hf")
