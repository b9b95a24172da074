"""Choose a router's threshold on validation data; writes threshold.json, threshold.csv and threshold.svg to one folder.

Each adapter has answered the same questions (``predict`` with ``backend.mode=single``), and ``evaluate`` has scored
the answers.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from medtune.config import recipe, to_shown
from medtune.data.folders import claim
from medtune.data.writing import json_bytes, write_files
from medtune.evaluation.evaluation import to_csv
from medtune.routing.threshold import NEVER, draw, sweep
from medtune.routing.validation import read_better, read_correctness, read_routes

WRITES = ("threshold.json", "threshold.csv", "threshold.svg")


@dataclass
class ThresholdConfig:
    """Keys of the choice of a threshold."""

    routed: str = field(metadata={"help": "predictions.jsonl of a routed run on validation questions; any threshold"})
    adapters: dict[str, str] = field(
        metadata={"help": "adapter: folder that evaluate wrote for its answers (verdicts.csv)"}
    )
    fallback: str = field(metadata={"help": "the adapter that answers below the threshold"})
    output_dir: str = field(metadata={"help": "folder for the results"})
    column: str = field(
        default="correct",
        metadata={
            "help": "what is maximised: a column of verdicts.csv with numbers from 0 to 1, or better, how often the "
            "answer is nearer to the right one than the fallback's (for tasks with errors in unlike units)"
        },
    )


@recipe(ThresholdConfig)
def main(config: ThresholdConfig) -> None:
    """Sweep, write and print."""
    routed = read_routes(config.routed)
    if config.column == "better":
        correct = read_better(config.adapters, routed.ids, config.fallback)
    else:
        correct = read_correctness(config.adapters, routed.ids, config.column)
    found = sweep(routed.scores, routed.labels, correct, config.fallback)
    folder = Path(config.output_dir)
    claim(folder, "router_threshold", WRITES, lambda path: False)
    files = {
        "threshold.json": json_bytes({**found.to_dict(), "config": to_shown(config)}),
        "threshold.csv": to_csv([asdict(point) for point in found.points]).encode(),
        "threshold.svg": draw(found, config.column).encode(),
    }
    write_files(folder, files, overwrite=True)
    print(f"threshold  {config.column.removeprefix('measure:'):>7}  own adapter")
    known = [("known", point) for point in found.known]
    for name, point in [("own", found.points[0]), *known, ("fallback", found.points[-1]), ("best", found.best)]:
        shown = "never" if point.threshold == NEVER else f"{point.threshold:.3f}"
        print(f"{shown:>9}  {point.value:7.1%}  {point.own:11.1%}  {name}")
    print(f"results: {folder / 'threshold.json'}")


if __name__ == "__main__":
    sys.exit(main())
