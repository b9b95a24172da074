"""What a report says about overlaps between the splits of the data that a run was evaluated on."""

from collections.abc import Mapping, Sequence
from typing import Any

from medtune.reporting.runs import Run


def leakage_text(known: Mapping[str, Any] | None) -> str:
    """Describe what ``prepare`` wrote into its manifest about leakage between splits.

    Args:
        known: ``provenance.leakage`` of a run's results; None if it is not known.
    """
    if not known:
        return "not known; the data were prepared elsewhere or by an earlier version"
    if "found" not in known:
        return "not checked (check_leakage=false)"
    counts = [
        f"{kind.replace('_', ' ')} {pair}: {count:,}"
        for kind, pairs in known["found"].items()
        for pair, count in pairs.items()
    ]
    how = f"{known['images']:,} images compared by their {known['compared']}"
    if not counts:
        return f"none found; {how}"
    return f"{', '.join(counts)}; allowed by name: {', '.join(known['allowed'])}; {how}"


def known_overlaps(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each set of overlaps that a run's data have, each once."""
    provenance = (run.results.get("provenance", {}).get("leakage") or {} for run in runs)
    return list(dict.fromkeys(leakage_text(known) for known in provenance if known.get("found")))
