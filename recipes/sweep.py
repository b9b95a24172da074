"""Train, predict with and evaluate several variants of one experiment, and write one report.

tune run medtune/recipes/sweep.py --config sweep/mini_wbcatt output_dir=runs/sweep
"""

from medtune.config import recipe
from medtune.sweep.config import SweepConfig
from medtune.sweep.run import collect, run_part, run_sweep


@recipe(SweepConfig)
def main(config: SweepConfig) -> int:
    """Run the sweep, one part of it, or its report."""
    if config.only is not None:
        return run_part(config)
    print(f"report: {(collect(config) if config.collect else run_sweep(config)).resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
