"""Scatter plots: which answers are drawn, unread or beyond the axes, and on which axes."""

from pathlib import Path

import pytest

from medtune.evaluation.display import Display, Scatter
from medtune.reporting import scatter
from medtune.reporting.runs import Run
from medtune.reporting.scatter import Cloud, axis_limits, beyond, scatter_sections

VALUES = Scatter(
    "gold", "predicted", "Values", "Help.", "right", "read", identity=True, by_attribute=True, endings=("/counting",)
)
MEASURES = Scatter("rouge_l", "green", "Scores", "Help.", "ROUGE-L", "GREEN")


def row(attribute: str, gold: str, predicted: str | None, **more: str) -> dict[str, str]:
    read = "0" if predicted is None else "1"
    return {
        "task": "p",
        "attribute": attribute,
        "gold": gold,
        "predicted": predicted or "",
        "read": read,
        "swapped": "0",
    } | more


def run(name: str, *rows: dict[str, str]) -> Run:
    return Run(name, Path(name), {"protocols": {"p": {}}}, {str(at): one for at, one in enumerate(rows)})


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch):
    def show(*scatters: Scatter) -> None:
        monkeypatch.setattr(
            scatter, "displays", lambda results: list(results) and {"p": Display("P", scatter=scatters)}
        )

    return show


def cells(section) -> list[list[str]]:
    return [[cell.value for cell in row.cells] for row in section.table.rows]


def test_right_values_are_drawn_against_read_ones_and_unread_answers_are_counted(shown) -> None:
    shown(VALUES)
    first = run("base", row("a/counting", "3", "4"), row("a/counting", "5", None), row("a/detection", "[]", "[]"))
    second = run("tuned", row("a/counting", "3", "3"), row("b/counting", "7", "7", swapped="1"))
    (section,) = scatter_sections([first, second])
    assert section.title == "Values: a/counting" and cells(section) == [["1", "1", "0"], ["1", "0", "0"]]
    assert "base" in section.alt and section.picture.startswith("<?xml") and "dashed line" in section.help


def test_each_attribute_has_axes_of_its_own(shown) -> None:
    shown(VALUES)
    sections = scatter_sections([run("x", row("a/counting", "3", "4"), row("b/counting", "900", "800"))])
    assert [section.title for section in sections] == ["Values: a/counting", "Values: b/counting"]


def test_two_measures_are_drawn_against_each_other(shown) -> None:
    shown(MEASURES)
    graded = {"measure:rouge_l": "0.5", "measure:green": "0.75"}
    rows = [row("a", "x", "y", **graded), row("a", "x", "y", **{"measure:rouge_l": "0.1", "measure:green": ""})]
    (section,) = scatter_sections([run("x", *rows)])
    assert cells(section) == [["1", "1", "0"]] and "dashed" not in section.help
    assert scatter_sections([run("x", row("a", "x", "y", **{"measure:rouge_l": "0.5"}))]) == []


def test_an_absurd_answer_is_drawn_at_the_edge_and_counted() -> None:
    cloud = Cloud("x", 0, [(10.0, 12.0), (20.0, 18.0), (15.0, 2.5e253)], 0)
    limits = axis_limits([cloud], identity=True)
    assert limits.across == limits.up and limits.up[0] < 10 and 20 < limits.up[1] < 60 and not limits.log
    assert beyond(cloud, limits) == 1
    assert "<?xml" in scatter.scatter_chart(VALUES, [cloud], limits)


def test_counts_over_many_decades_have_logarithmic_axes() -> None:
    cloud = Cloud("x", 0, [(3.0, 0.0), (1664.0, 900.0)], 0)
    limits = axis_limits([cloud], identity=True)
    assert limits.log and limits.up == (1.5, 3328.0) and beyond(cloud, limits) == 1
    assert "<?xml" in scatter.scatter_chart(VALUES, [cloud], limits)
    assert not axis_limits([Cloud("x", 0, [(0.0, 1.0), (1664.0, 9.0)], 0)], identity=True).log


def test_equal_values_still_have_a_range() -> None:
    limits = axis_limits([Cloud("x", 0, [(0.0, 0.0)], 0)], identity=True)
    assert limits.up[0] < 0 < limits.up[1]
