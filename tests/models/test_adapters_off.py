"""With its adapters off a model is its base to the bit: checkpointed, compiled, quantised and sharded too."""

import json
from pathlib import Path

import pytest
import torch
from torchtune.modules import TransformerCrossAttentionLayer, TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

from medtune.config import instantiate
from medtune.errors import ModelError
from medtune.models.common.parts import require_adapters_only
from medtune.models.lora.merge import adapted_layers, adapters_off
from medtune.models.mini import (
    lora_mini_gemma3,
    lora_mini_internvl,
    lora_mini_llava,
    lora_mini_vlm,
    mini_gemma3,
    mini_internvl,
    mini_llava,
    mini_vlm,
    qlora_mini_llava,
)
from tests.runs import LORA, SFT, TINY, launch, tiny

SIZES = {"vocab_size": 300, "image_size": 16, "patch_size": 4, "vision_layers": 2, "decoder_layers": 2}
ALL = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True,
       "apply_lora_to_output": True, "lora_dropout": 0.3}  # fmt: skip
FAMILIES = {
    "deep": (mini_vlm, lora_mini_vlm, ["vision", "fusion", "decoder"]),
    "llava": (mini_llava, lora_mini_llava, ["vision", "projection", "decoder"]),
    "internvl": (mini_internvl, lora_mini_internvl, ["vision", "decoder"]),
    "gemma3": (mini_gemma3, lora_mini_gemma3, ["vision", "decoder"]),
}


def pair(family, embed_dim=32, heads=2):
    """A plain model and one with adapters that matter on the same base."""
    plain_builder, builder, parts = FAMILIES[family]
    sizes = {**SIZES, "embed_dim": embed_dim, "heads": heads}
    torch.manual_seed(0)
    plain = plain_builder(**sizes)
    options = {**ALL, "apply_lora_to_output": family != "gemma3"}  # its output layer is its embedding table
    adapted = builder(**sizes, **options, lora_parts=parts)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    for layer in adapted_layers(adapted).values():
        torch.nn.init.normal_(layer.lora_b.weight, std=0.3)
    return plain, adapted


def logits(model, family):
    generator = torch.Generator().manual_seed(1)
    vision = {
        "images": torch.randn(2, 1, 1, 3, 16, 16, generator=generator),
        "tiles": torch.ones(2, 1, dtype=torch.long),
    }
    if family == "deep":
        vision["aspect_ratio"] = torch.ones(2, 1, 2, dtype=torch.long)
    features = model.encode(vision)
    images = 0 if family == "deep" else features.shape[1]
    tokens = torch.cat([torch.full((2, images), 300), torch.arange(3, 15).repeat(2, 1)], dim=1)
    seen = torch.ones(2, tokens.shape[1], features.shape[1], dtype=torch.bool) if family == "deep" else None
    return model.logits(model.hidden(tokens, features, vision_mask=seen))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_to_the_bit_and_the_adapters_afterwards(family, checkpointed):
    plain, adapted = pair(family)
    if checkpointed:
        policy = {TransformerSelfAttentionLayer, TransformerCrossAttentionLayer}
        set_activation_checkpointing(adapted, auto_wrap_policy=policy)
    before = logits(adapted.eval(), family)
    adapted.train()  # the dropout of the adapters draws nothing where they are off
    state = torch.get_rng_state()
    with adapted.adapters_off():
        off = logits(adapted, family)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(off, logits(plain, family)) and not off.requires_grad
    after = logits(adapted.eval(), family)
    assert torch.equal(after, before) and after.requires_grad
    assert (after - off).abs().max() > 0.1


def test_a_quantised_base_is_the_base_too():
    sizes = {**SIZES, "embed_dim": 128, "heads": 4}
    torch.manual_seed(0)
    model = qlora_mini_llava(**sizes, **{**ALL, "lora_dropout": 0.0})
    start = logits(model, "llava")  # B is zero
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_b.weight, std=0.3)
    with model.adapters_off():
        assert torch.equal(logits(model, "llava"), start)
    assert not torch.equal(logits(model, "llava"), start)


def test_contexts_nest_and_end_with_an_error():
    _, model = pair("llava")
    layers = list(adapted_layers(model).values())
    with adapters_off(model):
        with pytest.raises(RuntimeError), adapters_off(model):
            raise RuntimeError
        assert all(layer.disabled for layer in layers) and not torch.is_grad_enabled()
    assert not any(layer.disabled for layer in layers) and torch.is_grad_enabled()


def test_one_adapter_that_was_off_before_stays_off():
    _, model = pair("llava")
    first = next(iter(adapted_layers(model).values()))
    first.disabled = True
    with model.adapters_off():
        pass
    assert [layer.disabled for layer in adapted_layers(model).values()].count(True) == 1 and first.disabled


def test_compiled_layers_are_switched():
    plain, adapted = pair("llava")
    wanted = logits(plain, "llava")
    for layer in adapted.decoder.layers:
        layer.compile(backend="eager")
    on = logits(adapted.eval(), "llava")
    with adapted.adapters_off():
        assert torch.equal(logits(adapted, "llava"), wanted)
    assert torch.equal(logits(adapted, "llava"), on)


def test_a_plain_model_has_nothing_to_switch():
    plain, _ = pair("llava")
    with plain.adapters_off():
        assert not logits(plain, "llava").requires_grad


@pytest.mark.parametrize("world", [1, 2])
def test_within_a_sharded_run(world: int, tmp_path: Path) -> None:
    """Losses of the base beside those of the adapted model, in each step of a run that trains the adapters."""

    def harm() -> None:
        from medtune.objectives.sft import SFT as Objective

        forward = Objective.forward

        def both(self, model, batch):
            with model.adapters_off():
                base = forward(self, model, batch)
            output = forward(self, model, batch)
            return output._replace(metrics={**output.metrics, "base": base.loss_sum})

        Objective.forward = both  # type: ignore[method-assign]

    options = {**SFT, "model": LORA, "trainable": ["adapter"], "optimizer": {"lr": 0.05}, "batch_size": 4 // world,
               "activation_checkpointing": True, "max_steps": 2}  # fmt: skip
    found = {}
    for name, patch in (("plain", None), ("both", harm)):
        assert launch(tiny(tmp_path / name, **options), world, patch) == [0] * world
        found[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    # the passes without adapters change nothing of the run
    assert [line["loss"] for line in found["both"]] == [line["loss"] for line in found["plain"]]
    assert found["both"][0]["base"] == found["both"][0]["loss"]  # B is zero at the start
    assert found["both"][-1]["base"] != found["both"][-1]["loss"]


# -- what a caller may rely on ----------------------------------------------------------------------------------------


def test_a_run_that_trains_more_than_adapters_is_refused_by_name():
    with torch.device("meta"):
        model, plain = instantiate(LORA), instantiate(TINY["model"])
    require_adapters_only(model, ("adapter",), "DPO")
    require_adapters_only(model, ("adapter.vision", "proxy"), "DPO")
    with pytest.raises(ModelError, match=r"DPO takes the model .* also trains projection, fusion; take them out"):
        require_adapters_only(model, ("projection", "adapter", "fusion"), "DPO")
    with pytest.raises(ModelError, match="and it has none; choose a lora_ builder"):
        require_adapters_only(plain, (), "DPO")
