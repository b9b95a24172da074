"""The memory estimate: what is counted on the meta device is what autograd keeps on a real one."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torchtune.modules import TiedLinear

from medtune.config import Component, instantiate
from medtune.models.common.interface import BatchShape
from medtune.models.common.parts import names_of
from medtune.training import memory
from tests.models.tiny_early import PER_TILE, SIZE, tiny_early_vlm

SHAPE = BatchShape(batch=3, tokens=40, images=1, tiles=1, size=32)
SMALL = {"vocab_size": 300, "image_size": 32, "embed_dim": 64, "vision_layers": 2, "decoder_layers": 2}
LORA = {**SMALL, "embed_dim": 128, "lora_attn_modules": ["q_proj"], "lora_parts": ["decoder"]}


def build(device: str, name: str = "mini_vlm", **sizes: object):
    with torch.device(device):
        return instantiate(Component(_component_=f"medtune.models.mini.{name}", **(sizes or SMALL)))


def members(model, *parts: str) -> set[str]:
    return {name for part in parts for name in names_of(part, model.parts())}


@contextmanager
def kept_by(model, trained: set[str]) -> Iterator[list[int]]:
    """Bytes of each storage that autograd keeps while the block runs, the model's own aside."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    known = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            known.add(tensor.untyped_storage()._cdata)
            kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def really_kept(model, trained: set[str]) -> int:
    """Bytes that autograd keeps when the same forward pass runs on the CPU."""
    shape = SHAPE
    vision = {
        "images": torch.zeros(shape.batch, 1, 1, 3, shape.size, shape.size),
        "aspect_ratio": torch.ones(shape.batch, 1, 2, dtype=torch.long),
        "tiles": torch.ones(shape.batch, 1, dtype=torch.long),
    }
    with kept_by(model, trained) as kept:
        features = model.encode(vision)
        mask = torch.ones(shape.batch, shape.tokens, features.shape[1], dtype=torch.bool)
        model.hidden(torch.zeros(shape.batch, shape.tokens, dtype=torch.long), features, vision_mask=mask)
    return sum(kept)


@pytest.mark.parametrize(
    "parts", [("vision",), ("vision", "projection", "fusion"), ("vision", "projection", "fusion", "decoder")]
)
def test_activations_are_those_of_a_real_forward_pass(parts: tuple[str, ...]) -> None:
    model = build("meta")
    trained = members(model, *parts)
    counted = memory.count_activations(model, SHAPE, trained, embeds_gradient=False).total
    real = really_kept(build("cpu"), trained)
    # Measured: equal with the encoder alone, else 0.24% less (a mask of the embedding lookup). A layer is 17%.
    assert counted == pytest.approx(real, rel=0.005)


EARLY = BatchShape(batch=3, tokens=30, images=2, tiles=2, size=SIZE)


def early(device: str, **sizes: object):
    with torch.device(device):
        return tiny_early_vlm(300, embed_dim=64, **sizes)


def early_batch(shape: BatchShape) -> tuple[dict[str, Tensor], Tensor]:
    """Pictures, and rows that hold their tokens."""
    vision = {
        "images": torch.zeros(shape.batch, shape.images, shape.tiles, 3, SIZE, SIZE),
        "tiles": torch.full((shape.batch, shape.images), shape.tiles),
    }
    tokens = torch.ones(shape.batch, shape.tokens, dtype=torch.long)
    tokens[:, 1 : 1 + shape.images * shape.tiles * PER_TILE] = 300
    return vision, tokens


@pytest.mark.parametrize(
    "parts", [("vision",), ("projection",), ("decoder",), ("vision", "projection", "decoder")], ids="+".join
)
def test_activations_where_images_are_tokens(parts: tuple[str, ...]) -> None:
    model = early("meta")
    trained = members(model, *parts)
    counted = memory.count_activations(model, EARLY, trained, embeds_gradient=False)
    real, (vision, tokens) = early("cpu"), early_batch(EARLY)
    with kept_by(real, trained) as kept:
        mask = torch.ones(EARLY.batch, EARLY.images * EARLY.tiles * PER_TILE, dtype=torch.bool)
        real.hidden(tokens, real.encode(vision), vision_mask=mask)
    # Measured: equal, or 0.08% less with the decoder (masks of the embedding lookup). The encoder is 4%.
    assert counted.total == pytest.approx(sum(kept), rel=0.001)
    assert len(counted.inside) == 2  # the tower has no transformer layers


@pytest.mark.parametrize("parts", [("vision",), ("vision", "projection", "decoder")], ids="+".join)
def test_activations_of_a_model_with_masks_by_layer_and_norms_of_its_own(parts: tuple[str, ...]) -> None:
    sizes = {**SMALL, "window": 16}
    model = build("meta", "mini_gemma3", **sizes)
    trained = members(model, *parts)
    counted = memory.count_activations(model, SHAPE, trained, embeds_gradient=False).total
    real = build("cpu", "mini_gemma3", **sizes)
    tokens = torch.ones(SHAPE.batch, SHAPE.tokens, dtype=torch.long)
    tokens[:, 1:5] = 300
    vision = {
        "images": torch.zeros(SHAPE.batch, 1, 1, 3, 32, 32),
        "tiles": torch.ones(SHAPE.batch, 1, dtype=torch.long),
    }
    with kept_by(real, trained) as kept:
        real.hidden(tokens, real.encode(vision), vision_mask=torch.ones(SHAPE.batch, 4, dtype=torch.bool))
    assert counted == pytest.approx(sum(kept), rel=0.02)


