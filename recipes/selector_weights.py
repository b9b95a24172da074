"""Train the selection model with several weights w of human preferences, and compare them (BioMed-VITAL, Table 1).

tune run medtune/recipes/selector_weights.py --config selector_weights/table1

Writes ``weights.json`` and ``weights.html``. Each model is a run of the recipe ``selector`` in a folder of its own; a
killed comparison goes on, and a weight that is added later is trained alone.
"""

import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtune.config import recipe
from medtune.curation.selector_measures import MEASURES
from medtune.data.folders import claim as claim_folder
from medtune.data.writing import json_bytes, write_files
from medtune.evaluation.provenance import commit, versions
from medtune.sweep.run import run_recipe

WRITES = ("weights.json", "weights.html", "commands.txt")
"""Files that a comparison writes itself; the runs' folders are beside them."""


@dataclass
class SelectorWeightsConfig:
    """Every key of a comparison of weights."""

    output_dir: str = field(metadata={"help": "folder of the runs, of weights.json and weights.html"})
    train: str = field(metadata={"help": "config of the recipe selector"})
    weights: list[float] = field(metadata={"help": "values of w"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "training seeds of each value"})
    overrides: list[str] = field(default_factory=list, metadata={"help": "for every run"})

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if not self.weights or min(self.weights) <= 0 or len(set(self.weights)) < len(self.weights):
            raise ValueError("weights must be above 0 and different, at least one")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be different, at least one")


@recipe(SelectorWeightsConfig)
def main(config: SelectorWeightsConfig) -> int:
    """Train what is missing, then compare."""
    folder = Path(config.output_dir)
    claim_folder(folder, "selector_weights", WRITES, lambda path: (path / "commands.txt").is_file())
    rows: dict[str, dict[str, Any]] = {}
    for weight in config.weights:
        found = []
        for seed in config.seeds:
            run = folder / f"w_{weight:g}_seed_{seed}"
            words = [*config.overrides, f"objective.human_weight={weight}", f"seed={seed}", f"output_dir={run}"]
            run_recipe(folder, "selector", [config.train, *words])  # a finished run ends at once
            found.append(json.loads((run / MEASURES).read_text(encoding="utf-8"))["measures"])
        rows[f"{weight:g}"] = {name: _over_seeds([one[name] for one in found]) for name in found[0]}
    result = {"rows": rows, "seeds": config.seeds, "train": config.train, "versions": versions(), "commit": commit()}
    from medtune.curation.selector_report import weights_page

    page = weights_page(rows, len(config.seeds))
    write_files(folder, {"weights.json": json_bytes(result), "weights.html": page.encode()}, overwrite=True)
    best = max(rows, key=lambda weight: rows[weight]["accuracy"]["mean"])
    print(f"{len(rows)} weights, {len(config.seeds)} seeds; the best accuracy is that of w = {best}: {folder}")
    return 0


def _over_seeds(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a number's mean and deviation over seeds; of one seed the interval over images instead."""
    values = [one["value"] for one in found]
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "interval": found[0]["interval"] if len(values) == 1 else None,
        "by_seed": values,
        "n": found[0]["n"],
    }


if __name__ == "__main__":
    sys.exit(main())
