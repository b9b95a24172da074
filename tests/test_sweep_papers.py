"""Sweeps of InstFree's tables and figures on the paper's model: the paper's variants, one data set each."""

from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import ConfigError
from medtune.sweep.config import SweepConfig, chains
from medtune.sweep.run import run_chain
from medtune.training.config import TrainConfig
from tests.test_sweep import config_class, trained

FULL = {"wbcatt": ("", None), "skincon": ("_skincon", 560), "cbis_ddsm": ("_cbis_ddsm", 560)}
"""Data sets of the papers' Tables 1, 2 and 4: the infix of their configs, and the side of the padded square."""


@pytest.mark.parametrize("name", FULL)
def test_the_full_sweeps_hold_the_papers_variants_with_its_values(name: str) -> None:
    tables = trained(f"sweep/instfree_{name}_tables")
    found = {
        variant: (one.objective["mode"], one.objective["shuffle_separator"], one.sampling)
        for variant, one in tables.items()
    }
    assert found == {
        "ft": ("text", None, "uniform"),
        "instfree": ("momentum", None, "uniform"),
        "instfree_rs": ("momentum", ",", "uniform"),
        "fix": ("fixed", None, "uniform"),
        "update": ("update", None, "uniform"),
        "instfree_bal": ("momentum", None, "balanced"),
        "instfree_rs_blank": ("momentum", " ", "uniform"),
        "ft_rs": ("text", ",", "uniform"),
        "ft_rand": ("random_text", None, "uniform"),
    }
    alphas = {one.objective["alpha"] for one in trained(f"sweep/instfree_{name}_alpha").values()}
    assert alphas == {0.9, 0.99, 0.999, 0.9999}
    vectors = {one.objective["vectors"] for one in trained(f"sweep/instfree_{name}_vectors").values()}
    assert vectors == {1, 2, 4, 8, 16, 32}
    infix, square = FULL[name]
    sweep = load_config(f"sweep/instfree_{name}_tables", SweepConfig)
    assert sweep.seeds == [0, 1, 2] and sweep.weights == "best"
    for one in tables.values():
        assert one.questions is not None and one.monitor == "multiple_choice/accuracy_micro"
        assert one.dataset_val is not None
        places = {Path(node["source"]).parent for node in (one.dataset, one.dataset_val, one.questions.source)}
        assert places == {Path(sweep.prepared_dir)}, "one folder of prepared data"
        for node in (one.dataset, one.dataset_val, one.questions.source):
            assert node.get("pad_to_square") == square and node["image_root"] == sweep.image_root
    asked = load_config(sweep.predict, config_class("predict"))
    assert asked.questions.get("pad_to_square") == square
    plain = load_config(f"instfree/llama3_2_vision_11b{infix}_single_device", TrainConfig)
    chosen = load_config(sweep.train, TrainConfig)
    for key in ("model", "objective", "optimizer", "trainable", "epochs", "batch_size", "dataset", "dataset_val"):
        assert getattr(chosen, key) == getattr(plain, key), key


def test_the_sweep_of_table_3_shuffles_sections_in_one_variant() -> None:
    units = {
        name: (one.objective["shuffle_unit"], one.objective.get("shuffle_separator"))
        for name, one in trained("sweep/instfree_mimic_cxr_table3").items()
    }
    assert units == {"instfree": ("separator", None), "instfree_rs": ("section", None)}


def test_a_sweep_may_ask_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("medtune.sweep.run.run_recipe", lambda _, name, arguments: calls.append((name, arguments)))
    for weights in ("weights", "best"):
        config = load_config("sweep/mini_wbcatt", SweepConfig, [f"output_dir={tmp_path}", f"weights={weights}"])
        for chain in chains(config)[:2]:
            run_chain(config, chain)
        asked = [arguments for name, arguments in calls if name == "predict"]
        assert not any(argument.startswith("checkpoint=") for argument in asked[0]), "the untuned base has no run"
        assert f"checkpoint={tmp_path / 'ft' / weights}" in asked[1]
        calls.clear()
    with pytest.raises(ConfigError, match="weights"):
        load_config("sweep/mini_wbcatt", SweepConfig, ["weights=first"])
