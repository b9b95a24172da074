"""Curves of runs that were trained: alone, compared, and beside results."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medtune.cli.main import main
from medtune.reporting.curves import PANELS, config_section, training_curves, training_rows, training_section
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_trained


def write_training(folder: Path, rate: float = 0.1, memory: bool = True) -> Path:
    """Forty steps whose loss falls from 4 by ``rate`` a step to 1 at the lowest, and validations every ten."""
    folder.mkdir()
    lines = []
    for step in range(1, 41):
        line = {"step": step, "loss": max(1.0, 4 - rate * step), "grad_norm": float(step), "lr/vision": 1e-4}
        line |= {"lr/fusion": 2e-4, "tokens_per_second": 100.0 * step, "stage": "tune"}
        lines.append({**line, "peak_memory_gb": 7.5} if memory else line)
        if step % 10 == 0:
            lines.append({"step": step, "validation_loss": 2.0 + abs(step - 20) / 10})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    (folder / "config.yaml").write_text(
        f"output_dir: {folder}\nlearning_rate: {rate}\nmodel: {{size: 3}}\napi_key: hunter2\n"
    )
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [write_training(tmp_path / "slow", 0.05), write_training(tmp_path / "fast", 0.1, memory=False)]


def test_the_table_has_the_numbers_of_each_run(two: list[Path]) -> None:
    slow, fast = training_rows([read_trained(one) for one in two])
    assert slow["loss"] == pytest.approx(sum(4 - 0.05 * step for step in range(37, 41)) / 4) and fast["loss"] == 1.0
    assert (slow["steps"], slow["validation_loss"], slow["grad_norm"]) == (40, 2.0, 20.5)
    assert (slow["tokens_per_second"], slow["peak_memory_gb"], fast["peak_memory_gb"]) == (2050.0, 7.5, None)
    section = training_section([read_trained(one) for one in two])
    assert section is not None and section.table is not None
    assert [cell.value for cell in section.table.rows[1].cells] == ["40", "1", "2", "20.5", "2,050", "–"]
    assert section.table.rows[0].cells[2].note == "at step 20"


def test_a_panel_without_numbers_is_left_out(two: list[Path]) -> None:
    both, fast = (training_curves([read_trained(one) for one in some]) for some in (two, two[1:]))
    assert both is not None and fast is not None
    counts = [len(ElementTree.fromstring(svg).findall(".//*[@id='figure_1']/*")) for svg in (both, fast)]
    drawn = [sum(f'id="axes_{number}"' in svg for number in range(1, 7)) for svg in (both, fast)]
    assert drawn == [len(PANELS), len(PANELS) - 1] and all(counts)


def test_values_that_are_no_numbers_are_not_drawn(tmp_path: Path) -> None:
    folder = write_training(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 42, "loss": NaN}\n{"step": 43, "loss": true}\n{"step": 44, "loss": "x"}\n')
    assert training_rows([read_trained(folder)])[0]["steps"] == 40


def test_configs_are_compared_without_places_and_secrets(two: list[Path]) -> None:
    section = config_section([read_trained(one) for one in two])
    assert section is not None and section.table is not None
    assert [(row.label, [cell.value for cell in row.cells]) for row in section.table.rows] == [
        ("learning_rate", ["0.05", "0.1"])
    ]
    assert config_section([read_trained(two[0])]) is None


def test_runs_that_were_never_evaluated_have_a_page(two: list[Path], tmp_path: Path, capsys) -> None:
    assert main(["report", *map(str, two), "--out", str(tmp_path / "page" / "report.html")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "<h2>Training</h2>" in page and "Differences of the configs" in page and "<script" not in page
    assert "Headline" not in page and "hunter2" not in page
    known = json.loads((tmp_path / "page" / "results.json").read_text())
    assert [row["run"] for row in known["training"]] == ["slow", "fast"] and known["runs"] == []
    assert main(["report", str(two[0]), "--out", str(tmp_path / "page" / "report.html")]) == 0  # its own earlier page


def test_curves_stand_beside_results(runs: list[Path], two: list[Path], tmp_path: Path) -> None:
    page = write_report([two[0], *runs], tmp_path / "report" / "report.html").read_text()
    assert "Headline" in page and "<h2>Training</h2>" in page
    known = json.loads((tmp_path / "report" / "results.json").read_text())
    assert known["base"] == "untuned" and "slow" not in [run["name"] for run in known["runs"]]
    assert [row["run"] for row in known["training"]][-1] == "slow"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty"), "--out", str(tmp_path / "x" / "report.html")]) == 2
    assert "no results and no metrics.jsonl" in capsys.readouterr().err


def test_two_folders_of_one_name_are_refused(two: list[Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "other").mkdir()
    write_training(tmp_path / "other" / "slow")
    assert main(["report", str(two[0]), str(tmp_path / "other" / "slow"), "--out", str(tmp_path / "x" / "r.html")]) == 2
    assert "are both named 'slow'" in capsys.readouterr().err
