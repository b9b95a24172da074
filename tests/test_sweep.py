"""Sweeps: every packaged one can be run, holds what the paper compares, and reports seeds and the swept value."""

import json
import re
import subprocess
import sys
import time
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medtune.cli import catalog
from medtune.config import instantiate, load_config, resolve_path
from medtune.config.composition import compose
from medtune.errors import ConfigError
from medtune.recipes.evaluate import EvaluateConfig
from medtune.reporting.averages import read_models
from medtune.sweep.config import SweepConfig, chains, rows_of
from medtune.sweep.report import over_seeds, write_pages
from medtune.sweep.run import _name, data_overrides, filled, run_sweep
from medtune.training.config import TrainConfig
from tests.datasets.medmnist_files import write_medmnist
from tests.evaluation.ranked import write_run
from tests.small_cells import small_cells

SWEEPS = [entry.name for entry in catalog.configs() if entry.name.startswith("sweep/")]
ALPHAS = {"alpha_0.4": 0.99, "alpha_0.94": 0.999, "alpha_0.994": 0.9999}


def trained(name: str) -> dict[str, TrainConfig]:
    """Every variant's training config."""
    sweep = load_config(name, SweepConfig)
    shared = [*data_overrides(sweep, "dataset", "train.jsonl"), "seed=1", *filled(sweep.train_overrides, sweep)]
    return {
        variant.name: load_config(sweep.train, TrainConfig, [*shared, *variant.train])
        for variant in sweep.variants
        if variant.train is not None
    }


@pytest.mark.parametrize("name", SWEEPS)
def test_every_variant_is_a_training_config(name: str) -> None:
    assert len(SWEEPS) >= 9
    for config in trained(name).values():
        instantiate(config.objective)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_step_and_every_ask_is_a_config_of_its_recipe(name: str) -> None:
    sweep = load_config(name, SweepConfig)
    for step in sweep.before:
        load_config(step.config, config_class(step.recipe), filled(step.overrides, sweep))
    for row in (row for chain in chains(sweep) for row in rows_of(sweep, chain)):
        where = sweep, row.chain, row.ask
        data = data_overrides(sweep, "questions", "test.jsonl", row.chain.variant, row.ask)
        how = filled([*sweep.predict_overrides, *row.ask.predict_overrides], *where)
        asked = load_config(row.ask.predict or sweep.predict, config_class("predict"), [*data, *how])
        how = filled([*sweep.evaluate_overrides, *row.ask.evaluate_overrides], *where)
        some = ["predictions=p", "prepared_dir=d", "output=o", *how]
        scored = load_config(sweep.evaluate, config_class("evaluate"), some)
        for key in ("protocols", "swapped", "limit", "seed"):  # null is what the record says
            assert getattr(scored, key) in (None, getattr(asked, key)), key
        assert not re.search(r"{(run|sweep|prepared)}", str(asked))


def config_class(recipe: str) -> Any:
    """Of a recipe."""
    main = import_module(f"medtune.recipes.{recipe}").main.__wrapped__
    return next(iter(typing.get_type_hints(main).values()))


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
    with pytest.raises(ConfigError, match="axis needs an x in the variants"):
        load_config("sweep/mini_vectors", SweepConfig, wrong.split(" ", 1) if wrong.startswith("axis=N") else [wrong])


def made_up(config: SweepConfig) -> None:
    """Results of every chain: retention and one protocol's numbers, 10 percent apart between seeds."""
    for chain in chains(config):
        value = 0.5 + 0.1 * chain.seed
        one = {"overall": {name: {"value": value} for name in ("accuracy_macro", "balanced_accuracy_macro")}}
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
    folder = tmp_path / "sweep"
    folder.mkdir()
    few = "variants=[{name: base, title: base},{name: one, title: N=1, x: 1, train: [objective.vectors=1]},"
    few += "{name: two, title: N=2, x: 2, train: [objective.vectors=2]}]"
    short = "train_overrides=[max_steps=2,objective.warmup_steps=1,batch_size=4]"
    ask = [f"{node}=['protocols=[open]','swapped=[]',limit=6]" for node in ("predict_overrides", "evaluate_overrides")]
    overrides = [*small_cells(folder, 12), few, short, *ask, "seeds=[3,4]"]
    page = run_sweep(load_config("sweep/mini_vectors", SweepConfig, overrides)).read_text(encoding="utf-8")
    assert "<h2>By number of proxy vectors N</h2>" in page and "Accuracies and retention against" in page
    assert "±" in page and "2 seeds" in page and "1 seed<" in page
    table = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    assert f"{100 * table['N=2']['open/accuracy_macro']['mean']:.1f}" in page


