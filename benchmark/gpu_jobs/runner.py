"""Runs jobs one after another, each in a process of its own, and writes each result as soon as it stands.

A process of its own gives a job an empty GPU, and what goes wrong in one (memory used up, a fault of the device) is
gone with it. Processes are forked, so that the packages are imported once; this one never touches the GPU.
"""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpu_jobs.jobs import JOBS, Job
from gpu_jobs.setting import Setting
from medtune.data.writing import write_whole
from medtune.evaluation.provenance import commit, hardware, versions

LEFT = "gpu_left.json"


def result_path(folder: Path, job: str) -> Path:
    """Where a job's figures lie."""
    return folder / f"gpu_{job}.json"


def driver() -> dict[str, Any]:
    """The card's name, its driver and memory as nvidia-smi tells them; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    asked = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    values = [value.strip() for value in found.stdout.partition("\n")[0].split(",")]
    return dict(zip(asked, values, strict=True)) if found.returncode == 0 and len(values) == len(asked) else {}


def origin(command: str, given_commit: str | None, tiny: bool) -> dict[str, Any]:
    """What every result says of itself: command, commit, versions, machine, card and driver."""
    card = {} if tiny else driver()
    return {
        "command": command,
        "commit": given_commit or commit(),
        "versions": {**versions(), "cuda": torch.version.cuda},
        "hardware": {**hardware(), "gpu": card.get("name"), "driver": card.get("driver_version"), "card": card},
        "tiny": tiny,
    }


def run_jobs(
    names: Sequence[str], setting: Setting, folder: Path, minutes: float | None, origin: dict[str, Any]
) -> dict[str, Any]:
    """Run jobs in order, as many as fit.

    Args:
        names: Of :data:`gpu_jobs.jobs.JOBS`.
        setting: How they run.
        folder: Results go there as ``gpu_<job>.json``; ``gpu_left.json`` says what did not fit.
        minutes: For all of them. A job that is reckoned to take more than is left is passed over, and one that still
            runs at the end is stopped. None sets no bound.
        origin: Put before the figures of each.

    Returns:
        ``done``, ``failed`` and ``left``, as in ``gpu_left.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    told: dict[str, Any] = {"minutes": minutes, "done": [], "failed": {}, "left": {}}
    for name in names:
        job = JOBS[name]
        remaining = None if minutes is None else 60 * minutes - (time.monotonic() - began)
        needed = 0.0 if setting.tiny else 60 * job.minutes
        if remaining is not None and remaining <= needed:
            told["left"][name] = f"{max(0.0, remaining):.0f} s were left, and it is reckoned to take {needed:.0f} s"
        else:
            _run_one(name, setting, folder, remaining, {"job": name, "what": job.what, **origin}, told)
        write_whole(folder / LEFT, json.dumps(told, indent=1) + "\n")
    return told


def _run_one(
    name: str, setting: Setting, folder: Path, remaining: float | None, head: dict[str, Any], told: dict[str, Any]
) -> None:
    """Run one job and enter how it went."""
    path = result_path(folder, name)
    path.unlink(missing_ok=True)  # a figure of an earlier run must not pass for one of this run
    print(f"{name}: {JOBS[name].what}", flush=True)
    began = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(JOBS[name], setting, path, head))
    child.start()
    child.join(remaining)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)  # and the runs that it has started
        child.join()
        path.unlink(missing_ok=True)
        told["left"][name] = f"stopped after {time.monotonic() - began:.0f} s, when the minutes were used up"
        return
    if not path.exists():
        error = f"its process ended with status {child.exitcode} and no result (a negative one is a signal)"
        write_whole(path, json.dumps({**head, "error": error}, indent=1) + "\n")
    error = json.loads(path.read_text(encoding="utf-8")).get("error")
    if error is None:
        told["done"].append(name)
    else:
        told["failed"][name] = error
        print(f"{name} failed: {error}", flush=True)


def _child(job: Job, setting: Setting, path: Path, head: dict[str, Any]) -> None:
    """Measure and write; whatever goes wrong is written too."""
    os.setpgid(0, 0)  # a group of its own, so that all of it can be stopped
    if setting.tiny:
        torch.set_num_threads(1)
    began = time.perf_counter()
    try:
        found = job.run(setting)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    result = {**head, "wall_seconds": time.perf_counter() - began, **found}
    write_whole(path, json.dumps(result, indent=1) + "\n")
    os._exit(0)


FIGURES = ("time_ratio", "tokens_per_second", "model_flops_utilisation", "peak_memory_bytes", "over_plan")
FURTHER = ("speedup_over_transformers_batched", "shared_prefix_speedup", "bitwise")


def table(folder: Path, told: dict[str, Any]) -> str:
    """The jobs of this run with their main figures, then what failed and what did not fit."""
    lines = [f"{'job':<30}{'ratio':>8}{'tokens/s':>11}{'MFU':>7}{'peak GB':>9}{'/ plan':>8}  further"]
    for name in told["done"]:
        found = json.loads(result_path(folder, name).read_text(encoding="utf-8"))
        ratio, rate, use, peak, plan = (found.get(figure) for figure in FIGURES)
        shown = [_cell(ratio, "{:.3f}", 8), _cell(rate, "{:,.0f}", 11), _cell(use, "{:.1%}", 7)]
        shown += [_cell(None if peak is None else peak / 1e9, "{:.2f}", 9), _cell(plan, "{:.3f}", 8)]
        more = ", ".join(f"{figure} {found[figure]}" for figure in FURTHER if figure in found)
        lines.append(f"{name:<30}{''.join(shown)}  {more}".rstrip())
    lines += [f"{name:<30}failed: {error}" for name, error in told["failed"].items()]
    lines += [f"{name:<30}left: {why}" for name, why in told["left"].items()]
    return "\n".join(lines)


def _cell(value: float | None, form: str, width: int) -> str:
    return f"{'-' if value is None else form.format(value):>{width}}"
