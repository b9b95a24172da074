"""The demos end to end, with two steps of training, on the data that come with the package."""

import json
import tarfile
from pathlib import Path

import pytest

from medtune.cli import demo
from medtune.config import PACKAGE, resolve_path
from medtune.config.composition import compose
from medtune.data.tables import read_table
from medtune.errors import MedtuneError
from medtune.sweep.run import run_sweep

WBCATT = PACKAGE / "assets" / "demo_wbcatt"
SHORT = [
    "train_overrides=[max_steps=2,objective.warmup_steps=1,batch_size=4]",
    "before.0.overrides=['data.annotations=${asset:demo_wbcatt}','image_root=${asset:demo_wbcatt}/images.tar',"
    "data.limit_train=12,data.limit_questions_per_attribute=1,'output_dir={prepared}']",
]
SHORT_VITASK = [
    "train_overrides=['objective.tsm={sweep}/tsm/weights',max_steps=2,objective.align_steps=2,batch_size=4]",
    "variants.0.train=[objective.exemplar=none,objective.alpha=0,objective.beta=0]",
    "before.0.overrides=['data.files=${asset:demo_breast}',data.limit_train=16,data.limit_questions=6,"
    "'output_dir={prepared}']",
    "predict_overrides=[limit=4]",
    "evaluate_overrides=[limit=4]",
]
SHORT_DPO = [
    "train_overrides=['dataset.source={prepared}/val.jsonl',max_steps=2,batch_size=4]",
    "before.0.overrides=['data.annotations=${asset:demo_wbcatt}','image_root=${asset:demo_wbcatt}/images.tar',"
    "data.limit_train=12,'output_dir={prepared}']",
    "predict_overrides=['protocols=[open,vqa]','swapped=[]',limit=24,max_new_tokens=8]",
    "evaluate_overrides=['protocols=[open,vqa]','swapped=[]',limit=24]",
]
SHORT_ROUTING = [
    "train_overrides=['checkpoint={sweep}/start/weights',max_steps=2]",
    "predict_overrides=['protocols=[flare]','backend.checkpoint={sweep}/start/weights',max_new_tokens=3]",
    "before.0.overrides=['data.annotations=${asset:demo_wbcatt}','data.images=${asset:demo_wbcatt}/images.tar',"
    "data.center_crop=1.0,'data.tasks=[classification,counting,detection,regression]',data.tasks_per_scene=4,"
    "data.train=12,data.val=2,data.test=4,'output_dir={prepared}']",
    "before.1.overrides=['output_dir={sweep}/drawn',data.train=4,data.val=1]",
    "before.2.overrides=['output_dir={sweep}/start','dataset.source={sweep}/drawn/train.jsonl',"
    "'dataset.image_root={sweep}/drawn/images.tar',max_steps=1]",
]

SHORT_CURATION = [
    "before.3.overrides=['output_dir={sweep}/selector','model.features={sweep}/pairs',"
    "'dataset.source={sweep}/pairs/train.jsonl','dataset_val.source={sweep}/pairs/val.jsonl',max_steps=4]",
    "predict_overrides=['protocols=[open]','swapped=[]',limit=12,max_new_tokens=4]",
    "evaluate_overrides=['protocols=[open]','swapped=[]',limit=12]",
    *(
        f"variants.{place}.steps.0.overrides=['dataset.source={source}',max_steps=1,batch_size=2]"
        for place, source in enumerate(
            (
                "${asset:demo_curation}/conversations.jsonl",
                "{sweep}/random/selected.jsonl",
                "{sweep}/selection/selected.jsonl",
            )
        )
    ),
]


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


def test_instfree_needs_no_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "demo"
    assert demo.main(["--output-dir", str(folder), *SHORT]) == 0
    printed = capfd.readouterr().out
    assert "Real white blood cells of WBCAtt" in printed
    check(folder, printed)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "CC BY 4.0" in page and "data:image" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert "tune run medtune/recipes/instfree.py" in (folder / "commands.txt").read_text(encoding="utf-8")
    assert demo.main(["--output-dir", str(folder), *SHORT]) == 0, "a finished demo can be run again"


def test_vitask_has_a_demo_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "demo"
    assert demo.main(["--method", "vitask", "--output-dir", str(folder), *SHORT_VITASK]) == 0
    assert "BreastMNIST" in capfd.readouterr().out
    names = [run["name"] for run in json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]]
    assert names == ["Visual instruction tuning, w/o EP", "VITask, w/o EP", "VITask, w/ EP", "TSM"]


def test_dpo_has_a_demo_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "demo"
    assert demo.main(["--method", "dpo", "--output-dir", str(folder), *SHORT_DPO]) == 0
    assert "WBCAtt" in capfd.readouterr().out
    runs = {run["name"]: run for run in json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]}
    assert list(runs) == ["SFT", "DPO"]
    for run in runs.values():
        assert run["protocols"]["open"]["overall"]["accuracy_macro"]["n"] > 0
        assert run["protocols"]["vqa"]["overall"]["open_recall_micro"]["n"] > 0
    first, second = ((folder / name / "sft/weights/model.safetensors").read_bytes() for name in ("sft", "dpo"))
    assert first == second, "both variants have the same stage 1"
    assert (folder / "dpo/judge/pairs.html").is_file()


