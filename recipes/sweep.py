"""Train, predict with and evaluate several variants of one experiment, and write one report.

tune run medtune/recipes/sweep.py --config sweep/mini_wbcatt output_dir=runs/sweep
"""

from medtune.config import recipe
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import run_sweep


@recipe(SweepConfig)
def main(config: SweepConfig) -> int:
    """Run the sweep."""
    print(f"report: {run_sweep(config).resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
