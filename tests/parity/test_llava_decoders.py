"""LLaVA with Mistral's and Qwen2's decoders: logits, answers, adapters and both layouts, against transformers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.errors import ModelError
from medtune.models.common.names import expected_shapes
from medtune.models.llava import huatuogpt_vision_7b, llava_med_v1_5_7b, original_names
from medtune.models.llava._component_builders import LORA_PARTS, LoraOptions
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import load_peft, save_peft
from medtune.models.weights import load_weights, save_hf
from tests.parity.llava_twin import (
    IMAGE,
    SHAPE,
    batch_of,
    item,
    our_logits,
    their_logits,
    tiny,
    twin,
    worst,
)
from tests.parity.peft_twin import adapters_of, in_peft, torchao_passed_over  # noqa: F401

TOLERANCE = 3e-5  # measured: 1.2e-5; it differs between CPUs
LONG, SHORT = list(range(3, 30)), list(range(40, 52))
SHAPES = {
    "mistral": replace(SHAPE, decoder="mistral", kv_heads=2, rope_base=1_000_000.0),
    "qwen2": replace(SHAPE, decoder="qwen2", kv_heads=2, rope_base=1_000_000.0, norm_eps=1e-6),
    "qwen2 tied": replace(SHAPE, decoder="qwen2", kv_heads=1, rope_base=1_000_000.0, norm_eps=1e-6, tied=True),
    "llama tied": replace(SHAPE, tied=True),
}


def made(kind: str, **options: Any) -> Any:
    """A random model; a table that is the output layer too has values like those of the output layers of the others."""
    model = tiny(SHAPES[kind], **options)
    if SHAPES[kind].tied:
        with torch.no_grad():
            model.decoder.tok_embeddings.weight.mul_(0.15 / 0.4)
    return model


CASES = {
    "one image": [item([1, 2, *IMAGE, *LONG], 1, 1)],
    "ragged": [item([1, *IMAGE, *LONG], 1, 5), item([1, 4, *IMAGE, *SHORT], 1, 6), item([*IMAGE, 7], 1, 7)],
    "several images, and none": [item([1, *IMAGE, 4, *IMAGE, *SHORT], 2, 8), item(LONG, 0, 9)],
    "text alone": [item(LONG, 0, 11)],
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    ours = made(request.param)
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(pair: Any, case: str) -> None:
    ours, theirs = pair
    batch = batch_of(*CASES[case])
    assert worst(our_logits(ours, batch), their_logits(theirs, batch), batch) < TOLERANCE


def test_neighbours_do_not_matter(pair: Any) -> None:
    """On the right of shorter rows there is padding; on the left too, as prompts are answered together."""
    ours, _ = pair
    items = [*CASES["ragged"], *CASES["several images, and none"]]
    for side in ("right", "left"):
        batch = batch_of(*items, pad_side=side)
        real, length = batch["padding"], batch["tokens"].shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        places = {
            "mask": causal & real[:, None] | torch.eye(length, dtype=torch.bool),
            "input_pos": (real.cumsum(1) - 1).clamp(min=0),
        }
        with torch.no_grad():
            features = ours.encode(batch["vision"])
            h = ours.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"], **places)
            together = ours.logits(h)
        for row, alone in enumerate(items):
            single = our_logits(ours, batch_of(alone))[0]
            assert (together[row][real[row]] - single).abs().max() < TOLERANCE


def test_positions_of_another_base_are_another_model(tmp_path: Path) -> None:
    """Should this fail, the parity above would not see a rotary base that is not passed on."""
    ours = made("mistral")
    theirs = twin(ours, tmp_path)
    batch = batch_of(*CASES["ragged"])
    other = tiny(replace(SHAPES["mistral"], rope_base=10_000.0))
    assert worst(our_logits(other, batch), their_logits(theirs, batch), batch) > 0.01


@pytest.mark.parametrize("quantize", [False, True], ids=["lora", "qlora"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_adapted_layers_have_the_positions_of_the_plain_ones(kind: str, quantize: bool) -> None:
    """torchtune's builder of adapted Llama layers knows one base only."""
    wide = {"dim": 256, "heads": 2, "kv_heads": 1, "intermediate_dim": 256, "vision_dim": 128} if quantize else {}
    shape = replace(SHAPES[kind], **wide)
    lora = LoraOptions(attn_modules=ATTENTION, mlp=True, rank=3, alpha=6, quantize_base=quantize)
    plain, adapted = tiny(shape), tiny(shape, lora=lora)
    for layer, other in zip(plain.decoder.layers, adapted.decoder.layers, strict=True):
        assert torch.equal(layer.attn.pos_embeddings.cache, other.attn.pos_embeddings.cache)
    assert len({id(layer.attn.pos_embeddings) for layer in adapted.decoder.layers}) == 1


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_go_into_a_layout_and_back_bit_for_bit(kind: str, layout: str, tmp_path: Path) -> None:
    model = made(kind, layout=layout)
    rows = SHAPE.image_id if layout == "original" else SHAPE.vocab_size
    save_hf(model.state_dict(), model.family, tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    words = "model.embed_tokens.weight" if layout == "original" else "language_model.model.embed_tokens.weight"
    assert len(names[words]) == rows
    head = "lm_head.weight" if layout == "original" else "language_model.lm_head.weight"
    heads = [name for name in names if name.endswith("lm_head.weight")]
    assert heads == ([] if "tied" in kind else [head])
    again, state = load_weights(tmp_path, model), model.state_dict()
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        cut = rows if key in ("decoder.tok_embeddings.weight", "decoder.output.weight") else None
        assert torch.equal(again[key][:cut], tensor[:cut]), key


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_the_authors_files_are_read_as_transformers_layout_is(kind: str, tmp_path: Path) -> None:
    """Their names, with the tower in the file, as LLaVA-Med v1.5 has them."""
    model = made(kind)
    published = model.family.tune_to_hf(model.state_dict())
    save_file(original_names(published, SHAPE.image_id), tmp_path / "model.safetensors")
    names = load_file(tmp_path / "model.safetensors").keys()
    assert {
        "model.layers.2.self_attn.k_proj.weight",
        "model.mm_projector.2.bias",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc2.bias",
        "lm_head.weight",
    } <= names
    assert ("model.layers.0.self_attn.q_proj.bias" in names) == (kind == "qwen2")
    found, state = load_weights(tmp_path, model), model.state_dict()
    assert all(torch.equal(found[key][: SHAPE.image_id], state[key][: SHAPE.image_id]) for key in state)


def adapted(kind: str, layout: str = "hf", **options: Any) -> Any:
    lora = LoraOptions(
        **{"attn_modules": ATTENTION, "parts": LORA_PARTS, "mlp": True, "rank": 3, "alpha": 6, **options}
    )
    return made(kind, lora=lora, layout=layout)


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen2 tied"])
def test_adapters_in_pefts_format_read_back_bit_for_bit(kind: str, layout: str, tmp_path: Path) -> None:
    model = adapted(kind, layout)
    save_peft(adapters_of(model), model, tmp_path, "base")
    again = load_peft(tmp_path, model)
    assert again.keys() == adapters_of(model).keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in adapters_of(model).items())
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    place = "model.language_model.layers" if layout == "hf" else "model.layers"
    assert f"base_model.model.{place}.1.self_attn.k_proj.lora_B.weight" in names


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen2 tied"])
def test_logits_equal_peft(kind: str, tmp_path: Path) -> None:
    model, batch = adapted(kind), batch_of(*CASES["ragged"])
    loaded = in_peft(model, made(kind), twin, tmp_path)
    ours = our_logits(model, batch)
    assert worst(ours, their_logits(loaded, batch), batch) < TOLERANCE
    with loaded.disable_adapter():
        assert worst(ours, their_logits(loaded, batch), batch) > 0.01


