import xml.etree.ElementTree as ElementTree

import pytest

from medtune.reporting.plots import sweep_chart
from medtune.reporting.report import write_report
from medtune.reporting.seeds import seeds_section
from medtune.reporting.views import Section

SVG = "{http://www.w3.org/2000/svg}"
TITLES = {"open/accuracy_macro": "Open question", "retention": "Instruction retention"}
PLACES = {"half": 0.5, "none": 0.0, "all": 1.0}


def spread(*values):
    mean = sum(values) / len(values)
    deviation = None if len(values) < 2 else (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return {"mean": mean, "deviation": deviation, "seeds": len(values), "values": list(values)}


def spreads(seeds=3):
    def numbers(value):
        values = [value + 0.02 * seed for seed in range(seeds)]
        return {
            "open/accuracy_macro": spread(*values),
            "open/balanced_accuracy_macro": spread(*(one - 0.1 for one in values)),
            "retention": spread(*values),
        }

    base = {"open/accuracy_macro": spread(0.3), "retention": spread(0.9)}
    return {"base": base, "half": numbers(0.6), "none": numbers(0.4), "all": numbers(0.5)}


def drawn(svg):
    """Height on the page of each marker of the first panel, and the texts."""
    root = ElementTree.fromstring(svg)
    panel = next(node for node in root.iter(f"{SVG}g") if node.get("id") == "axes_1")
    uses = [node for node in panel.iter(f"{SVG}use") if "#2563c4" in node.get("style", "")]
    return uses, svg


def test_the_values_stand_in_order_at_equal_distances_with_their_deviations():
    uses, _ = drawn(sweep_chart(spreads(), "alpha", PLACES, TITLES))
    points = sorted({(float(use.get("x")), float(use.get("y"))) for use in uses})
    columns = sorted({x for x, _ in points})
    assert len(columns) == 3 and columns[1] - columns[0] == pytest.approx(columns[2] - columns[1], abs=1e-3)
    heights = [sorted(y for x, y in points if x == column) for column in columns]  # low end, mean, high end
    assert all(len(one) == 3 for one in heights)
    means = [one[1] for one in heights]
    assert means[1] < means[2] < means[0], "up is smaller: 0.6 at one half, 0.5 at one, 0.4 at zero"
    per_percent = (means[0] - means[1]) / 20
    for low, mean, high in heights:
        assert (high - mean) / per_percent == pytest.approx(2.0, rel=0.01) == (mean - low) / per_percent


def test_a_chart_needs_two_values_and_is_the_same_twice():
    assert sweep_chart(spreads(), "alpha", {"half": 0.5}, TITLES) is None
    assert sweep_chart(spreads(), "alpha", PLACES, {}) is None
    assert sweep_chart(spreads(), "alpha", PLACES, TITLES) == sweep_chart(spreads(), "alpha", PLACES, TITLES)
    ElementTree.fromstring(sweep_chart(spreads(1), "$\\frac$ <b>", PLACES, TITLES))


def test_the_section_writes_mean_and_deviation():
    section = seeds_section(spreads(), "alpha", PLACES)
    assert section.title == "By alpha" and "3 training seeds" in section.help
    assert section.table.columns == list(TITLES.values())
    base, half, *_ = section.table.rows
    one = half.cells[0]
    assert (one.value, one.span, one.n, one.note) == ("62.0", "± 2.0", "3 seeds", "balanced 52.0")
    assert one.title == "60.0, 62.0, 64.0"
    assert (base.cells[0].value, base.cells[0].span, base.cells[0].n) == ("30.0", "", "1 seed")


def test_one_seed_has_no_table_and_without_an_axis_no_section():
    section = seeds_section(spreads(1), "alpha", PLACES)
    assert section.table is None and section.picture and "seed" not in section.help
    assert seeds_section(spreads(1)) is None
    section = seeds_section(spreads(2))
    assert section.title == "Over seeds" and section.table and section.picture == ""


def test_a_section_of_the_callers_stands_on_the_page_escaped(runs, tmp_path):
    extra = Section("A <b> title", "its help", seeds_section(spreads()).table, "<svg/>", "its picture")
    page = write_report(runs[:2], tmp_path / "report.html", extra=extra).read_text()
    assert "A &lt;b&gt; title" in page and "its help" in page and 'alt="its picture"' in page and "± 2.0" in page
    assert page.index("Headline") < page.index("its help") < page.index("Protocols side by side")
    assert "its help" not in write_report(runs[:2], tmp_path / "plain.html").read_text()
