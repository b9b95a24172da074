"""ME-VLIP from real blood smears to a report, by the recipes: adapters, router, routed answers, scores, comparison.

The models are too small and trained too briefly to answer well; the chain is what is tested.
"""

import json
from pathlib import Path

import pytest

from medtune.cli.main import main as medtune
from medtune.recipes import evaluate, predict, prepare, sft, tfidf_router

TASKS = ("classification", "counting", "detection")


def trained(prepared: Path, images: Path, out: Path, *more: str) -> Path:
    data = [f"dataset.source={prepared}/train.jsonl", f"dataset.image_root={images}"]
    told = [*data, "max_steps=1", "batch_size=4", f"output_dir={out}", *more]
    assert sft.main(["--config", "sft/mini_me_vlip", *told]) == 0
    return out / "weights"


@pytest.fixture(scope="module")
def world(medtune_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """BCCD's questions prepared, the adapter of all tasks and three of one task each, and a router."""
    data, folder = medtune_data / "bccd", tmp_path_factory.mktemp("me_vlip")
    told = [f"data.root={data}", f"image_root={data}", "data.image_folders={imagesTr: JPEGImages}"]
    assert not prepare.main(["--config", "prepare/flare", *told, f"output_dir={folder}/prepared"])
    made = {"prepared": folder / "prepared", "images": data}
    made["general"] = trained(made["prepared"], data, folder / "general")
    for task in TASKS:
        made[task] = trained(made["prepared"], data, folder / task, f"dataset.where.task={task}")
    source = f"dataset.sources.0.source={made['prepared']}/train.jsonl"
    flare = "dataset.files=${medtune_data:flare_task5/training/*/*/*_questions_train.json}"
    assert not tfidf_router.main(["--config", "tfidf_router/scenes", source, flare, f"output_dir={folder}/router"])
    return {**made, "router": folder / "router"}


def asked(world: dict[str, Path], out: Path, *more: str) -> Path:
    adapters = [f"backend.adapters.{name}={world[name]}" for name in ("general", *TASKS)]
    data = [f"questions.source={world['prepared']}/train.jsonl", f"questions.image_root={world['images']}"]
    told = [*adapters, *data, "limit=12", "max_new_tokens=4", f"output_dir={out}", *more]
    assert predict.main(["--config", "predict/me_vlip_mini", *told]) == 0
    scored = [f"predictions={out}/predictions.jsonl", f"prepared_dir={world['prepared']}", "split=train"]
    assert not evaluate.main(["--config", "evaluate/default", *scored, f"output={out}", "bootstrap_draws=20"])
    return out


def test_the_adapters_say_what_they_were_trained_on(world: dict[str, Path]) -> None:
    records = {name: json.loads((world[name] / "medtune_adapter.json").read_text()) for name in ("general", *TASKS)}
    assert records["general"]["tasks"] == dict.fromkeys(TASKS, 40) and records["general"]["samples"] == 120
    assert all(records[task]["tasks"] == {task: 40} for task in TASKS)
    assert len({record["data"] for record in records.values()}) == 4
    assert len({record["base"]["weights"] for record in records.values()}) == 1


def test_routed_answers_are_scored_and_compared(world: dict[str, Path], tmp_path: Path) -> None:
    routed = asked(
        world,
        tmp_path / "routed",
        "backend.mode=batch",
        "backend.adapter=null",
        f"backend.router={world['router']}",
        "backend.fallback=general",
        "backend.threshold=0.3",
    )
    rows = [json.loads(line) for line in (routed / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and {row["meta"]["flare_task"] for row in rows} == set(TASKS)
    notes = [row["meta"]["notes"] for row in rows]
    assert [note["adapter"] for note in notes] == [note["route"] for note in notes]
    assert [note["route"] for note in notes] == [row["meta"]["flare_task"] for row in rows]
    assert all(0.3 <= note["score"] <= 1 for note in notes)
    one = asked(world, tmp_path / "one")
    results = json.loads((routed / "results.json").read_text())["protocols"]["flare"]
    assert {name.rpartition("/")[2] for name in results["attributes"]} or results["attributes"]
    assert results["overall"]["counting_unread"]["n"] == 4
    report = tmp_path / "report.html"
    assert medtune(["report", str(one), str(routed), "--out", str(report)]) == 0
    assert "FLARE" in report.read_text()
