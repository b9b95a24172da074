"""Finds how protocols are shown: a packaged protocol's display is in its class, another one's in the results."""

from collections.abc import Iterable, Mapping
from typing import Any

from medtune.evaluation.display import Display, plain_display
from medtune.evaluation.protocols.registry import REGISTRY

Displays = Mapping[str, Display]


def packaged() -> dict[str, Display]:
    """Return the displays of the packaged protocols by name, in the order of tables."""
    return _in_order({name: protocol.display for name, protocol in REGISTRY.items()})


def displays(results: Iterable[Mapping[str, Any]]) -> dict[str, Display]:
    """Return the display of every protocol in the results of some runs, in the order of tables.

    Raises:
        DataError: A display in the results cannot be read.
    """
    by_name: dict[str, Display] = {}
    for run_results in results:
        retained = [name for name in run_results.get("retention", {}) if name != "composite"]
        for name in dict.fromkeys([*run_results["protocols"], *retained, *run_results.get("side_by_side", [])]):
            if name not in by_name:
                by_name[name] = _display(name, run_results)
    return _in_order(by_name)


def _display(name: str, results: Mapping[str, Any]) -> Display:
    if name in REGISTRY:
        return REGISTRY[name].display
    written = results.get("display", {}).get(name)
    if written is not None:
        return Display.from_dict(written, f"results of {results.get('name', 'a run')}")
    return plain_display(name, results["protocols"].get(name, {}))


def _in_order(by_name: Displays) -> dict[str, Display]:
    return dict(sorted(by_name.items(), key=lambda item: item[1].rank))
