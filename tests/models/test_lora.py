"""LoRA options per part: where adapters stand, how large they are, and that the old form means what it meant."""

import inspect

import pytest
import torch

from medtune.errors import ModelError
from medtune.models import gemma3, internvl, llama3_2_vision, llava, mini, sq_llava
from medtune.models.gemma3._component_builders import LoraOptions as Gemma3Options
from medtune.models.llama3_2_vision._component_builders import LoraOptions as DeepOptions
from medtune.models.llava._component_builders import LoraOptions as LlavaOptions
from medtune.models.lora.merge import adapted_layers
from medtune.models.lora.options import _ARGUMENTS, ATTENTION, AdapterOptions
from medtune.models.mini import (
    lora_mini_gemma3,
    lora_mini_internvl,
    lora_mini_llava,
    lora_mini_sq_llava,
    lora_mini_vlm,
    qlora_mini_vlm,
)

SIZES = {"image_size": 16, "patch_size": 4, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}
EVERYWHERE = {"apply_lora_to_mlp": True, "apply_lora_to_output": True, "lora_rank": 2, "lora_alpha": 4.0}
BUILDERS = {
    "deep": (lambda **options: lora_mini_vlm(300, list(ATTENTION), **SIZES, **options)),
    "llava": (lambda **options: lora_mini_llava(list(ATTENTION), vocab_size=300, **SIZES, **options)),
    "sq_llava": (
        lambda **options: lora_mini_sq_llava(list(ATTENTION), vocab_size=300, prototypes=4, **SIZES, **options)
    ),
    "internvl": (lambda **options: lora_mini_internvl(300, list(ATTENTION), **SIZES, **options)),
    # its output layer is its embedding table
    "gemma3": (
        lambda **options: lora_mini_gemma3(300, list(ATTENTION), **SIZES, **{**options, "apply_lora_to_output": False})
    ),
}
PARTS = {
    "deep": ("vision", "projection", "fusion", "decoder"),
    "llava": ("vision", "projection", "decoder"),
    "sq_llava": ("vision", "decoder"),
    "internvl": ("vision", "decoder"),
    "gemma3": ("vision", "decoder"),
}


def kinds(model):
    """Part -> the (rank, alpha, dropout) of its adapters."""
    layers = adapted_layers(model)
    found = {}
    for part, names in model.parts().items():
        for name in names if part.startswith("adapter.") else ():
            layer = layers[name.replace(".layer.", ".").partition(".lora_")[0]]
            assert layer.lora_a.weight.shape[0] == layer.lora_b.weight.shape[1] == layer.rank
            found.setdefault(part.removeprefix("adapter."), set()).add(
                (layer.rank, layer.alpha, getattr(layer.dropout, "p", 0.0))
            )
    return found


def every_builder():
    found = []
    for module in (gemma3, internvl, llama3_2_vision, llava, sq_llava, mini):
        found += [value for name, value in vars(module).items() if name.startswith("lora_")]
    return found


def test_every_builder_takes_the_arguments_of_lora():
    assert len(every_builder()) == 27
    for builder in every_builder():
        assert set(_ARGUMENTS.values()) <= inspect.signature(builder).parameters.keys(), builder


@pytest.mark.parametrize("family", BUILDERS)
def test_each_part_has_its_own_rank_alpha_and_dropout(family):
    wanted = {part: (3 + i, 5.0 + i, 0.1 * i) for i, part in enumerate(PARTS[family])}
    parts = {part: {"rank": r, "alpha": a, "dropout": p} for part, (r, a, p) in wanted.items()}
    model = BUILDERS[family](**EVERYWHERE, lora_parts=parts)
    assert kinds(model) == {part: {kind} for part, kind in wanted.items()}
    alike = BUILDERS[family](**EVERYWHERE, lora_parts=list(PARTS[family]))
    assert adapted_layers(model).keys() == adapted_layers(alike).keys()


