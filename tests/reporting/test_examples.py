"""Examples in a section: images with texts side by side, on a report of runs and on a page of sections alone."""

from pathlib import Path

from medtune.reporting.report import render_sections, write_report
from medtune.reporting.views import Cell, Example, Option, Row, Section, Table

EXAMPLE = Example(
    "What <is> this?",
    ["data:image/png;base64,AAAA", "data:image/png;base64,BBBB"],
    [Option("first", "one <i>", tone="good"), Option("second", "", "score 3")],
    trouble="one image is gone",
    note="a note",
)


def test_a_report_of_runs_takes_examples_too(runs: list[Path], tmp_path: Path) -> None:
    out = write_report(runs, tmp_path / "page/report.html", extra=Section("Extra", "Help.", examples=[EXAMPLE]))
    page = out.read_text()
    assert "What &lt;is&gt; this?" in page and 'src="data:image/png;base64,AAAA"' in page and "(empty)" in page
    assert "Headline" in page and "score 3" in page


def test_a_page_of_sections_alone_has_no_headline() -> None:
    table = Table("", ["n"], [Row("judge", [Cell("12")])])
    page = render_sections([Section("One", "Help.", table), Section("Two", "", examples=[EXAMPLE])], title="A <page>")
    assert (
        "A &lt;page&gt;" in page
        and "Headline" not in page
        and "<b>12</b>" in page
        and page.rstrip().endswith("</html>")
    )
    assert page.count("<img src=") == 2 and "one &lt;i&gt;" in page and "one image is gone" in page and "a note" in page
    assert page.count('class="option good"') == 1
