"""SQ-LLaVA's builders: the real size on the meta device, the mini one with adapters and with NF4."""

import inspect

import pytest
import torch

from medtune.models.common.names import expected_shapes, is_adapter_key
from medtune.models.lora.merge import adapted_layers
from medtune.models.lora.options import ATTENTION
from medtune.models.mini import lora_mini_sq_llava, mini_llava, mini_sq_llava, qlora_mini_sq_llava
from medtune.models.sq_llava import lora_sq_llava_7b, qlora_sq_llava_7b, sq_llava_7b
from tests.models.test_llava import UNUSED, build, count, loss

SMALL = {"vocab_size": 300, "image_size": 16, "embed_dim": 32, "heads": 2, "vision_layers": 3, "decoder_layers": 2}
SMALL["prototypes"] = 2
PUBLISHED = {"vision": {"rank": 32, "alpha": 64}, "decoder": {"rank": 128, "alpha": 256}}
NORM = 2 * 1024  # of the file, unused


def test_size_is_that_of_llava_with_the_extractor():
    model = build(sq_llava_7b)
    extractor = 3 * (1024 * 1024 + 1024) + 2 + (1024 * 4096 + 4096) + (4096 * 4096 + 4096)
    rows = 2 * 32_000 * 4096
    assert count(model) == {
        "vision": 303_507_456 - UNUSED,
        "projection": extractor,
        "decoder": 6_738_939_904 - 2 * 32_064 * 4096 + rows,
    }
    total = sum(size.numel() for size in expected_shapes(model).values())
    assert total == sum(count(model).values()) + UNUSED + NORM
    projection = model.encoder.projection
    assert (projection.prototypes, projection.iterations) == (256, 2)
    with torch.device("meta"):
        assert projection(torch.empty(2, 576, 1024)).shape == (2, 576, 4096)


def test_published_layout_has_the_authors_names_and_shapes():
    model = build(sq_llava_7b)
    state = {key: torch.empty(size, device="meta") for key, size in expected_shapes(model).items()}
    published = model.family.tune_to_hf(state)
    assert published["model.mm_projector.c.weight"].shape == (1024, 1024)
    assert published["model.mm_projector.mlp.0.weight"].shape == (4096, 1024)
    assert published["model.embed_tokens.weight"].shape == (32_000, 4096)
    assert {k: t.shape for k, t in model.family.hf_to_tune(published).items()} == expected_shapes(model)


@pytest.mark.parametrize("builder", [lora_sq_llava_7b, qlora_sq_llava_7b])
def test_adapters_of_the_paper_have_a_rank_for_each_part(builder):
    model = build(builder, list(ATTENTION), apply_lora_to_mlp=True, lora_parts=PUBLISHED)
    parts = count(model)
    assert parts["adapter.vision"] == 23 * 32 * (4 * 2 * 1024 + 2 * 5 * 1024)
    assert parts["adapter.decoder"] == 32 * 128 * (4 * 2 * 4096 + 3 * (4096 + 11_008))
    scales = {name.split(".")[1]: (layer.rank, layer.alpha) for name, layer in adapted_layers(model).items()}
    assert scales == {"vision": (32, 64), "layers": (128, 256)}
    assert parts["projection"] == count(build(sq_llava_7b))["projection"]


def test_adapters_and_a_full_projection_are_what_trains():
    model = lora_mini_sq_llava(list(ATTENTION), apply_lora_to_mlp=True, lora_parts=PUBLISHED, **SMALL)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_adapter_key(name)}
    model.encoder.projection.requires_grad_(True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_b." in name:
                p.normal_(std=0.1)
    loss(model).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]
    assert without == []
    assert any("encoder.vision" in name for name in trained)


def test_qlora_takes_a_dense_base():
    sizes = {**SMALL, "embed_dim": 128}
    plain, adapted = mini_sq_llava(**sizes), qlora_mini_sq_llava(["q_proj"], lora_parts=["vision", "decoder"], **sizes)
    missing, unexpected = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(is_adapter_key(name) for name in missing)
    torch.manual_seed(0)
    ours = loss(plain)
    torch.manual_seed(0)
    assert abs(loss(adapted) / ours - 1) < 0.2


def test_a_mini_model_takes_what_a_mini_llava_takes():
    plain = dict(inspect.signature(mini_llava).parameters)
    plain.pop("decoder")  # SQ-LLaVA was published with Vicuna alone
    for builder in (mini_sq_llava, lora_mini_sq_llava):
        own = {name: p.default for name, p in inspect.signature(builder).parameters.items()}
        assert {name: p.default for name, p in plain.items()}.items() <= own.items()
        assert own["prototypes"] == 16


def test_a_mini_model_starts_from_its_seed_with_features_as_large_as_words():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(mini_sq_llava(**SMALL).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    model = mini_sq_llava()
    features = model.encode({"images": torch.randn(2, 1, 1, 3, 64, 64), "tiles": torch.ones(2, 1, dtype=torch.long)})
    assert 0.2 < features.std().item() / model.decoder.tok_embeddings.weight.std().item() < 2