def shrunk(folder: Path, **changes: object) -> SweepConfig:
    """The ablation of VITask on made-up images and with tiny models: two sets, two steps, one seed."""
    for name in ("breast", "retina"):
        write_medmnist(folder / "owners", name)
    values = compose(resolve_path("sweep/vitask_mini")).tree
    assert isinstance(values, dict)
    small = ["model.embed_dim=16", "model.vision_layers=1", "model.decoder_layers=1", "model.heads=2"]
    small += ["model.image_size=16", "model.patch_size=4", "transform.image_size=16", "transform.patch_size=4"]
    prepare, tsm = values["before"]
    prepare["overrides"] += [f"data.files={folder / 'owners'}"]
    tsm["overrides"] += [
        "objective.flip=[]",
        "epochs=1",
        "model.depth=1",
        "model.embed_dim=12",
        "model.num_heads=2",
        "batch_size=8",
    ]
    tsm["overrides"] += ["model.image_size=16", "model.patch_size=8", "transform.image_size=16"]
    values |= {"output_dir": str(folder / "sweep"), "prepared_dir": str(folder / "prepared"), "seeds": [0]}
    values["train_overrides"] += [*small, "checkpoint=null", "max_steps=2", "objective.align_steps=1", "batch_size=2"]
    values["predict_overrides"] = ["max_new_tokens=2"]
    values["asks"][0]["predict_overrides"] = small
    values["asks"][1]["predict_overrides"] += small
    values["evaluate_overrides"] = ["bootstrap_draws=5"]
    values["variants"] = [one for one in values["variants"] if one["name"] in ("vitask", "tsm")]
    path = folder / "sweep.yaml"
    OmegaConf.save(OmegaConf.create(values | changes), path)
    return load_config(str(path), SweepConfig)


def test_the_ablation_holds_the_rows_of_the_papers_table() -> None:
    sweep = load_config("sweep/vitask_mini", SweepConfig, ["seeds=[0]"])
    rows = [row.title for chain in chains(sweep) for row in rows_of(sweep, chain)]
    parts = ["EP", "EP + RDA", "EP + CRT", "VITask"]
    assert rows == ["Vanilla, w/o EP", *(f"{part}, {way}" for part in parts for way in ("w/o EP", "w/ EP")), "TSM"]
    found = {
        name: (one.objective["exemplar"], one.objective["alpha"], one.objective["beta"])
        for name, one in trained("sweep/vitask_mini").items()
    }
    assert found == {
        "vanilla": ("none", 0, 0),
        "ep": ("cls", 0, 0),
        "rda": ("cls", 1, 0),
        "crt": ("cls", 0, 1),
        "vitask": ("cls", 1, 1),
    }
    for name in ("sweep/vitask_mini", "sweep/vitask_mini_incomplete", "sweep/vitask_mini_exemplars"):
        steps = set()
        for config in trained(name).values():
            stages = instantiate({**config.objective, "tsm": "t"}).stages(("decoder",), 1, config.max_steps)
            steps.add(sum(stage.steps or 0 for stage in stages))
        assert steps == {864}, "every variant is tuned equally long"