@pytest.mark.parametrize("kind", ["mistral", "qwen2 tied"])
def test_merged_weights_compute_the_same_in_transformers(kind: str, tmp_path: Path) -> None:
    model, merged, batch = adapted(kind), made(kind), batch_of(*CASES["ragged"])
    merged.load_state_dict(merge_adapters(model.state_dict(), model))
    assert worst(our_logits(model, batch), their_logits(twin(merged, tmp_path), batch), batch) < TOLERANCE


def test_an_adapter_on_a_tied_output_is_refused() -> None:
    with pytest.raises(ModelError, match=r"output layer is its embedding table .* apply_lora_to_output=false"):
        adapted("qwen2 tied", output=True)


@pytest.mark.parametrize(
    ("build", "text", "count"),
    [
        (
            llava_med_v1_5_7b,
            {"model_type": "mistral", "num_key_value_heads": 8, "intermediate_size": 14_336},
            7_566_743_552,
        ),
        (huatuogpt_vision_7b, {"model_type": "qwen2"}, 7_936_104_960),
    ],
)
def test_names_and_sizes_of_the_real_models_are_those_of_transformers(
    build: Any, text: dict[str, Any], count: int
) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        ours = build(layout="hf")
        theirs = LlavaForConditionalGeneration(LlavaConfig(**ours.family.hf_config()))
    assert theirs.config.text_config.model_type == text["model_type"]
    state = {key: torch.empty(size, device="meta") for key, size in expected_shapes(ours).items()}
    found = {ours.family.live_name(key): tuple(t.shape) for key, t in ours.family.tune_to_hf(state).items()}
    assert found == {key: tuple(t.shape) for key, t in theirs.state_dict().items()}
    assert sum(torch.Size(size).numel() for size in found.values()) == count
