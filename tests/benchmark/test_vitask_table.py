"""The miniature of VITask's Table 2: what is collected from made-up runs that the real evaluator scored."""

import json
from pathlib import Path

import pytest

from medtune.config import load_config
from medtune.errors import DataError
from medtune.sweep.config import SweepConfig, chains, row_title, rows_of
from tests.benchmark.scripts import script
from tests.evaluation.ranked import write_run

table = script("vitask_table")


def sweep(folder: Path) -> SweepConfig:
    return load_config(table.SWEEP, SweepConfig, [f"output_dir={folder}", "seeds=[0,1]"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every row of the sweep with two seeds, the second one sharper."""
    root = tmp_path_factory.mktemp("sweep")
    for chain in chains(sweep(root)):
        for row in rows_of(sweep(root), chain):
            write_run(row.folder, row.title, 1.0 + chain.seed)
            results = json.loads((row.folder / "results.json").read_text())
            (row.folder / "results.json").write_text(json.dumps({**results, "provenance": {"commit": "abc"}}))
    return root


def test_the_papers_rows_are_rows_of_the_sweep(folder: Path) -> None:
    config = sweep(folder)
    titles = {row_title(row.chain.variant, row.ask) for chain in chains(config) for row in rows_of(config, chain)}
    assert set(table.TABLE_2) | set(table.TABLE_1) | set(table.REFERENCES) <= titles
    assert {len(row) for row in table.TABLE_2.values()} == {2 * len(table.TABLE_2_SETS)}
    assert {len(row) for row in table.TABLE_1.values()} == {2 * len(table.TABLE_1_SETS)}


def test_every_row_and_difference_is_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "table.json"
    assert table.main(["--collect-only", "--out", str(out), f"output_dir={folder}", "seeds=[0,1]"]) == 0
    result = json.loads(out.read_text())
    assert len(result["rows"]) == 10 and result["commits_of_runs"] == ["abc"]
    assert result["rows"]["VITask, w/ EP"]["classification/f1_macro"]["seeds"] == 2
    assert {base: len(one) for base, one in result["differences"].items()} == dict.fromkeys(table.REFERENCES, 9)
    number = result["differences"]["EP, w/ EP"]["VITask, w/ EP"]["classification"]["f1_macro"]
    rows = [result["rows"][name]["classification/f1_macro"]["mean"] for name in ("EP, w/ EP", "VITask, w/ EP")]
    assert number["value"] == pytest.approx(rows[1] - rows[0]) and list(number["by_seed"]) == ["0", "1"]
    said = capsys.readouterr().out
    assert said == table.markdown(result) + "\n" and "| VITask, w/ EP | 2 |" in said and "| minus TSM |" in said


def test_what_is_not_scored_is_named(folder: Path) -> None:
    config = load_config(table.SWEEP, SweepConfig, [f"output_dir={folder}", "seeds=[7]"])
    with pytest.raises(DataError, match="not scored yet: .*vitask"):
        table.table(config)
