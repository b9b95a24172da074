"""What medtune's models at their real size cost on one GPU: training steps, answers, exact resume.

    python benchmark/gpu.py --list
    python benchmark/gpu.py --minutes 9                        # every job, as many as fit
    python benchmark/gpu.py instfree_11b predict_11b --output results
    python benchmark/gpu.py --tiny --minutes 2                 # mini models on a CPU; the times say nothing about a GPU

Jobs run in order, each in a process of its own, and each result lies in ``gpu_<job>.json`` as soon as it stands. What
fails is written down with its error and the next job goes on; ``gpu_left.json`` lists what did not fit. Models have
random weights, so that nothing needs to be downloaded; see ``gpu_jobs/`` for what is measured and how.

Without jobs, ``--minutes``, ``--output`` and ``--list`` one step is measured, with options for its size:

    python benchmark/gpu.py [--method instfree] [--batch-size 2] [--tokens 512] [--no-activation-checkpointing] [--tiny]
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

# Asked before a fork, torch counts the GPUs without touching them.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
sys.path.append(str(Path(__file__).resolve().parent))

import torch
from gpu_jobs import runner, step
from gpu_jobs.jobs import JOBS
from gpu_jobs.setting import Setting

from medtune.errors import MedtuneError
from medtune.evaluation.provenance import commit, hardware, versions

RESULTS = Path(__file__).resolve().parent / "results"
OUTPUT = RESULTS / "gpu.json"
OF_JOBS = ("jobs", "minutes", "output", "list", "commit")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; what is not given depends on whether the model is the tiny one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="names of --list, in the order in which they shall run")
    parser.add_argument("--list", action="store_true", help="print the jobs and what they are reckoned to take")
    parser.add_argument("--minutes", type=float, help="time for all jobs; what does not fit is listed")
    parser.add_argument("--output", type=Path, help="folder for the jobs' results (benchmark/results; tiny: none)")
    parser.add_argument("--commit", help="the commit to write down, where this is a copy without its history")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, to try the script")
    parser.add_argument("--method", choices=sorted(step.METHODS), default="instfree")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--tokens", type=int, help="text tokens of a sample (512; tiny: 64)")
    parser.add_argument("--optimizer", choices=sorted(step.OPTIMIZERS), help="paged_adamw8bit; tiny: adamw")
    parser.add_argument("--activation-checkpointing", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--encoder-mode", choices=("torchtune", "checkpoint", "strict"), default="torchtune")
    parser.add_argument("--rounds", type=int, help="repetitions that are timed (20; of jobs 10, tiny 2)")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--out", type=Path, help="the JSON file of one step; tiny writes none unless asked")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.jobs if name not in JOBS]
    if unknown:
        parser.error(f"no such job: {', '.join(unknown)}; the jobs are {', '.join(JOBS)}")
    if options.minutes is not None and options.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {options.minutes:g}")
    options.tokens = options.tokens or (64 if options.tiny else 512)
    options.optimizer = options.optimizer or ("adamw" if options.tiny else "paged_adamw8bit")
    if options.rounds is None:
        options.rounds = (2 if options.tiny else 10) if of_jobs(options) else 20
    if options.out is None and not options.tiny:
        options.out = OUTPUT
    return options


def of_jobs(options: argparse.Namespace) -> bool:
    """Whether jobs are asked for, rather than one step."""
    return bool(options.jobs) or options.minutes is not None or options.output is not None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the results."""
    options = parse(arguments)
    if options.list:
        for name, job in JOBS.items():
            print(f"{name:<30}{job.minutes:>4.1f} min  {job.what}")
        return 0
    if not options.tiny and not torch.cuda.is_available():
        print("torch sees no GPU; run this on one, or give --tiny to try the script on a CPU", file=sys.stderr)
        return 2
    command = " ".join(["python", "benchmark/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    return (all_jobs if of_jobs(options) else one_step)(options, command)


def all_jobs(options: argparse.Namespace, command: str) -> int:
    """Run the jobs and print their table; the status is 1 when one failed."""
    setting = Setting(options.tiny, options.rounds, 1 if options.tiny else options.warmup)
    names = list(dict.fromkeys(options.jobs or JOBS))
    with TemporaryDirectory() as nowhere:
        folder = options.output or (Path(nowhere) if options.tiny else RESULTS)
        origin = runner.origin(command, options.commit, options.tiny)
        told = runner.run_jobs(names, setting, folder, options.minutes, origin)
        print(runner.table(folder, told))
    return 1 if told["failed"] else 0


def one_step(options: argparse.Namespace, command: str) -> int:
    """Measure one step beside torchtune's, with the sizes of the command line."""
    device = torch.device("cpu" if options.tiny else "cuda")
    try:
        measured = step.measure(options, step.TINY if options.tiny else step.REAL, device)
    except MedtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = {
        "command": command,
        "commit": options.commit or commit(),
        "versions": versions(),
        "hardware": {**hardware(), "gpu": measured["gpu"]},
        "settings": {key: value for key, value in vars(options).items() if key not in ("out", *OF_JOBS)},
        **measured,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("model", "gpu", "time_ratio", "steps")}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
