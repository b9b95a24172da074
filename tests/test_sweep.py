"""Sweeps: every packaged one can be run, holds what the paper compares, and reports seeds and the swept value."""

import json
from pathlib import Path

import pytest

from medtune import catalog, demo
from medtune.config import instantiate, load_config
from medtune.errors import ConfigError
from medtune.sweep import STATISTICS, SweepConfig, chains, data_overrides, over_seeds, run_sweep
from medtune.training.config import TrainConfig

SWEEPS = [entry.name for entry in catalog.configs() if entry.name.startswith("sweep/")]
ALPHAS = {"alpha_0.4": 0.99, "alpha_0.94": 0.999, "alpha_0.994": 0.9999}


def trained(name: str) -> dict[str, TrainConfig]:
    """Every variant's training config."""
    sweep = load_config(name, SweepConfig)
    shared = [*data_overrides(sweep, "dataset", "train.jsonl"), "seed=1", *sweep.train_overrides]
    return {
        variant.name: load_config(sweep.train, TrainConfig, [*shared, *variant.train])
        for variant in sweep.variants
        if variant.train is not None
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_every_variant_is_a_training_config(name: str) -> None:
    assert len(SWEEPS) >= 5
    for config in trained(name).values():
        instantiate(config.objective)


def test_the_sweep_over_alpha_keeps_the_papers_share_of_steps() -> None:
    configs = trained("sweep/mini_alpha")
    for name, paper in ALPHAS.items():
        assert (1 - configs[name].objective["alpha"]) * configs[name].max_steps == pytest.approx((1 - paper) * 15_000)
    ends = [configs[name].objective["alpha"] for name in ("alpha_0", "alpha_1")]
    assert ends == [0, 1] and {config.objective["mode"] for config in configs.values()} == {"momentum"}


def test_the_sweeps_hold_what_the_papers_tables_and_figures_do() -> None:
    vectors = load_config("sweep/mini_vectors", SweepConfig)
    assert [variant.x for variant in vectors.variants] == [None, 1, 2, 4, 8, 16, 32]
    assert [config.objective["vectors"] for config in trained("sweep/mini_vectors").values()] == [1, 2, 4, 8, 16, 32]
    proxies = {name: config.objective["mode"] for name, config in trained("sweep/mini_table2").items()}
    assert proxies == {"fix": "fixed", "update": "update", "instfree": "momentum"}
    found = {
        name: (config.objective["mode"], config.objective.get("shuffle_separator"), config.sampling)
        for name, config in trained("sweep/mini_table4").items()
    }
    assert found == {
        "instfree": ("momentum", None, "uniform"),
        "instfree_rs": ("momentum", ",", "uniform"),
        "instfree_rs_blank": ("momentum", " ", "uniform"),
        "instfree_bal": ("momentum", None, "balanced"),
        "ft": ("text", None, "uniform"),
        "ft_rs": ("text", ",", "uniform"),
        "ft_rand": ("random_text", None, "uniform"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        "axis=''",
        "axis=N variants=[{name: a, title: a}]",
        "variants=[{name: a, title: a, x: 1},{name: b, title: b, x: 1}]",
    ],
)
def test_an_axis_needs_values_and_values_an_axis(wrong: str) -> None:
    with pytest.raises(ConfigError, match="axis names what the variants carry as x"):
        load_config("sweep/mini_vectors", SweepConfig, wrong.split(" ", 1) if wrong.startswith("axis=N") else [wrong])


def made_up(config: SweepConfig) -> None:
    """Results of every chain: retention and one protocol's numbers, 10 percent apart between seeds."""
    for chain in chains(config):
        value = 0.5 + 0.1 * chain.seed
        one = {"overall": {name: {"value": value} for name in STATISTICS}}
        chain.folder.mkdir(parents=True)
        results = {"protocols": {"open": one}, "retention": {"composite": {"value": None}} if chain.seed else {}}
        (chain.folder / "results.json").write_text(json.dumps(results))


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    config = load_config("sweep/mini_vectors", SweepConfig, [f"output_dir={tmp_path}"])
    made_up(config)
    table = over_seeds(config, chains(config))
    one = table["N = 8"]["open/accuracy_macro"]
    assert (
        one["values"] == [0.5, 0.6, 0.7]
        and one["mean"] == pytest.approx(0.6)
        and one["deviation"] == pytest.approx(0.1)
    )
    assert table["untuned base"]["open/accuracy_macro"]["seeds"] == 1 and "retention" not in table["N = 8"]


def test_the_report_shows_the_swept_value_and_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    for name, value in (("TRAIN", 12), ("TEST_CELLS", 2), ("PER_ATTRIBUTE", 1)):
        monkeypatch.setattr(demo, name, value)
    folder = tmp_path / "sweep"
    folder.mkdir()
    few = "variants=[{name: base, title: base},{name: one, title: N=1, x: 1, train: [objective.vectors=1]},"
    few += "{name: two, title: N=2, x: 2, train: [objective.vectors=2]}]"
    short = "train_overrides=[max_steps=2,objective.warmup_steps=1,batch_size=4]"
    ask = [f"{node}=['protocols=[open]','swapped=[]',limit=6]" for node in ("predict_overrides", "evaluate_overrides")]
    overrides = [*demo.prepare(folder), few, short, *ask, "seeds=[3,4]"]
    page = run_sweep(load_config("sweep/mini_vectors", SweepConfig, overrides)).read_text(encoding="utf-8")
    assert "<h2>By number of proxy vectors N</h2>" in page and "Accuracies and retention against" in page
    assert "±" in page and "2 seeds" in page and "1 seed<" in page
    table = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    assert f"{100 * table['N=2']['open/accuracy_macro']['mean']:.1f}" in page
