"""Curves of training runs, evaluated or not: loss, learning rates, gradient norm, memory and speed over the steps."""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from medtune.reporting.plots import GREY, STYLE, colour, svg_text
from medtune.reporting.runs import Run
from medtune.reporting.summary import MISSING
from medtune.reporting.views import Cell, Row, Section, Table

Series = list[tuple[float, float]]
PANELS = {
    "loss": "training loss (points: validation)",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "peak_memory_gb": "peak memory of the first GPU, GB",
    "tokens_per_second": "tokens per second",
}
"""Key of ``metrics.jsonl`` to the title of its panel; a panel without numbers is left out."""
PLACES = ("output_dir", "device", "num_workers", "log_every_steps", "metric_loggers")
"""Keys of a config that say where a run is or how it is watched; they are not compared."""
_DASHES = ["-", "--", ":", "-."]
_ACROSS, _LONGEST = 3, 80


def training_section(runs: Sequence[Run], step: str = "") -> Section | None:
    """Return the curves of all trained runs, and a table of the last values; None if no run was trained.

    Args:
        runs: Runs; a run's colour is that of its place.
        step: Name of the step that the runs are, for the title; empty for whole runs.
    """
    curves = training_curves(runs)
    if curves is None:
        return None
    rows = [Row(run.name, _cells(run), colour(place)) for place, run in enumerate(runs) if series(run, "loss")]
    columns = ["Steps", "Loss", "Validation loss", "Gradient norm", "Tokens per second", "Peak memory, GB"]
    text = (
        "From metrics.jsonl of each run. The loss is the mean over the last tenth of the logged steps, the validation "
        "loss the lowest one; gradient norm and speed are medians, memory is the maximum."
    )
    alt = "Loss, learning rates, gradient norm, memory and speed over the steps, one line for each run"
    return Section(
        f"Training: {step}" if step else "Training", text, Table("", columns, rows), curves, alt, first="Run"
    )


def config_section(runs: Sequence[Run], step: str = "") -> Section | None:
    """Return the keys in which the configs of the trained runs differ; None with fewer than two such runs.

    Args:
        runs: Runs.
        step: Name of the step that the runs are, for the title; empty for whole runs.
    """
    configs = {
        run.name: dict(_leaves(OmegaConf.to_container(OmegaConf.create(run.config)))) for run in runs if run.config
    }
    if len(configs) < 2:
        return None
    keys = sorted({key for values in configs.values() for key in values if key.split(".")[0] not in PLACES})
    differing = [key for key in keys if len({repr(values.get(key)) for values in configs.values()}) > 1]
    rows = [
        Row(key, [Cell(_short(values[key]) if key in values else MISSING) for values in configs.values()])
        for key in differing
    ]
    text = "Keys that differ between the saved configs; where a run lies and how it is watched is left out."
    title = f"Differences of the configs: {step}" if step else "Differences of the configs"
    return Section(title, text if rows else "The configs are equal.", _table(configs, rows), first="Key")


def training_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the numbers of the table of :func:`training_section` as plain values, one dict for each trained run."""
    return [{"run": run.name, **_numbers(run)} for run in runs if series(run, "loss")]


def training_curves(runs: Sequence[Run]) -> str | None:
    """Draw a panel for each of :data:`PANELS` that has numbers, one line per run.

    Returns:
        SVG text, or None if no run has a loss.
    """
    trained = [(place, run) for place, run in enumerate(runs) if series(run, "loss")]
    if not trained:
        return None
    parts = dict(zip(_learning_rates(trained), _DASHES * 3, strict=False))
    keys = {key: list(parts) if key == "lr" else [key] for key in PANELS}
    shown = [panel for panel, own in keys.items() if any(series(run, key) for _, run in trained for key in own)]
    across = min(_ACROSS, len(shown))
    down = math.ceil(len(shown) / across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * across + 0.4, 2.7 * down + 0.3))
        panels: Any = figure.subplots(down, across, squeeze=False).ravel()
        for panel, name in zip(panels, shown, strict=False):
            for place, run in trained:
                for key in keys[name]:
                    _draw(panel, series(run, key), color=colour(place), linewidth=1.2, linestyle=parts.get(key, "-"))
                if name == "loss":
                    panel.plot([], [], color=colour(place), label=run.name)
                    validation = series(run, "validation_loss")
                    _draw(panel, validation, color=colour(place), marker="D", markersize=3.5, linestyle="none")
            if name == "lr":
                for part, dashes in parts.items():
                    panel.plot([], [], color=GREY, linestyle=dashes, label=part.removeprefix("lr/"))
            if name in ("loss", "lr"):
                panel.legend(frameon=False, fontsize=8)
            panel.set_title(PANELS[name], fontsize=9.5)
            panel.set_xlabel("step")
            panel.grid(color="#e5e5e5", linewidth=0.7)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in panels[len(shown) :]:
            panel.set_visible(False)
        figure.tight_layout()
        return svg_text(figure)


def series(run: Run, key: str) -> Series:
    """Return (step, value) of each line of ``metrics.jsonl`` that has a finite number under a key."""
    rows = [(row.get("step"), row.get(key)) for row in run.metrics]
    return [(step, value) for step, value in rows if _is_number(step) and _is_number(value)]  # type: ignore[misc]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(run: Run) -> dict[str, float | None]:
    values = {key: [value for _, value in series(run, key)] for key in (*PANELS, "validation_loss")}
    losses = values["loss"]
    return {
        "steps": max(step for step, _ in series(run, "loss")),
        "loss": statistics.fmean(losses[-max(1, len(losses) // 10) :]),
        "validation_loss": min(values["validation_loss"], default=None),
        "grad_norm": statistics.median(values["grad_norm"]) if values["grad_norm"] else None,
        "tokens_per_second": statistics.median(values["tokens_per_second"]) if values["tokens_per_second"] else None,
        "peak_memory_gb": max(values["peak_memory_gb"], default=None),
    }


def _cells(run: Run) -> list[Cell]:
    numbers = _numbers(run)
    forms = {"steps": ",.0f", "tokens_per_second": ",.0f"}
    cells = [Cell(MISSING if value is None else format(value, forms.get(key, ".4g"))) for key, value in numbers.items()]
    lowest = min(((value, step) for step, value in series(run, "validation_loss")), default=None)
    if lowest is not None:
        cells[2] = Cell(cells[2].value, note=f"at step {lowest[1]:,}")
    return cells


def _learning_rates(trained: Sequence[tuple[int, Run]]) -> list[str]:
    """Return the keys of the learning rates, one for each trained part."""
    return sorted({key for _, run in trained for row in run.metrics for key in row if key.split("/")[0] == "lr"})


def _draw(panel: Any, points: Series, **style: Any) -> None:
    if points:
        panel.plot([step for step, _ in points], [value for _, value in points], **style)


def _table(configs: dict[str, Any], rows: list[Row]) -> Table | None:
    return Table("", list(configs), rows) if rows else None


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of each leaf; a list is one value."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
