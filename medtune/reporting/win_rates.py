"""Two models before a judge: win rates, also of each type of question, and answers with the judge's words."""

from collections.abc import Mapping, Sequence
from typing import Any

from medtune.data.sample import IMAGE_TAG
from medtune.judges.base import Judgement
from medtune.reporting.gallery import OpenImage, thumbnail
from medtune.reporting.judge_charts import win_rate_chart
from medtune.reporting.views import Cell, Example, Option, Row, Section, Table, cell

_COUNTS = {"wins": "wins", "ties": "ties", "identical": "equal answers", "losses": "losses", "left_out": "left out"}
_HELP = (
    "A judge chose between two models' answers to the same questions; the win rate is that of the second model. "
    "Two equally good models have 50%. Green lies above 50% with its whole interval, red below. The files of "
    "answers, those of the first model first: "
)


def win_rate_sections(manifests: Mapping[str, Mapping[str, Any]]) -> list[Section]:
    """Return the sections with the win rates of the comparisons, and with those of groups of questions.

    Args:
        manifests: Name to show -> manifest of the judge recipe; those without a win rate are left out.
    """
    named = {name: one for name, one in manifests.items() if one.get("win_rate") is not None}
    if not named:
        return []
    rates = {name: one["win_rate"] for name, one in named.items()}
    compared = [f"{name}: {one['candidates']['file']}." for name, one in named.items()]
    known = {name: won for name, won in rates.items() if won["rate"]["value"] is not None}
    chart, alt = (win_rate_chart(known), "Wins, ties and losses of each comparison") if known else ("", "")
    sections = [Section("Win rate", _HELP + " ".join(compared), _table(rates), chart, alt, first="Judge")]
    for name, won in rates.items():
        of = f": {name}" if len(rates) > 1 else ""
        for key, groups in won.get("groups", {}).items():
            read = {group: numbers for group, numbers in groups.items() if numbers["rate"]["value"] is not None}
            title = f"Win rate by {key.replace('_', ' ')}{of}"
            alt = f"Wins, ties and losses of each {key.replace('_', ' ')}"
            chart = win_rate_chart(read) if 1 < len(read) <= 12 else ""
            sections.append(Section(title, "", _table(groups), chart, alt if chart else "", first="Questions"))
    return sections


def compared_sections(
    name: str, pairs: Sequence[Mapping[str, Any]], judged: Mapping[str, Judgement], open_image: OpenImage | None
) -> list[Section]:
    """Return a section with the answers of two models side by side, and what the judge wrote.

    Args:
        name: Name of the comparison; empty if there is only one.
        pairs: Rows of ``pairs.jsonl``.
        judged: Judgements by id.
        open_image: Opens an image by its path in the pairs; None shows no images.
    """
    shown = [_example(row, judged[row["id"]], open_image) for row in pairs if row["id"] in judged]
    text = (
        "Chosen by a seed, not by their scores; ties are not shown. Green is the better answer by the mean over the "
        "orders that were asked, red the other one. Below are the judge's words, once for each order."
    )
    return [Section("Compared answers" + (f": {name}" if name else ""), text, examples=shown)] if shown else []


def _table(rates: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        Row(name, [cell(won["rate"], against=0.5), *(Cell(str(won[key])) for key in _COUNTS)])
        for name, won in rates.items()
    ]
    return Table("", ["win rate, %", *_COUNTS.values()], rows)


def _example(row: Mapping[str, Any], judgement: Judgement, open_image: OpenImage | None) -> Example:
    opened = [thumbnail(path, open_image) for path in row["images"]]
    chosen, rejected = row["scores"]
    better = Option("", row["chosen"], f"score {chosen:.3g}", "good")
    worse = Option("", row["rejected"], f"score {rejected:.3g}", "bad")
    first, second = (worse, better) if judgement.preferred else (better, worse)
    words = " / ".join(f"“{' '.join(text.split())}”" for text in judgement.words if text.strip())
    return Example(
        row["messages"][-1]["content"].replace(IMAGE_TAG, "").strip(),
        [picture for picture, _ in opened if picture],
        [
            Option("first model", first.text, first.note, first.tone),
            Option("second model", second.text, second.note, second.tone),
        ],
        next((trouble for _, trouble in opened if trouble), ""),
        words,
    )