@pytest.mark.parametrize("family", BUILDERS)
def test_a_mapping_without_changes_is_the_list(family):
    """The same tensors from the same random numbers, so that a config may be rewritten and its runs stay."""
    states = []
    for parts in (list(PARTS[family]), dict.fromkeys(PARTS[family]), {part: {} for part in PARTS[family]}):
        torch.manual_seed(0)
        states.append(BUILDERS[family](**EVERYWHERE, lora_parts=parts).state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys() and all(torch.equal(state[key], states[0][key]) for key in state)


@pytest.mark.parametrize("family", BUILDERS)
@pytest.mark.parametrize("mlp", [False, True])
def test_the_vision_tower_takes_adapters_on_attention_and_mlp(family, mlp):
    parts = {"vision": {"attn_modules": ["v_proj"], "mlp": mlp}, "decoder": {"attn_modules": ["k_proj"]}}
    places = {prefix.rsplit(".", 1)[1] for prefix in adapted_layers(BUILDERS[family](lora_parts={"vision": None}))}
    assert set(ATTENTION) <= places
    layers = adapted_layers(BUILDERS[family](lora_parts=parts, apply_lora_to_mlp=False))
    vision = {prefix.rsplit(".", 1)[1] for prefix in layers if prefix.startswith("encoder.")}
    decoder = {prefix.rsplit(".", 1)[1] for prefix in layers if prefix.startswith("decoder.")}
    assert vision == {"v_proj"} | ({"w1", "w2"} if mlp else set()) and decoder == {"k_proj"}


def test_the_projection_goes_with_the_fusion_layers_unless_it_is_named():
    options = DeepOptions(parts={"fusion": {"rank": 3}})
    assert options.for_part("projection").rank == options.for_part("fusion").rank == 3
    options = DeepOptions(parts={"fusion": {"rank": 3}, "projection": {"rank": 5}})
    assert (options.for_part("projection").rank, options.for_part("fusion").rank) == (5, 3)
    assert DeepOptions(parts=("vision",)).for_part("projection") is None
    assert set(kinds(BUILDERS["deep"](lora_parts=["fusion"]))) == {"projection", "fusion"}
    assert set(kinds(BUILDERS["deep"](lora_parts=["projection"]))) == {"projection"}


def test_fusion_layers_of_a_quantised_base_take_their_own_rank():
    model = qlora_mini_vlm(300, ["q_proj"], lora_rank=2, lora_parts={"decoder": None, "fusion": {"rank": 4}},
                           apply_lora_to_mlp=True)  # fmt: skip
    alike = qlora_mini_vlm(300, ["q_proj"], lora_rank=2, lora_parts=["decoder", "fusion"], apply_lora_to_mlp=True)
    assert kinds(model)["fusion"] == {(4, 16.0, 0.0)} and kinds(model)["decoder"] == {(2, 16.0, 0.0)}
    types = [{name: type(p.data) for name, p in m.named_parameters()} for m in (model, alike)]
    assert types[0] == types[1]


def test_options_of_a_part_are_those_of_the_whole_where_it_says_nothing():
    options = LlavaOptions(("q_proj",), {"vision": {"rank": 32, "alpha": 64}, "decoder": None}, mlp=True, rank=128)
    vision, decoder = options.for_part("vision"), options.for_part("decoder")
    assert (vision.rank, vision.alpha, vision.mlp, vision.attn_modules) == (32, 64, True, ("q_proj",))
    assert (decoder.rank, decoder.alpha) == (128, 16.0)
    assert options.for_part("projection") is None


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"vison": None}, r"lora_parts must be some of vision, projection, decoder; got \['vison'\]"),
        ({}, "lora_parts must be some of"),
        ({"vision": {"rnak": 4}}, "lora_parts.vision: no option 'rnak' here; did you mean 'rank'"),
        ({"vision": {"rank": 0}}, "lora_parts.vision: lora_rank must be at least 1"),
        ({"vision": {"rank": 4.5}}, "lora_parts.vision.rank: 4.5 is of another type"),
        ({"vision": {"rank": True}}, "lora_parts.vision.rank: True is of another type"),
        ({"vision": {"mlp": 1}}, "lora_parts.vision.mlp: 1 is of another type"),
        ({"vision": {"attn_modules": ["w1"]}}, r"lora_parts.vision: lora_attn_modules must be some of .*\['w1'\]"),
        ({"vision": {"output": True}}, "lora_parts.vision: no option 'output' here"),
        ({"projection": {"mlp": True}}, "lora_parts.projection: no option 'mlp' here"),
        ({"vision": 32}, "lora_parts.vision must be a mapping"),
    ],
)
def test_what_means_nothing_is_refused_by_name(parts, said):
    with pytest.raises(ModelError, match=said):
        LlavaOptions(parts=parts)


@pytest.mark.parametrize("options", [{"output": True}, {"parts": {"decoder": {"output": True}}}], ids=str)
def test_an_adapter_on_a_tied_output_layer_is_refused(options):
    with pytest.raises(ModelError, match=r"apply_lora_to_output: .* embedding table \(tied weights\).*leave it out"):
        Gemma3Options(**options)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ModelError, match="lora_rank must be at least 1"):
        AdapterOptions(**wrong)
