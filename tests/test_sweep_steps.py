"""Variants with steps of their own, and what placeholders stand for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from medtune.config import load_config
from medtune.errors import ConfigError, MedtuneError
from medtune.sweep import run as sweep
from medtune.sweep.config import SweepConfig, chains, rows_of
from medtune.sweep.report import seed_differences, write_pages
from medtune.sweep.run import filled, run_chain
from tests.evaluation.ranked import write_run
from tests.small_cells import small_cells

CHAIN = "[{recipe: instfree},{recipe: predict, overrides: ['checkpoint={weights}']},{recipe: evaluate}]"
TWICE = (
    "[{recipe: instfree, name: first},"
    "{recipe: instfree, name: second, overrides: ['checkpoint={step:first}/weights', objective.vectors=2]},"
    "{recipe: predict, overrides: ['checkpoint={weights}']},{recipe: evaluate}]"
)


def load(folder: Path, steps: str, *overrides: str) -> SweepConfig:
    variants = f"variants=[{{name: plain, title: Plain, train: []}},{{name: own, title: Own, steps: {steps}}}]"
    return load_config("sweep/mini_wbcatt", SweepConfig, [variants, f"output_dir={folder}", "samples=0", *overrides])


def commands(monkeypatch: pytest.MonkeyPatch, config: SweepConfig) -> list[list[str]]:
    """What every chain would run, recipe and arguments; a training step leaves weights, and predict answers."""
    asked: list[list[str]] = []

    def recipe(name: str) -> SimpleNamespace:
        def main(arguments: list[str]) -> int:
            asked.append([name.rpartition(".")[2], *arguments[1:]])
            out = Path(next(one for one in arguments if one.startswith(("output_dir=", "output="))).partition("=")[2])
            out.mkdir(parents=True, exist_ok=True)
            if asked[-1][0] == "predict":
                (out / "predictions.jsonl").touch()
            elif asked[-1][0] != "evaluate":
                (out / "weights").mkdir(exist_ok=True)
            return 0

        return SimpleNamespace(main=main)

    monkeypatch.setattr(sweep, "import_module", recipe)
    for chain in chains(config):
        run_chain(config, chain)
    return asked


def test_steps_without_a_config_are_those_of_the_default_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = ["train_overrides=[max_steps=3]", "predict_overrides=[limit=2]", "evaluate_overrides=[limit=2]", "seeds=[7]"]
    config = load(tmp_path, CHAIN, *told)
    found = commands(monkeypatch, config)
    plain, own = found[:3], found[3:]
    assert [one[0] for one in plain] == [one[0] for one in own] == ["instfree", "predict", "evaluate"]
    changes = {
        "/plain/weights": "/own/instfree/weights",
        "output_dir=" + str(tmp_path / "plain"): "output_dir=" + str(tmp_path / "own" / "instfree"),
        "predictions=" + str(tmp_path / "plain"): "predictions=" + str(tmp_path / "own" / "predict"),
        "output=" + str(tmp_path / "plain"): "output=" + str(tmp_path / "own"),
        "name='Plain'": "name='Own'",
    }
    expected = [{_changed(one, changes) for one in row} for row in plain]
    expected[1] -= {f"output_dir={tmp_path / 'own' / 'instfree'}"}
    expected[1] |= {f"output_dir={tmp_path / 'own' / 'predict'}"}
    assert [set(row) for row in own] == expected
    assert "seed=7" in own[0] and "max_steps=3" in own[0] and own[0].index("seed=7") < own[0].index("max_steps=3")


def _changed(text: str, changes: dict[str, str]) -> str:
    for before, after in changes.items():
        text = text.replace(before, after)
    return text


def test_steps_of_other_recipes_with_configs_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        "[{recipe: tsm, config: tsm/mini, overrides: ['seed={seed}','dataset.source={prepared}/train.jsonl']},"
        "{recipe: vitask, config: vitask/mini,"
        " overrides: ['seed={seed}','objective.tsm={step:tsm}/weights','x={images}']},"
        "{recipe: evaluate, config: evaluate/ranking, name: early, overrides: ['predictions={step:vitask}/p.jsonl']},"
        "{recipe: predict, config: predict/vitask_mini, name: far,"
        " overrides: ['checkpoint={weights}','a={run}/{sweep}']},"
        "{recipe: evaluate, config: evaluate/classification, overrides: ['predictions={step:far}/predictions.jsonl']}]"
    )
    config = load(tmp_path, steps, "seeds=[4,5]", "prepared_dir=there", "image_root='{prepared}/i.tar'")
    found = commands(monkeypatch, config)
    own = [row for row in found if any("own_seed5" in one for one in row)]
    run = tmp_path / "own_seed5"
    assert own == [
        ["tsm", "tsm/mini", f"output_dir={run}/tsm", "seed=5", "dataset.source=there/train.jsonl"],
        ["vitask", "vitask/mini", f"output_dir={run}/vitask", "seed=5", f"objective.tsm={run}/tsm/weights",
         "x=there/i.tar"],
        ["evaluate", "evaluate/ranking", f"output={run}/early", "name='Own, seed 5'",
         f"predictions={run}/vitask/p.jsonl"],
        ["predict", "predict/vitask_mini", f"output_dir={run}/far", f"checkpoint={run}/vitask/weights",
         f"a={run}/{tmp_path}"],
        ["evaluate", "evaluate/classification", f"output={run}", "name='Own, seed 5'",
         f"predictions={run}/far/predictions.jsonl"],
    ]  # fmt: skip
    noted = (tmp_path / "commands.txt").read_text().splitlines()
    assert len(noted) == len(found) == 2 * 3 + 2 * 5 and noted[-1].startswith("tune run medtune/recipes/evaluate.py")
    (row,) = rows_of(config, chains(config)[-1])
    assert (row.folder, row.title) == (run, "Own, seed 5")


def test_weights_that_no_step_wrote(tmp_path: Path) -> None:
    config = load(tmp_path, "[{recipe: evaluate, name: a},{recipe: evaluate, overrides: ['x={weights}']}]")
    chain = chains(config)[-1]
    (chain.folder / "a").mkdir(parents=True)
    with pytest.raises(MedtuneError, match="step 'evaluate' asks for {weights}, but no earlier step wrote any"):
        sweep._weights([chain.folder / "a"], chain.variant.steps[1])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("[{recipe: predict}]", "variant own: its steps need an 'evaluate'"),
        ("[{recipe: evaluate},{recipe: evaluate}]", "two steps are called 'evaluate'"),
        ("[{recipe: sft},{recipe: evaluate}]", "step 'sft' needs a config"),
        ("[{recipe: evaluate, name: a/b}]", "'a/b' cannot be the name"),
        ("[{recipe: evaluate, name: weights}]", "'weights' cannot be the name"),
        ("[{recipe: evaluate, overrides: [output=x]}]", "chooses the folder of step 'evaluate'; leave 'output=x' out"),
        (
            "[{recipe: predict, overrides: ['a={weights}']},{recipe: evaluate}]",
            "{weights} in 'a={weights}' is not a known placeholder",
        ),
        ("[{recipe: evaluate, overrides: ['a={step:evaluate}']}]", "step evaluate: {step:evaluate} in"),
        ("[{recipe: predict},{recipe: evaluate, overrides: ['a={step:predit}']}]", "known are .*{step:predict}"),
        (
            "[{recipe: evaluate, overrides: ['a={rnu}']}]",
            "{rnu} in 'a={rnu}' is not a known placeholder; known are {sweep}",
        ),
    ],
)
def test_steps_that_cannot_run_are_refused_at_load(tmp_path: Path, steps: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, steps)


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("predict_overrides=['a={weights}']", "predict_overrides: {weights}"),
        ("train_overrides=['a={step:x}']", "train_overrides: {step:x}"),
        ("asks=[{name: a, evaluate_overrides: ['a={what}']}]", "ask a: {what}"),
        ("before=[{recipe: tsm, config: tsm/mini, overrides: ['a={run}']}]", "before, tsm: {run}"),
        ("before=[{recipe: tsm}]", "before: the step 'tsm' needs a config"),
        ("variants=[{name: a, title: A, train: ['a={runs}']}]", "variant a: {runs}"),
        ("variants=[{name: a, title: A, train: [], steps: [{recipe: evaluate}]}]", "steps replace train"),
    ],
)
def test_a_placeholder_that_stands_for_nothing_is_refused_at_load(override: str, where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        load_config("sweep/mini_wbcatt", SweepConfig, [override])


def test_a_mapping_in_an_override_is_no_placeholder(tmp_path: Path) -> None:
    config = load(tmp_path, CHAIN, "train_overrides=['model={a: 1}','b={c:2}','d={}']")
    assert filled(config.train_overrides, config) == ["model={a: 1}", "b={c:2}", "d={}"]


def test_a_variant_without_training_has_one_seed_and_is_paired_with_every_one(tmp_path: Path) -> None:
    config = load(tmp_path, "[{recipe: predict},{recipe: evaluate}]", "seeds=[0,1]", "asks=[]")
    every = chains(config)
    assert [chain.folder.name for chain in every] == ["plain_seed0", "plain_seed1", "own"]
    rows = [row for chain in every for row in rows_of(config, chain)]
    for row in rows:
        write_run(row.folder, row.title, 1.0 + row.chain.seed)
    found = seed_differences(rows, resamples=10)
    assert list(found) == ["Own"] and set(found["Own"]["classification"]["by_seed"]) == {"0", "1"}


def test_two_trainings_in_a_row_killed_after_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real recipes: steps equal the default chain, and a sweep that is stopped anywhere goes on."""
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "sweep"
    folder.mkdir()
    few = [f"{node}=['protocols=[open]','swapped=[]',limit=4]" for node in ("predict_overrides", "evaluate_overrides")]
    few[0] = few[0].replace("limit=4", "limit=4,max_new_tokens=3")
    short = "train_overrides=[max_steps=2,objective.warmup_steps=1,batch_size=2]"
    variants = f"variants=[{{name: plain, title: Plain, train: []}},{{name: same, title: Same, steps: {CHAIN}}},"
    variants += f"{{name: twice, title: Twice, steps: {TWICE}}}]"
    overrides = [*small_cells(folder, 8), variants, short, *few, "seeds=[3]", "samples=0"]
    config = load_config("sweep/mini_wbcatt", SweepConfig, overrides)
    plain, same, twice = chains(config)
    run_chain(config, plain)
    run_chain(config, same)
    for name in ("predictions.jsonl", "results.json"):
        one, other = ((out / name) for out in (plain.folder, same.folder / ("predict" if "pred" in name else ".")))
        if name == "results.json":
            numbers = [json.loads(path.read_text())["protocols"] for path in (one, other)]
            assert numbers[0] == numbers[1]
        else:
            assert one.read_bytes() == other.read_bytes()

    ran: list[str] = []
    real = sweep.run_recipe

    def stopped(root: Path, name: str, arguments: list[str]) -> None:
        real(root, name, arguments)
        folder = next(one for one in arguments if one.startswith(("output_dir=", "output="))).rpartition("/")[2]
        if folder not in ran:
            ran.append(folder)
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_recipe", stopped)
    written: dict[Path, bytes] = {}
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run_chain(config, twice)
        now = {path: path.read_bytes() for path in twice.folder.rglob("weights/*.safetensors")}
        assert written.items() <= now.items(), "a finished step gives the same again"
        written = now
    run_chain(config, twice)
    assert ran == ["first", "second", "predict", "twice"]
    assert [path.parent.parent.name for path in sorted(written)] == ["first", "second"]
    assert f"checkpoint: {twice.folder / 'first' / 'weights'}" in (twice.folder / "second" / "config.yaml").read_text()
    first, second = (written[path] for path in sorted(written))
    assert first != second and first == (same.folder / "instfree/weights/model.safetensors").read_bytes()
    page = write_pages(config, chains(config)).read_text(encoding="utf-8")
    assert all(f"</i>{title}</th>" in page for title in ("Plain", "Same", "Twice"))
