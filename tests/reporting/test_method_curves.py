"""Curves of what methods measure beside their loss."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medtune.reporting.method_curves import method_curves, method_section, own_metrics, panels, running_mean
from medtune.reporting.plots import colour
from medtune.reporting.runs import Run, read_trained, step_runs

PANELS = {"rewards": ["rewards/chosen", "rewards/rejected"], "never measured": ["sft"]}


def write_run(folder: Path, named: bool = True, question_set: bool = False) -> Path:
    """Twenty steps of a method with three metrics of its own, and two validations."""
    folder.mkdir(parents=True)
    lines: list[dict] = []
    for step in range(1, 21):
        line = {"step": step, "stage": "train", "epoch": 0, "loss": 0.7, "weight": 8, "lr/adapter": 1e-3}
        line |= {"grad_norm": 1.0, "tokens_per_second": 9.0, "logps/margin": float(step)}
        lines.append({**line, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.1 * step})
        if step % 10 == 0:
            held_out = {"step": step, "validation_loss": 0.6, "validation_rewards/chosen": 5.0 + step, "stage": "train"}
            answers = {"open/accuracy_macro": 0.5, "intervals": {"open/accuracy_macro": [0.4, 0.6]}}
            lines.append({**held_out, **(answers if question_set else {})})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if named:
        (folder / "panels.json").write_text(json.dumps(PANELS))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_trained(write_run(tmp_path / "run", question_set=True))


def test_the_methods_metrics_are_found_and_no_others(run: Run) -> None:
    assert own_metrics([run]) == ["rewards/chosen", "rewards/rejected", "logps/margin"]


def test_a_run_without_metrics_of_a_method_has_no_section(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "lr/vision": 0.1}\n{"step": 1, "validation_loss": 2}'
    )
    assert method_section([read_trained(tmp_path)]) is None


def test_panels_are_the_methods_own_and_one_for_each_other_metric(run: Run, tmp_path: Path) -> None:
    assert panels([run]) == {"rewards": ["rewards/chosen", "rewards/rejected"], "logps/margin": ["logps/margin"]}
    old = read_trained(write_run(tmp_path / "old", named=False))
    assert list(panels([old])) == ["logps/margin", "rewards/chosen", "rewards/rejected"]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', "null", '"x"'])
def test_a_file_of_panels_in_another_form_is_left_out(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path / "run", named=False)
    (folder / "panels.json").write_text(text)
    assert len(panels([read_trained(folder)])) == 3


def test_the_table_has_the_last_steps_and_the_last_validation(run: Run) -> None:
    section = method_section([run])
    assert section is not None and section.table is not None and section.title == "Metrics of the method"
    cells = dict(zip(section.table.columns, section.table.rows[0].cells, strict=True))
    assert (cells["rewards/chosen"].value, cells["rewards/chosen"].note) == ("1.95", "validation 25")
    assert (cells["logps/margin"].value, cells["logps/margin"].note) == ("19.5", "")


def test_training_validation_and_styles_are_drawn_in_the_runs_colour(run: Run) -> None:
    blank = Run("none", run.folder, {})
    svg = method_curves([blank, run])
    ElementTree.fromstring(svg)
    drawn = [style for style in re.findall(r'style="([^"]*)"', svg) if colour(1) in style]
    assert any("stroke-dasharray" in style for style in drawn) and colour(0) not in svg
    texts = {text.strip() for text in re.findall(r"<!--(.*?)-->", svg)}
    assert {"rewards", "logps/margin", "chosen", "rejected", "run"} <= texts and "none" not in texts
    alone = method_curves([replace(run, metrics=[row for row in run.metrics if "loss" in row])])
    assert svg.count("<use") > alone.count("<use"), "validations are marked"


def test_steps_of_runs_stand_under_their_folder_with_the_runs_names(tmp_path: Path) -> None:
    for path in ("one/sft", "two/sft", "two/dpo"):
        write_run(tmp_path / path)
    (tmp_path / "two/weights").mkdir()
    runs = [Run("first", tmp_path / "one", {}), Run("second", tmp_path / "two", {})]
    found = step_runs(runs)
    assert list(found) == ["sft", "dpo"] or list(found) == ["dpo", "sft"]
    assert [(one.name, len(one.metrics)) for one in found["sft"]] == [("first", 22), ("second", 22)]
    assert [(one.name, len(one.metrics)) for one in found["dpo"]] == [("first", 0), ("second", 22)]
    assert found["dpo"][1].panels == PANELS


def test_the_running_mean_takes_a_tenth_around_each_value_and_less_at_the_ends() -> None:
    assert running_mean([1.0, 5.0, 3.0]) == [1.0, 5.0, 3.0]
    means = running_mean([float(value) for value in range(40)])
    assert (means[0], means[1], means[20], means[39]) == (1.0, 1.5, 20.0, 38.0) and len(means) == 40
    assert running_mean([0.0] * 10 + [40.0] + [0.0] * 9)[9:12] == [40 / 3] * 3
