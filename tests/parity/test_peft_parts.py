"""Ranks of their own per part, and what was trained whole beside the adapters: the same model in PEFT, every family."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from medtune.errors import ModelError
from medtune.models.common.names import is_adapter_key, state_dict_names
from medtune.models.common.parts import names_of
from medtune.models.internvl._component_builders import LoraOptions as InternVLOptions
from medtune.models.llama3_2_vision._component_builders import LoraOptions as MllamaOptions
from medtune.models.llava._component_builders import LoraOptions as LlavaOptions
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import load_peft, read_peft, save_peft
from medtune.models.lora.peft_config import CONFIG_NAME
from tests.parity import internvl_twin, llava_twin, mllama_twin
from tests.parity.peft_twin import adapters_of, in_peft, torchao_passed_over  # noqa: F401

FAMILIES: dict[str, Any] = {"mllama": mllama_twin, "llava": llava_twin, "internvl": internvl_twin}
BATCHES = {
    "mllama": mllama_twin.batch_of(mllama_twin.item([mllama_twin.IMAGE, *range(3, 30)], [(1, 2)], 1)),
    "llava": llava_twin.batch_of(llava_twin.item([1, *llava_twin.IMAGE, *range(3, 30)], 1, 1)),
    "internvl": internvl_twin.batch_of(internvl_twin.item([1, None, *range(3, 30)], [2], 1)),
}
OPTIONS = {"mllama": MllamaOptions, "llava": LlavaOptions, "internvl": InternVLOptions}
RANKS = {
    "mllama": {
        "vision": {"rank": 2, "alpha": 5},
        "projection": {"rank": 3, "alpha": 1.5},
        "fusion": {"rank": 4, "alpha": 16, "attn_modules": ["q_proj"]},
        "decoder": {"rank": 5, "alpha": 5},
    },
    "llava": {
        "vision": {"rank": 2, "alpha": 5},
        "projection": {"rank": 3, "alpha": 1.5},
        "decoder": {"rank": 4, "alpha": 5},
    },
    "internvl": {"vision": {"rank": 2, "alpha": 5}, "decoder": {"rank": 4, "alpha": 5, "dropout": 0.1}},
}
TOLERANCE = 5e-6  # relative to the largest logit


def tiny(family: str, lora: Any = None) -> Any:
    arguments = ("qwen2",) if family == "internvl" else ()
    return FAMILIES[family].tiny(*arguments, **({} if lora is None else {"lora": lora}))


def difference(family: str, ours: Any, theirs: Any) -> float:
    twin, batch = FAMILIES[family], BATCHES[family]
    logits = twin.our_logits(ours, batch)
    return twin.worst(logits, twin.their_logits(theirs, batch), batch) / float(logits.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_different_ranks_are_the_same_model_in_peft(family: str, tmp_path: Path) -> None:
    options = OPTIONS[family](ATTENTION, RANKS[family], mlp=True)
    adapted = tiny(family, options)
    loaded = in_peft(adapted, tiny(family), FAMILIES[family].twin, tmp_path)
    found = difference(family, adapted, loaded)
    print(f"{family}: {found:.1e}")
    assert found < TOLERANCE
    config = json.loads((tmp_path / "adapter" / CONFIG_NAME).read_text())
    ranks = {config["r"], *config["rank_pattern"].values()}
    assert ranks == {part["rank"] for part in RANKS[family].values()}
    # without the pattern PEFT would refuse the shapes, without that of alpha it would be another model
    if "alpha_pattern" in config:
        del config["alpha_pattern"]
        (tmp_path / "adapter" / CONFIG_NAME).write_text(json.dumps(config))
        again = PeftModel.from_pretrained(FAMILIES[family].twin(tiny_of(adapted, family), tmp_path / "b"),
                                          tmp_path / "adapter")  # fmt: skip
        assert difference(family, adapted, again.eval()) > 1e-3


def tiny_of(adapted: Any, family: str) -> Any:
    plain = tiny(family)
    plain.load_state_dict({key: value for key, value in adapted.state_dict().items() if not is_adapter_key(key)})
    return plain


@pytest.mark.parametrize("family", FAMILIES)
def test_what_peft_saves_reads_back_with_its_patterns(family: str, tmp_path: Path) -> None:
    options = OPTIONS[family](ATTENTION, RANKS[family], mlp=True)
    adapted = tiny(family, options)
    in_peft(adapted, tiny(family), FAMILIES[family].twin, tmp_path).save_pretrained(tmp_path / "theirs")
    again, ours = load_peft(tmp_path / "theirs", adapted), adapters_of(adapted)
    assert again.keys() == ours.keys() and all(torch.equal(again[key], ours[key]) for key in ours)
    part = dict(RANKS[family]["vision"], alpha=6)
    other = tiny(family, OPTIONS[family](ATTENTION, {**RANKS[family], "vision": part}, mlp=True))
    with pytest.raises(ModelError, match="the adapter has lora_alpha=5, the model 6; .* lora_parts says of encoder"):
        load_peft(tmp_path / "theirs", other)


def test_patterns_are_looked_up_as_peft_does(tmp_path: Path) -> None:
    """The first that matches the end of a name, a regular expression too; equal to PEFT's own answer."""
    from peft.utils.other import get_pattern_key

    adapted = tiny("llava", LlavaOptions(("q_proj", "v_proj"), ("vision", "decoder"), rank=2, alpha=4))
    save_peft(adapters_of(adapted), adapted, tmp_path, "base")
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    patterns = {"layers.0.self_attn.q_proj": 7, r".*language_model.*v_proj": 9, "q_proj": 11, "attn": 13}
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**config, "alpha_pattern": patterns}))
    found = read_peft(tmp_path, adapted.family).strengths
    names = {key.partition(".lora_")[0]: key for key in adapters_of(adapted) if ".lora_a." in key}
    for prefix, key in names.items():
        published = adapted.family.adapters_to_peft({key: torch.zeros(2, 2)})
        module = next(iter(published)).removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert found[prefix].alpha == patterns.get(get_pattern_key(patterns.keys(), module), 4), module
    assert {strength.alpha for strength in found.values()} == {4, 7, 9, 11}