@pytest.mark.parametrize("name", ["mini_gemma3", "mini_internvl", "mini_vlm"])
def test_tables_of_positions_are_counted_before_they_have_values(name: str) -> None:
    """Llama-3's are made later than the others on the meta device."""
    real = sum(buffer.nbytes for buffer in build("cpu", name).buffers())
    counted = memory.table_bytes(build("meta", name))
    assert counted == pytest.approx(real, rel=0.01) and counted > 50_000


def test_images_are_tokens_of_early_models_alone() -> None:
    assert early("meta").image_tokens(EARLY) == 2 * 2 * PER_TILE
    assert build("meta").image_tokens(SHAPE) == 0
    assert early("meta").images_as_tokens and not build("meta").images_as_tokens


def test_a_tied_output_has_the_vocabulary_of_the_embeddings() -> None:
    model = early("meta")
    assert model.vocab_size == 300
    del model.decoder.output
    model.decoder.output = TiedLinear(model.decoder.tok_embeddings)
    assert model.vocab_size == 300


def test_frozen_weights_below_everything_keep_nothing() -> None:
    model = build("meta")
    assert memory.count_activations(model, SHAPE, set(), embeds_gradient=False).total == 0


def test_checkpointing_keeps_layer_inputs_and_the_largest_layer() -> None:
    found = memory.Activations(total=1000, inside=[300, 400], inputs=[10, 20])
    assert found.checkpointed() == 1000 - 700 + 30 + 400
    model = build("meta")
    counted = memory.count_activations(model, SHAPE, members(model, "vision"), embeds_gradient=False)
    assert len(counted.inside) == 2 + 1 + 2 + 1  # vision, projection, decoder, fusion layers
    assert counted.checkpointed() < counted.total


def test_twice_the_batch_is_twice_the_activations() -> None:
    totals = []
    for batch in (2, 4):
        model = build("meta")
        shape = BatchShape(batch, 40, 1, 1, 32)
        totals.append(memory.count_activations(model, shape, members(model, "vision", "fusion"), False).total)
    assert totals[1] == pytest.approx(2 * totals[0], rel=0.03)  # position tables do not grow with it


def test_the_word_embeddings_and_attention_are_put_back() -> None:
    plain = torch.nn.functional.scaled_dot_product_attention
    memory.count_activations(build("meta"), SHAPE, set(), embeds_gradient=True)
    assert torch.nn.functional.scaled_dot_product_attention is plain


@pytest.mark.parametrize(
    ("path", "options", "wanted"),
    [
        ("torch.optim.AdamW", {}, 4.0),
        ("torch.optim.AdamW", {"amsgrad": True}, 6.0),
        ("torch.optim.SGD", {}, 0.0),
        ("torch.optim.SGD", {"momentum": 0.9}, 2.0),
        ("bitsandbytes.optim.PagedAdamW8bit", {}, 2.03125),
        ("bitsandbytes.optim.PagedAdamW32bit", {}, 8.0),
    ],
)
def test_optimizer_state_per_element_in_bf16(path: str, options: dict[str, object], wanted: float) -> None:
    component = Component(_component_=path, lr=1e-3, **options)
    assert memory.optimizer_bytes_per_element(component, torch.bfloat16) == wanted


def test_nf4_takes_about_four_bits() -> None:
    model = build("meta", "qlora_mini_vlm", **LORA)
    weight = model.decoder.layers[0].attn.q_proj.weight
    assert 0.5 < memory.tensor_bytes(weight) / weight.numel() < 0.56
    assert memory.tensor_bytes(torch.empty(3, 5, dtype=torch.bfloat16)) == 30


def test_qlora_runs_on_the_meta_device() -> None:
    model = build("meta", "qlora_mini_vlm", **LORA)
    assert memory.count_activations(model, SHAPE, members(model, "adapter"), embeds_gradient=False).total > 0


def test_gathered_layers_are_the_root_and_two_of_the_largest() -> None:
    model = torch.nn.Module()
    model.embed = torch.nn.Linear(4, 4, bias=False)  # 64 bytes
    model.layers = torch.nn.ModuleList([torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(8, 1, bias=False)])
    assert memory.gathered_bytes(model) == 64 + 2 * 32


def test_logits_are_held_for_one_chunk() -> None:
    assert memory.logits_bytes(100, 10, 1000, torch.float32) == 10 * 1000 * 12
    assert memory.logits_bytes(100, 0, 1000, torch.bfloat16) == 100 * 1000 * 16
    assert memory.logits_bytes(5, 10, 1000, torch.bfloat16) == 5 * 1000 * 16
