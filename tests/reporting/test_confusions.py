import csv
import dataclasses
import shutil

from medtune.reporting.confusions import WIDEST, confusion_rows, confusion_tables
from medtune.reporting.report import write_report
from medtune.reporting.runs import read_run


def test_every_run_attribute_and_protocol_has_a_table_of_all_its_answers(runs):
    loaded = [read_run(run) for run in runs]
    groups = confusion_tables(loaded)
    assert len(groups) == 14 and {group.title for group in groups} == {"Open question", "Multiple choice"}
    for group in groups:
        assert [one.name for one in group.tables] == [run.name for run in loaded]
        assert all(one.table.n == 12 for one in group.tables)


def test_the_diagonal_is_the_accuracy_and_the_unread_column_the_unread_rate(runs):
    run = read_run(runs[1])
    for group in confusion_tables([run]):
        task = {"Open question": "open", "Multiple choice": "multiple_choice"}[group.title]
        numbers = run.results["protocols"][task]["attributes"][group.attribute]
        table = group.tables[0].table
        right = sum(row[table.answered.index(gold)] for gold, row in zip(table.gold, table.counts, strict=True))
        assert right == round(12 * numbers["accuracy"]["value"])
        assert sum(table.unread) == round(12 * numbers["unread"]["value"])
    assert any(sum(group.tables[0].table.unread) for group in confusion_tables([run]))


def test_an_attribute_of_many_values_stands_in_the_csv_alone(runs):
    run = read_run(runs[0])
    verdicts = {
        str(place): {
            "id": str(place),
            "task": "open",
            "attribute": "many",
            "swapped": "0",
            "gold": f"value {place}",
            "predicted": "",
            "read": "0",
        }
        for place in range(WIDEST + 1)
    }
    many = dataclasses.replace(run, verdicts=verdicts)
    (group,) = confusion_tables([many])
    assert group.tables == [] and group.wide == WIDEST + 1
    rows = confusion_rows([many])
    assert sum(row["count"] for row in rows) == WIDEST + 1
    assert all(row["read"] == 0 for row in rows if row["count"])


def test_the_csv_beside_the_page_holds_every_count(runs, tmp_path):
    text = write_report(runs, tmp_path / "report.html").read_text()
    assert "Confusion for each attribute" in text and text.count("right \\ answered") == 56
    with (tmp_path / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"run", "protocol", "attribute", "gold", "answered", "read", "count"}
    assert sum(int(row["count"]) for row in rows) == 4 * 2 * 84
    unread = sum(int(row["count"]) for row in rows if row["read"] == "0" and row["run"] == "FT")
    numbers = read_run(runs[1]).results["protocols"]
    expected = sum(round(84 * numbers[task]["overall"]["unread"]["value"]) for task in ("open", "multiple_choice"))
    assert unread == expected > 0


def test_a_run_without_verdicts_has_no_tables(runs, tmp_path):
    bare = dataclasses.replace(read_run(runs[0]), verdicts={})
    assert confusion_tables([bare]) == [] and confusion_rows([bare]) == []


def test_values_are_escaped(runs, tmp_path):
    folder = shutil.copytree(runs[1], tmp_path / "evil")
    text = (folder / "verdicts.csv").read_text()
    (folder / "verdicts.csv").write_text(text.replace("segmented-bilobed", "<script>alert(1)</script>"))
    text = write_report([folder], tmp_path / "out" / "r.html").read_text()
    assert "<script" not in text and "<th>&lt;script&gt;alert(1)" in text