def test_incomplete_instructions_are_tuned_on_and_asked_and_asked_of_the_others() -> None:
    sweep = load_config("sweep/vitask_mini_incomplete", SweepConfig, ["seeds=[0]"])
    rows = {row.title: row for chain in chains(sweep) for row in rows_of(sweep, chain)}
    places = {
        title: tuple(
            data_overrides(sweep, "d", "f", row.chain.variant, ask)[0].split("/")[1] for ask in (None, row.ask)
        )
        for title, row in rows.items()
    }
    full, bare = "medmnist", "medmnist_without_classes"
    assert places == {
        f"{model}{way}": data
        for model in ("Vanilla", "VITask")
        for way, data in (
            ("", (full, full)),
            (", asked without classes", (full, bare)),
            (", tuned without classes", (bare, bare)),
        )
    }
    for row in rows.values():
        of_ask, images, _ = data_overrides(sweep, "d", "f", row.chain.variant, row.ask)
        assert images.split("=")[1] == of_ask.split("=")[1].replace("/f", "/images.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("asks=[{name: a},{name: a}]", "asks need different names"),
        ("asks=[{name: a},{name: b}]", "would be called 'Vanilla'"),
        ("asks=[{name: a/b}]", "cannot be the name of a folder"),
        ("asks=[{name: other}]", "variant vanilla: asks \\['plain'\\] are not among"),
    ],
)
def test_asks_that_make_no_sense_are_refused(change: str, message: str) -> None:
    variants = "" if "other" in change else "variants=[{name: vanilla, title: Vanilla}]"
    with pytest.raises(ConfigError, match=message):
        load_config("sweep/vitask_mini", SweepConfig, [change, *filter(None, [variants])])


@pytest.mark.parametrize("wrong", [["seeds=[0,0]"], ["seeds=[0,1]", "variants.0.name=instfree_seed1"]])
def test_two_runs_do_not_share_a_folder(wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="two runs would write to the folder '(ft_seed0|instfree_seed1)'"):
        load_config("sweep/mini_wbcatt", SweepConfig, wrong)


@pytest.mark.parametrize("title", ["Crohn's disease", "a: b # c", "'quoted'", '"', "50%"])
def test_a_result_has_its_title_whatever_it_holds(title: str) -> None:
    assert (
        load_config(
            "evaluate/default", EvaluateConfig, ["predictions=p", "prepared_dir=q", "output=r", _name(title)]
        ).name
        == title
    )


def test_an_axis_has_one_way_of_asking() -> None:
    with pytest.raises(ConfigError, match="one way of asking"):
        load_config("sweep/mini_vectors", SweepConfig, ["asks=[{name: a},{name: b, title: b}]"])


def test_placeholders_and_pages(tmp_path: Path) -> None:
    variants = "variants=[{name: v, title: V, train: []}]"
    asks = "asks=[{name: a},{name: b, title: far, prepared_dir: there, page: far}]"
    sweep = load_config("sweep/vitask_mini", SweepConfig, [variants, asks, "prepared_dir=here", "seeds=[3]"])
    (chain,) = chains(sweep)
    near, far = rows_of(sweep, chain)
    assert (near.folder, far.folder) == (chain.folder, chain.folder / "b") and far.title == "V, far"
    texts = ["x={sweep}/{run}", "y={prepared}"]
    assert filled(texts, sweep, chain, far.ask) == [f"x={sweep.output_dir}/{chain.folder}", "y=there"]
    assert filled(texts, sweep, chain, near.ask)[1] == "y=here" and filled(texts, sweep)[0].endswith("/{run}")


