"""SQ-LLaVA: logits equal transformers' LLaVA with the authors' extractor; weights go to their layout and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.errors import ModelError
from medtune.models.common.names import expected_shapes
from medtune.models.lora.merge import merge_adapters
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import load_peft, save_peft
from medtune.models.sq_llava._component_builders import LORA_PARTS, LoraOptions
from medtune.models.weights import load_weights, save_hf
from tests.parity import llava_twin
from tests.parity.llava_twin import IMAGE, item, our_logits, their_logits, worst
from tests.parity.sq_llava_twin import SHAPE, batch_of, llava_of, tiny, twin

LONG, SHORT = list(range(3, 30)), list(range(40, 52))
CASES = {
    "one image": [item([1, 2, *IMAGE, *LONG], 1, 1)],
    "ragged": [item([1, *IMAGE, *LONG], 1, 5), item([1, 4, *IMAGE, *SHORT], 1, 6), item([*IMAGE, 7], 1, 7)],
    "two images": [item([1, *IMAGE, 5, *IMAGE, *LONG], 2, 3), item(SHORT, 0, 4)],
}
CLIP = "model.vision_tower.vision_tower."
STRENGTHS = {"vision": {"rank": 2, "alpha": 2}, "decoder": {"rank": 3, "alpha": 1.5}}
FRESH = [f"encoder.projection.{layer}.{side}" for layer in "cvf" for side in ("weight", "bias")]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers_with_the_authors_extractor(case, tmp_path):
    ours = tiny()
    batch = batch_of(*CASES[case])
    difference = worst(our_logits(ours, batch), their_logits(twin(ours, tmp_path), batch)[..., : SHAPE.image_id], batch)
    print(f"{case}: {difference:.1e}")
    assert difference < 1e-5


def test_neighbours_do_not_matter():
    """Prototypes are weighted over the tokens of one image, never over those of the batch."""
    ours = tiny()
    items = [*CASES["ragged"], *CASES["two images"]]
    together = our_logits(ours, batch_of(*items))
    for row, alone in enumerate(items):
        single = our_logits(ours, batch_of(alone))[0]
        assert (together[row, : len(single)] - single).abs().max() < 1e-5


def test_every_trained_tensor_gets_a_gradient():
    model = tiny()
    batch = batch_of(*CASES["ragged"])
    features = model.encode(batch["vision"])
    model.logits(model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"])).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# -- the authors' layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_ours_to_the_authors_layout_and_back_bit_for_bit(tmp_path, shard_bytes):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path, shard_bytes=shard_bytes)
    assert same(load_weights(tmp_path, model), dict(model.state_dict()))


def test_names_are_those_of_the_authors_modules(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    extractor = {name.removeprefix("model.mm_projector.") for name in state if name.startswith("model.mm_projector.")}
    linears = {f"{layer}.{side}" for layer in ("c", "v", "f", "ln_1", "mlp.0", "mlp.2") for side in ("weight", "bias")}
    assert extractor == {"sim_alpha", "sim_beta", *linears}
    assert {
        "model.embed_tokens.weight",
        "model.layers.2.self_attn.o_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
        f"{CLIP}vision_model.embeddings.class_embedding",
        f"{CLIP}vision_model.encoder.layers.3.mlp.fc2.bias",
    } <= state.keys()
    assert state["lm_head.weight"].shape[0] == SHAPE.image_id
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["mm_projector_type"], config["model_type"], config["hidden_size"]) == ("cluster", "llava", 64)


def test_the_authors_checkpoint_needs_the_tower_beside_it(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({name: tensor for name, tensor in state.items() if not name.startswith(CLIP)}, file)
    with pytest.raises(ModelError, match="without the vision tower.*clip-vit-large-patch14-336"):
        load_weights(tmp_path, model)
    clip = {name.removeprefix(CLIP): tensor for name, tensor in state.items() if name.startswith(CLIP)}
    save_file(clip, tmp_path / "clip.safetensors")
    assert same(load_weights(tmp_path, model), dict(model.state_dict()))


def test_an_extractor_that_lacks_a_tensor_is_refused_by_name(tmp_path):
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    del state["model.mm_projector.v.bias"]
    save_file(state, file)
    with pytest.raises(ModelError, match=r"1 missing \(encoder.projection.v.bias\)"):
        load_weights(tmp_path, model)


def test_a_config_of_another_projection_is_not_copied(tmp_path):
    """A run that starts from the authors' LLaVA-1.5 has that model's config in its base folder."""
    model = tiny()
    (tmp_path / "base").mkdir()
    other = {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"], "mm_projector_type": "mlp2x_gelu"}
    (tmp_path / "base/config.json").write_text(json.dumps(other))
    save_hf(model.state_dict(), model.family, tmp_path / "out", tmp_path / "base")
    assert json.loads((tmp_path / "out/config.json").read_text())["mm_projector_type"] == "cluster"


# -- LLaVA-1.5 as a start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["published", "authors", "live"])
def test_a_llava_is_a_start_in_each_of_its_layouts(layout, tmp_path):
    llava = llava_twin.tiny()
    published = llava.family.tune_to_hf(llava.state_dict())
    if layout == "published":
        state = published
    elif layout == "live":
        state = dict(llava_twin.twin(llava, tmp_path).state_dict())
    else:
        from medtune.models.llava import original_names

        state = original_names(published, SHAPE.image_id)
    model = tiny()
    found = model.family.hf_to_tune(dict(state))
    assert {key: t.shape for key, t in found.items()} == expected_shapes(model)
    own = llava.state_dict()
    for key in ("decoder.tok_embeddings.weight", "decoder.output.weight"):
        assert torch.equal(found[key], own[key][: SHAPE.image_id])
    for key in ("0", "2"):
        assert torch.equal(found[f"encoder.projection.mlp.{key}.weight"], own[f"encoder.projection.{key}.weight"])
    rest = [key for key in found if "projection" not in key and "tok_emb" not in key and "output.weight" not in key]
    assert rest and all(torch.equal(found[key], own[key]) for key in rest)


def test_prototypes_start_fresh_and_the_same_each_time():
    llava = llava_twin.tiny()
    published = llava.family.tune_to_hf(llava.state_dict())
    first, second = (tiny().family.hf_to_tune(published) for _ in range(2))
    assert same(first, second)
    bound = SHAPE.vision_dim**-0.5
    for key in FRESH:
        assert 0.6 * bound < first[key].abs().max() <= bound, key
    assert len({first[key].flatten()[0].item() for key in FRESH}) == 6
    assert first["encoder.projection.sim_alpha"].item() == 1 and first["encoder.projection.sim_beta"].item() == 0


def test_a_start_from_half_precision_stays_in_it():
    llava = llava_twin.tiny().to(torch.bfloat16)
    found = tiny().family.hf_to_tune(llava.family.tune_to_hf(llava.state_dict()))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_two_projections_are_one_too_many():
    model = tiny()
    theirs = llava_of(model)
    both = {**model.family.tune_to_hf(model.state_dict()), **llava_linears(theirs)}
    with pytest.raises(ModelError, match="SQ-LLaVA's projection and LLaVA's"):
        model.family.hf_to_tune(both)


def llava_linears(model):
    published = model.family.tune_to_hf(model.state_dict())
    return {name: tensor for name, tensor in published.items() if "linear_" in name}


# -- adapters ---------------------------------------------------------------------------------------------------------


def adapted():
    return tiny(lora=LoraOptions(ATTENTION, STRENGTHS, mlp=True))


def test_merged_adapters_are_the_adapted_model():
    model, plain = adapted(), tiny()
    plain.load_state_dict(merge_adapters(model.state_dict(), model))
    batch = batch_of(*CASES["ragged"])
    ours = our_logits(model, batch)
    assert worst(our_logits(plain, batch), ours, batch) < 1e-5 < (our_logits(tiny(), batch) - ours).abs().max()


def test_adapters_have_the_names_of_the_authors_modules_and_return(tmp_path):
    model = adapted()
    state = {key: tensor for key, tensor in model.state_dict().items() if ".lora_" in key}
    save_peft(state, model, tmp_path, base="sq")
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    prefix = "base_model.model.model."
    assert f"{prefix}layers.2.mlp.up_proj.lora_B.weight" in names
    assert f"{prefix}vision_tower.vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * (3 * 6 + 3 * 7)
    assert same(load_peft(tmp_path, model), state)


def test_an_adapter_that_was_trained_on_a_llava_is_read(tmp_path):
    ours = adapted()
    llava = llava_twin.tiny(lora=llava_options(STRENGTHS))
    state = {key: tensor for key, tensor in llava.state_dict().items() if ".lora_" in key}
    save_peft(state, llava, tmp_path, base="llava")
    assert same(load_peft(tmp_path, ours), state)


def llava_options(parts):
    from medtune.models.llava._component_builders import LoraOptions as Options

    return Options(ATTENTION, parts, mlp=True)


def test_the_projection_carries_no_adapter():
    assert LORA_PARTS == ("vision", "decoder")
    with pytest.raises(ModelError, match="lora_parts must be some of vision, decoder"):
        LoraOptions(parts=("projection",))
