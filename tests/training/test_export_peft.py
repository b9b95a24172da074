"""export: peft, at the end of a run: the adapter as medtune export writes it, with a record of its data beside it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medtune.cli.main import main
from medtune.datasets import jsonl_dataset
from medtune.errors import MedtuneError
from medtune.models.lora.peft import WEIGHTS_NAME
from medtune.models.mini import mini_vlm
from medtune.models.weights import save_hf
from medtune.training.adapter_record import RECORD_NAME, _newest, task_counts
from medtune.training.building import build_model
from medtune.training.runtime import Runtime
from tests.runs import TINY, launch, tiny

SIZES = {key: value for key, value in TINY["model"].items() if key != "_component_"}
LORA = {
    "_component_": "medtune.models.mini.lora_mini_vlm",
    **SIZES,
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_rank": 2,
    "lora_parts": ["decoder"],
}


def trained(folder: Path, **changes: object) -> Path:
    torch.manual_seed(3)
    model = mini_vlm(**SIZES)
    base = save_hf(model.state_dict(), model.family, folder / "base")
    values = {"checkpoint": str(base), "model": LORA, "trainable": ["adapter"], "export": "peft", "max_steps": 3}
    assert launch(tiny(folder / "run", **{"objective": {"warmup_steps": 0}, **values, **changes})) == [0]
    return folder / "run"


@pytest.mark.parametrize("parts", [["adapter"], ["adapter", "projection"]])
def test_it_is_the_adapter_that_medtune_export_writes(parts: list[str], tmp_path: Path) -> None:
    run = trained(tmp_path, trainable=parts)
    assert main(["export", str(run), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    ours, theirs = load_file(run / "weights" / WEIGHTS_NAME), load_file(tmp_path / "out" / WEIGHTS_NAME)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in ours.items())
    assert any(".lora_" not in name for name in ours) == ("projection" in parts)
    configs = [
        json.loads((folder / "adapter_config.json").read_text()) for folder in (run / "weights", tmp_path / "out")
    ]
    assert configs[0] == configs[1]
    records = [json.loads((folder / RECORD_NAME).read_text()) for folder in (run / "weights", tmp_path / "out")]
    assert records[0] == records[1] and records[0]["steps"] == 3
    again = ["export", str(run), "--to", "peft", "--out", str(tmp_path / "out"), "--force"]
    assert main(again) == 0, "the record is part of an earlier export"


def test_a_later_export_records_its_own_step_and_no_data_that_changed(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"id": n, "messages": message, "meta": {"task": "counting"}} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"_component_": "medtune.datasets.jsonl_dataset", "source": str(tmp_path / "rows.jsonl")}
    run = trained(
        tmp_path,
        objective={"_component_": "medtune.objectives.SFT"},
        dataset=data,
        learning_rates={},
        log_every_steps=1,
        save_every_steps=1,
        keep_checkpoints=3,
    )
    out = tmp_path / "out"
    assert main(["export", str(run / "checkpoints/step_00000002"), "--to", "peft", "--out", str(out)]) == 0
    record = json.loads((out / RECORD_NAME).read_text())
    assert record["steps"] == 2 == record["metrics"]["training"]["step"]
    assert record["tasks"] == {"counting": 6} and record["samples"] == 6
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({**rows[0], "id": "new"}) + "\n")
    for change in ("a row more", "no file"):
        assert main(["export", str(run), "--to", "peft", "--out", str(out), "--force"]) == 0
        later = json.loads((out / RECORD_NAME).read_text())
        assert (later["tasks"], later["samples"], later["data"]) == (None, None, record["data"]), change
        (tmp_path / "rows.jsonl").unlink(missing_ok=True)


def test_the_record_says_of_which_data_and_base_it_is_and_how_far_it_came(tmp_path: Path) -> None:
    validation = {
        "_component_": "medtune.datasets.cells.rendered_cells_dataset",
        "size": 4,
        "seed": 6,
        "kind": "reports",
    }
    run = trained(tmp_path, dataset_val={**validation, "image_size": 16}, log_every_steps=1)
    record = json.loads((run / "weights" / RECORD_NAME).read_text())
    state = json.loads(next((run / "checkpoints").glob("step_*3/state.json")).read_text())
    assert record["data"] == state["identity"]["data"] and record["base"]["weights"] == state["identity"]["weights"]
    assert record["samples"] == 22 and record["steps"] == 3 and record["seed"] == 11 and record["tasks"] == {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert record["metrics"]["training"] == {"step": 3, "loss": losses[3]}
    assert record["metrics"]["validation"]["validation_loss"] == rows[-1]["validation_loss"]


def test_numbers_of_questions_alone_are_recorded_as_the_newest_validation(tmp_path: Path) -> None:
    rows = [
        {"step": 2, "stage": "train", "loss": 1.5, "weight": 9},
        {"step": 2, "open/accuracy": 0.25, "stage": "train"},
        {"step": 4, "stage": "train", "loss": 1.25, "weight": 9},
        {"step": 4, "open/accuracy": 0.5, "stage": "train"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "lo')
    newest = {"training": {"step": 4, "loss": 1.25}, "validation": {"step": 4, "open/accuracy": 0.5}}
    assert _newest(tmp_path / "metrics.jsonl") == newest
    earlier = {"training": {"step": 2, "loss": 1.5}, "validation": {"step": 2, "open/accuracy": 0.25}}
    assert _newest(tmp_path / "metrics.jsonl", until=3) == earlier


def test_the_tasks_are_those_of_the_rows(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tasks = ["counting", "detection", "counting", None]
    rows = [{"id": n, "messages": message, "meta": {"task": task} if task else {}} for n, task in enumerate(tasks)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "x"}]))
    assert task_counts(jsonl_dataset(str(tmp_path / "rows.jsonl"))) == {"counting": 2, "detection": 1}


def test_without_adapters_or_without_a_base_there_is_none_to_write(tmp_path: Path) -> None:
    with pytest.raises(MedtuneError, match="checkpoint"):
        tiny(tmp_path / "run", export="peft")
    torch.manual_seed(3)
    model = mini_vlm(**SIZES)
    base = save_hf(model.state_dict(), model.family, tmp_path / "base")
    config = tiny(tmp_path / "run", export="peft", checkpoint=str(base), trainable=["vision"])
    with pytest.raises(MedtuneError, match="this model has none"):
        build_model(config, Runtime(torch.device("cpu")))
