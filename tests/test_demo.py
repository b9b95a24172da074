"""The demo end to end, with two steps of tuning: without real data it renders its own and says so."""

import json
from pathlib import Path

import pytest

from medtune.cli import demo
from medtune.config import load_config, resolve_path
from medtune.config.composition import compose
from medtune.errors import MedtuneError
from medtune.sweep.run import SweepConfig, run_sweep

SHORT = "train_overrides=[max_steps=2,objective.warmup_steps=1,batch_size=4]"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of seconds."""
    prepare = demo.prepare
    monkeypatch.setattr(demo, "prepare", lambda folder: [*prepare(folder), SHORT])
    for name, value in (("TRAIN", 12), ("TEST_CELLS", 2), ("PER_ATTRIBUTE", 1)):
        monkeypatch.setattr(demo, name, value)


def check(folder: Path, printed: str) -> dict:
    """The report, the table and the combined results are there; returns the last."""
    assert f"report: {(folder / 'report.html').resolve()}" in printed
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in results["runs"]] == ["untuned base", "FT", "InstFree", "InstFree w/ RS"]
    for run in results["runs"]:
        assert run["name"] in printed
        assert set(run["protocols"]) == {"multiple_choice", "letter_likelihood", "open", "yes_no"}
        accuracy = run["protocols"]["open"]["overall"]["accuracy_macro"]
        assert accuracy["n"] > 0 and len(accuracy["interval"]) == 2
        assert run["protocols"]["open"]["swapped"] and run["retention"]["composite"]["n"] > 0
    return results


def test_without_real_data_it_renders_its_own(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "demo"
    assert demo.main(["--output-dir", str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "Synthetic cells rendered by medtune" in printed
    check(folder, printed)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Synthetic cells" in page and "data:image" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "tune run medtune/recipes/instfree.py" in (folder / "commands.txt").read_text(encoding="utf-8")
    assert demo.main(["--output-dir", str(folder)]) == 0, "a finished demo can be run again"


def test_with_real_data_it_takes_them(
    short: None, medtune_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert demo.main(["--output-dir", str(folder)]) == 0
    printed = capfd.readouterr().out
    assert "Real white blood cells of WBCAtt" in printed
    check(folder, printed)


def test_seeds_are_averaged_and_a_failing_variant_is_named(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "sweep"
    folder.mkdir()
    two = "variants=[{name: base, title: base},{name: tuned, title: tuned, train: []}]"
    overrides = [*demo.prepare(folder), two, "seeds=[3,4]"]
    run_sweep(load_config("sweep/mini_wbcatt", SweepConfig, overrides))
    seeds = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    spread = seeds["tuned"]["open/accuracy_macro"]
    assert spread["seeds"] == 2 and spread["mean"] == pytest.approx(sum(spread["values"]) / 2)
    assert seeds["base"]["open/accuracy_macro"]["deviation"] is None
    assert {path.name for path in folder.glob("tuned_seed*")} == {"tuned_seed3", "tuned_seed4"}

    wrong = load_config("sweep/mini_wbcatt", SweepConfig, [*overrides, "train_overrides=[max_stepz=2]", "seeds=[5]"])
    with pytest.raises(MedtuneError, match=r"tuned: the instfree step ended with status 2; see .*logs"):
        run_sweep(wrong)
    assert "did you mean 'max_steps'" in (folder / "logs" / "tuned.log").read_text(encoding="utf-8")


def test_the_mini_configs_cut_images_alike() -> None:
    """What is asked must be cut as what was trained on, whether the sweep or a user by hand runs the two."""
    train, predict, sweep = (
        compose(resolve_path(name)).tree for name in ("instfree/mini_wbcatt", "predict/mini", "sweep/mini_wbcatt")
    )
    assert train["dataset"]["center_crop"] == predict["questions"]["center_crop"] == sweep["center_crop"] < 1.0