def test_one_command_trains_the_task_model_and_asks_in_every_way(tmp_path: Path) -> None:
    config = shrunk(tmp_path)
    said: list[str] = []
    page = run_sweep(config, said.append).read_text(encoding="utf-8")
    assert said[:2] == ["prepare (prepare/medmnist): done", "tsm (tsm/mini): done"] and len(said) == 4
    folder = tmp_path / "sweep"
    titles = {"vitask": "VITask, w/o EP", "vitask/exemplars": "VITask, w/ EP", "tsm": "TSM"}
    found = {place: json.loads((folder / place / "results.json").read_text()) for place in titles}
    assert {place: one["name"] for place, one in found.items()} == titles
    assert all(f"</i>{title}</th>" in page for title in titles.values())
    assert [list(one["protocols"]) for one in found.values()] == [
        ["classification", "response_likelihood"],
        ["classification", "response_likelihood"],
        ["classification"],
    ]
    scores = [
        [json.loads(line)["meta"].get("scores") for line in (folder / place / "predictions.jsonl").open()]
        for place in titles
    ]
    assert len(scores[0]) == len(scores[1]) == 3 * len(scores[2]) == 36 and scores[0] != scores[1]
    assert "Response ranking for each set" in page
    table = json.loads((folder / "seeds.json").read_text())
    assert set(table) == set(titles.values())
    assert {"classification/f1_macro", "classification/retina/f1_macro", "response_likelihood/auc_macro"} <= set(
        table["VITask, w/ EP"]
    )
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("weights/*.safetensors")}
    assert len(before) == 2
    again: list[str] = []
    run_sweep(config, again.append)
    assert sorted(again) == sorted(said)
    assert len((folder / "commands.txt").read_text().splitlines()) == 2 + 1 + 3 * 2


def test_other_questions_stand_on_a_page_of_their_own(tmp_path: Path) -> None:
    variants = "variants=[{name: v, title: V, train: []},{name: w, title: W, train: [], asks: [near]}]"
    asks = "asks=[{name: near},{name: far, title: abroad, prepared_dir: there, page: external}]"
    where = [f"output_dir={tmp_path}", "seeds=[0,1]", "samples=0"]
    config = load_config("sweep/vitask_mini", SweepConfig, [variants, asks, *where])
    every = chains(config)
    for row in (row for chain in every for row in rows_of(config, chain)):
        write_run(row.folder, row.title, 1.0 + row.chain.seed)
    page = write_pages(config, every)
    other = tmp_path / "pages" / "external" / "report.html"
    assert page == tmp_path / "report.html" and "V, abroad" not in page.read_text() and "W" in page.read_text()
    assert "V, abroad" in other.read_text() and "part by part: external" in other.read_text()
    near, far = (json.loads(one.with_name("seeds.json").read_text()) for one in (page, other))
    assert list(near) == ["V", "W"] and list(far) == ["V, abroad"]
    assert {**near, **far} == {title: over_seeds(config, every)[title] for title in ("V", "W", "V, abroad")}
    apart, lone = (json.loads(one.with_name("seed_differences.json").read_text()) for one in (page, other))
    assert list(apart) == ["W"] and lone == {} and "<h2>Differences over seeds</h2>" in page.read_text()
    listed = {title: list(runs) for title, runs in read_models(tmp_path).items()}
    assert listed == {"V": [0, 1], "W": [0, 1]}
    abroad = read_models(other.parent)["V, abroad"]
    assert list(abroad) == [0, 1] and abroad[0].folder.resolve() == (tmp_path / "v_seed0" / "far").resolve()
    one = near["V"]["response_likelihood/breast/auc"]
    assert one["seeds"] == 2 and one["values"][0] < one["values"][1]
    assert near["V"]["classification/breast/f1_macro"]["mean"] == 1.0
    assert "Over seeds, by set" in page.read_text() and "retina: macro-F1" in page.read_text()


KILLED = """
import sys, time
from medtune.sweep.processes import worker_pool

def work(path):
    with open(path, "a") as file:
        while True:
            file.write(".")
            file.flush()
            time.sleep(0.05)

worker_pool(1).submit(work, sys.argv[1]).result()
"""


def test_a_killed_sweep_leaves_no_chain_behind(tmp_path: Path) -> None:
    written = tmp_path / "written"
    sweep = subprocess.Popen([sys.executable, "-c", KILLED, str(written)])
    deadline = time.monotonic() + 120
    while not written.is_file() or not written.stat().st_size:
        assert time.monotonic() < deadline and sweep.poll() is None
        time.sleep(0.1)
    sweep.kill()
    sweep.wait()
    size = -1
    while size != written.stat().st_size:
        assert time.monotonic() < deadline, "the chain goes on writing"
        size = written.stat().st_size
        time.sleep(1.0)
