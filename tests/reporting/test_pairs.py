import csv
import re
import shutil

import pytest

from medtune.reporting.comparison import compare
from medtune.reporting.pairs import p_text, paired_skips, paired_tables
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.000"), (0.0394, "0.039"), (0.001, "0.001"), (0.00099, "< 0.001"), (0.0, "< 0.001")]
)
def test_p_values_are_written_with_three_decimals(value, text):
    assert p_text(value) == text


def test_a_table_a_protocol_and_a_line_a_run(runs):
    loaded = [read_run(run) for run in runs]
    differences = {run.name: compare(loaded[0], run, resamples=50) for run in loaded[1:]}
    tables = paired_tables(loaded, differences)
    assert [table.title for table in tables] == ["Open question", "Multiple choice", "Letter likelihood", "Yes / no"]
    for table in tables:
        assert [row.label for row in table.rows] == ["FT", "InstFree", "InstFree w/ RS"]
        assert all(len(row.cells) == len(table.columns) == 5 for row in table.rows)
    test = differences["InstFree w/ RS"]["open"]["mcnemar"]
    shown = [cell.value for cell in tables[0].rows[2].cells[2:]]
    assert shown == [str(test["only_first"]), str(test["only_second"]), p_text(test["p_value"])]
    assert paired_skips(differences) == []


def test_what_is_not_compared_is_said_on_the_page(runs, tmp_path):
    folder = shutil.copytree(runs[2], tmp_path / "fewer")
    with (folder / "verdicts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(row for row in rows if row["task"] == "open" and row["swapped"] == "0")
    with (folder / "verdicts.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row is not first)
    text = write_report([runs[0], folder], tmp_path / "out" / "r.html").read_text()
    assert "InstFree, open question: not compared; the question sets differ: 84 and 83 questions" in text
    paired = re.search(r"<h2>Paired comparison.*?<h2>", text, re.DOTALL)[0]
    assert "<h3>Multiple choice</h3>" in paired and "<h3>Open question</h3>" not in paired


def test_a_single_run_has_no_comparison(runs, tmp_path):
    assert "Paired comparison" not in write_report([runs[0]], tmp_path / "r.html").read_text()