def test_routing_has_a_demo_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "demo"
    assert demo.main(["--method", "routing", "--output-dir", str(folder), *SHORT_ROUTING]) == 0
    assert "WBCAtt" in capfd.readouterr().out
    names = [run["name"] for run in json.loads((folder / "results.json").read_text(encoding="utf-8"))["runs"]]
    tasks = ["classification", "counting", "detection", "regression"]
    assert names == ["Base", "MT", *(f"TS, {task}" for task in tasks), "TS by oracle task", "Routed"]
    for name, allowed in (("oracle", set(tasks)), ("routed", {*tasks, "general"})):
        rows = [json.loads(row) for row in (folder / name / "predict/predictions.jsonl").read_text().splitlines()]
        chosen = [row["meta"]["notes"]["adapter"] for row in rows]
        assert len(rows) == 16 and set(chosen) <= allowed
        assert name == "routed" or chosen == [row["meta"]["flare_task"] for row in rows]


def test_curation_has_a_demo_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDTUNE_DATA", str(tmp_path / "nothing"))
    folder = tmp_path / "demo"
    assert demo.main(["--method", "curation", "--output-dir", str(folder), *SHORT_CURATION]) == 0
    assert "a rule of known truth" in capfd.readouterr().out
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in results["runs"]] == ["All", "Random half", "Selected half"]
    taken = {name: set((folder / name / "selected.jsonl").read_text().splitlines()) for name in ("selection", "random")}
    assert [len(rows) for rows in taken.values()] == [300, 300] and taken["selection"] != taken["random"]
    assert (folder / "groups/groups.png").is_file() and (folder / "selector/selection.html").is_file()


@pytest.mark.parametrize("method", demo.methods())
def test_a_demo_starts_with_data_of_the_package(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDTUNE_DATA", raising=False)
    config = demo.demo_config(method)
    assert config.before[0].recipe == "prepare"
    assert any(str(PACKAGE / "assets") in override for override in config.before[0].overrides)
    assert "CC BY" in config.note, "the licence of the data is named"


@pytest.mark.parametrize("around", [[], ["seeds=[0]"]], ids=["alone", "between overrides"])
def test_a_method_without_demo_is_named(around: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([*around, "--method", "instfre", *around]) == 2
    assert "'instfre' has no demo; choose one of curation, dpo, instfree, routing, vitask" in capsys.readouterr().err


def test_the_packaged_cells_are_small_complete_and_apart() -> None:
    assert sum(path.stat().st_size for path in WBCATT.iterdir()) < 4_000_000
    paths = {}
    for split, count in (("train", 1200), ("val", 40), ("test", 60)):
        rows = [row for _, row in read_table(WBCATT / f"pbc_attr_v1_{split}.csv", ["path", "label"])]
        paths[split] = {row["path"] for row in rows}
        assert len(rows) == len(paths[split]) == count
    assert {row["label"] for row in rows} == {"Basophil", "Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil"}
    with tarfile.open(WBCATT / "images.tar") as archive:
        assert set(archive.getnames()) == paths["train"] | paths["val"] | paths["test"]
    assert not (paths["train"] & paths["test"]), "a cell is in training and in the test"
    assert (WBCATT / "LICENSE.annotations").is_file() and "CC BY 4.0" in (WBCATT / "README.md").read_text()


def test_seeds_are_averaged_and_a_failing_variant_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    two = "variants=[{name: base, title: base},{name: tuned, title: tuned, train: []}]"
    overrides = [*SHORT, f"output_dir={folder}", two, "seeds=[3,4]"]
    run_sweep(demo.demo_config("instfree", overrides))
    seeds = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    spread = seeds["tuned"]["open/accuracy_macro"]
    assert spread["seeds"] == 2 and spread["mean"] == pytest.approx(sum(spread["values"]) / 2)
    assert seeds["base"]["open/accuracy_macro"]["deviation"] is None
    assert {path.name for path in folder.glob("tuned_seed*")} == {"tuned_seed3", "tuned_seed4"}

    wrong = demo.demo_config("instfree", [*overrides, "train_overrides=[max_stepz=2]", "seeds=[5]"])
    with pytest.raises(MedtuneError, match=r"tuned: the instfree step ended with status 2; see .*logs"):
        run_sweep(wrong)
    assert "did you mean 'max_steps'" in (folder / "logs" / "tuned.log").read_text(encoding="utf-8")


def test_the_mini_configs_cut_images_alike() -> None:
    """What is asked must be cut as what was trained on, whether the sweep or a user by hand runs the two."""
    train, predict, sweep = (
        compose(resolve_path(name)).tree for name in ("instfree/mini_wbcatt", "predict/mini", "sweep/mini_wbcatt")
    )
    assert train["dataset"]["center_crop"] == predict["questions"]["center_crop"] == sweep["center_crop"] < 1.0