# -- trained whole ----------------------------------------------------------------------------------------------------


def trained(family: str, lora: Any, parts: list[str]) -> tuple[Any, dict[str, Tensor], Any]:
    """A model whose ``parts`` have moved from its base, what moved by state-dict key, and the base."""
    adapted = tiny(family, lora)
    plain = tiny_of(adapted, family)
    keys, named = state_dict_names(adapted), dict(adapted.named_parameters())
    moved = [name for part in parts for name in names_of(part, adapted.parts())]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name in moved:
            named[name] += 0.1 * torch.randn(named[name].shape, generator=generator)
    return adapted, {keys[name]: named[name].detach() for name in moved}, plain


WHOLE = [
    ("llava", ("decoder",), ["projection"]),
    ("llava", ("decoder",), ["projection", "vision"]),
    ("llava", ("vision",), ["decoder"]),
    ("internvl", ("vision", "decoder"), ["projection"]),
    ("internvl", ("decoder",), ["vision", "projection"]),
    ("mllama", ("decoder",), ["projection"]),
    ("mllama", ("vision", "decoder"), ["projection"]),
]


@pytest.mark.parametrize(("family", "adapters", "parts"), WHOLE)
def test_what_was_trained_whole_is_the_same_model_in_peft_and_reads_back(
    family: str, adapters: tuple[str, ...], parts: list[str], tmp_path: Path
) -> None:
    adapted, whole, plain = trained(family, OPTIONS[family](("q_proj", "v_proj"), adapters, rank=2), parts)
    theirs = FAMILIES[family].twin(plain, tmp_path / "base")
    save_peft(adapters_of(adapted), adapted, tmp_path / "adapter", "base", whole=whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    found = difference(family, adapted, loaded)
    print(f"{family} {parts}: {found:.1e}")
    assert found < TOLERANCE
    with loaded.disable_adapter():
        assert difference(family, adapted, loaded) > 1e-3
    again = load_peft(tmp_path / "adapter", adapted)
    wanted = {**adapters_of(adapted), **whole}
    assert again.keys() == wanted.keys() and all(torch.equal(again[key], wanted[key]) for key in wanted)
    loaded.save_pretrained(tmp_path / "theirs")
    again = load_peft(tmp_path / "theirs", adapted)
    assert again.keys() == wanted.keys() and all(torch.equal(again[key], wanted[key]) for key in wanted)


def test_what_peft_could_not_hold_is_refused_by_name() -> None:
    llava = LlavaOptions(("q_proj",), ("decoder",), rank=2)
    adapted, whole, _ = trained("llava", llava, ["decoder"])
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj carries an adapter and was trained whole too"):
        save_peft(adapters_of(adapted), adapted, "nowhere", "base", whole=whole)
    adapted, whole, _ = trained("llava", llava, ["projection"])
    whole.pop("encoder.projection.0.bias")
    with pytest.raises(ModelError, match=r"linear_1 was trained whole in part \(model\..*linear_1\.bias was not\)"):
        save_peft(adapters_of(adapted), adapted, "nowhere", "base", whole=whole)
    with pytest.raises(ModelError, match="proxy is no tensor of"):
        save_peft(adapters_of(adapted), adapted, "nowhere", "base", whole={"proxy": torch.zeros(1)})
    deep, whole, _ = trained("mllama", MllamaOptions(("q_proj",), ("fusion",), rank=2), ["projection"])
    with pytest.raises(ModelError, match="carries an adapter and was trained whole too"):
        save_peft(adapters_of(deep), deep, "nowhere", "base", whole=whole)
    deep, whole, _ = trained("mllama", MllamaOptions(("q_proj",), ("decoder",), rank=2), ["fusion"])
    with pytest.raises(ModelError, match="only a part of a published tensor"):
        save_peft(adapters_of(deep), deep, "nowhere", "base", whole=whole)
    assert not Path("nowhere").exists()
