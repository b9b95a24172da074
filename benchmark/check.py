"""Holds the benchmarks' figures against a committed baseline: a figure that became worse ends with status 1.

    python benchmark/check.py                    # run the benchmarks (some minutes each), then compare
    python benchmark/check.py --only train_step vitask_step
    python benchmark/check.py --results FOLDER   # compare the JSON files of a folder, nothing is run
    python benchmark/check.py --update [--results FOLDER]    # write benchmark/baseline.json from those files

Only the worse direction fails: ratios by more than 10%, memory by more than 2%, seconds (which belong to a machine) by
more than 25%, equal answers by anything. A benchmark without a result, without a figure, or with other options or
another card than the baseline's has not passed. One that has no baseline, as those of a GPU before their first run, is
named and decides nothing.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
BASELINE = FOLDER / "baseline.json"
TOLERANCES = {"ratio": 0.10, "memory": 0.02, "seconds": 0.25, "exact": 0.0}
UNRELATED = (
    "--rounds",
    "--out",
    "--output",
    "--trl",
    "--environment",
)  # options that decide nothing about what is measured
PASSED, WORSE, BETTER = "passed", "worse", "better"


@dataclass(frozen=True)
class Figure:
    """A number that is held against the baseline.

    Attributes:
        path: Keys that lead to it in a result.
        kind: Decides how much worse it may be; a key of ``TOLERANCES``.
        higher: Whether a higher value is better.
    """

    path: tuple[str, ...]
    kind: str = "ratio"
    higher: bool = False

    @property
    def name(self) -> str:
        """The path as it is printed."""
        return ".".join(self.path)

    def of(self, result: Mapping[str, Any]) -> float | None:
        """The value in a result; None where it is not there."""
        value: Any = result
        for key in self.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return None if value is None or isinstance(value, bool | str) else float(value)

    def verdict(self, base: float, value: float) -> str:
        """``passed``, ``worse``, or ``better`` where it is better by more than the tolerance."""
        if not math.isfinite(value):
            return WORSE
        room = TOLERANCES[self.kind] * abs(base)
        gain = value - base if self.higher else base - value
        return WORSE if gain < -room else BETTER if gain > room else PASSED


def _shared(model: str) -> Figure:
    return Figure(("shared_prefix", model, "shared_prefix_speedup"), higher=True)


STEP = (Figure(("time_ratio",)), Figure(("memory_ratio",), "memory"))
CACHED = (Figure(("cached_time_ratio",)), Figure(("cached_memory_ratio",), "memory"))


def _dpo(case: str, *names: str) -> tuple[Figure, ...]:
    kinds = {"tensor_peak_ratio": "memory", "encodes_per_pair": "exact", "lm_tokens_ratio": "exact"}
    return tuple(Figure(("cases", case, name), kinds.get(name, "ratio")) for name in names)


_COUNTED = ("tensor_peak_ratio", "encodes_per_pair", "lm_tokens_ratio")
_TIMED = ("time_ratio", "precomputed_time_ratio")
FIGURES: dict[str, tuple[Figure, ...]] = {
    "train_step": STEP,
    "vitask_step": STEP + CACHED,
    "dpo_step": (
        *_dpo("llava_336", *_TIMED, *_COUNTED),
        *_dpo("llava_224", *_TIMED, *_COUNTED),
        *_dpo("llama3_2_vision_224", *_TIMED, *_COUNTED),
    ),
    "predict": (
        Figure(("speedup",), higher=True),
        Figure(("speedup_over_transformers_batched",), higher=True),
        _shared("internvl"),
        _shared("llava"),
        Figure(("same_answers", "medtune_batched"), "exact", higher=True),
    ),
    "start": (Figure(("remembered_seconds_377110",), "seconds"), Figure(("one_changed_seconds_377110",), "seconds")),
    "data": (Figure(("ratio_to_pillow", "workers_0"), higher=True),),
    "routing": (
        Figure(("speedup_vs_merge",), higher=True),
        Figure(("relative_to_single_adapter",), higher=True),
        Figure(("same_answers", "mixed_batch"), "exact", higher=True),
        Figure(("memory", "memory_over_base_and_adapters"), "memory"),
    ),
    "serve": (
        Figure(("speedup",), higher=True),
        Figure(("lost", "medtune"), "exact"),
        Figure(("same_answers",), "exact", higher=True),
    ),
    "families": (
        *(
            figure
            for family in ("gemma3", "internvl", "llama3_2_vision", "llava", "qwen2_5_vl")
            for figure in (
                Figure(("families", family, "time_ratio")),
                Figure(("families", family, "memory_ratio"), "memory"),
            )
        ),
        Figure(("vision", "vision_time_ratio")),
    ),
    "curation": (
        Figure(("requests", "throughput_ratio"), higher=True),
        Figure(("features", "feature_ratio"), higher=True),
        Figure(("selection", "processor_seconds"), "seconds"),
        Figure(("selection", "peak_memory_bytes"), "memory"),
        Figure(("annotation", "p95_ms"), "seconds"),
        Figure(("annotation", "lost"), "exact"),
    ),
}
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "train_step": ("--out", ["--rounds", "40"]),
    "vitask_step": ("--out", []),
    "dpo_step": ("--out", []),
    "predict": ("--output", ["--rounds", "7"]),
    "start": ("--out", []),
    "data": ("--out", []),
    "routing": ("--out", ["--rounds", "3", "--questions", "32"]),
    "serve": ("--output", []),
    "families": ("--out", []),
    "curation": ("--out", []),
}
"""Benchmark -> the option that names its result, and the options that it is run with."""

_RATE = (Figure(("tokens_per_second",), higher=True), Figure(("peak_memory_bytes",), "memory"))
_BESIDE = (Figure(("time_ratio",)), *_RATE)
GPU: dict[str, tuple[Figure, ...]] = {
    "gpu_instfree_11b": _BESIDE,
    "gpu_instfree_11b_batch8": _BESIDE,
    "gpu_instfree_11b_no_checkpointing": _BESIDE,
    "gpu_vitask_internvl2_2b": (*_BESIDE, Figure(("cached_time_ratio",))),
    "gpu_sft_lora_llava_7b": _RATE,
    "gpu_dpo_llava_7b": (*_BESIDE, Figure(("precomputed_time_ratio",))),
    "gpu_qlora_internvl3_8b": _RATE,
    "gpu_predict_11b": (Figure(("speedup_over_transformers_batched",), higher=True),),
    "gpu_predict_8b_shared": (Figure(("shared_prefix_speedup",), higher=True),),
    "gpu_resume": (Figure(("resumed", "largest_loss_difference"), "exact"),),
}
"""The jobs of benchmark/gpu.py. They are compared where a result lies ready, and never run from here."""


@dataclass(frozen=True)
class Line:
    """One line of the table; a line without a figure says why the benchmark has none."""

    benchmark: str
    figure: str
    verdict: str
    base: float | None = None
    value: float | None = None
    allowed: str = ""
    decides: bool = True

    @property
    def failed(self) -> bool:
        """Whether it ends the check with status 1."""
        return self.decides and self.verdict not in (PASSED, BETTER)


def read(path: Path) -> dict[str, Any] | None:
    """A result; None where there is no file, or one of a run that failed."""
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    return None if "error" in result or result.get("tiny") else result


def options_of(command: str) -> list[str]:
    """The options of a benchmark's command that decide what is measured, sorted."""
    words, kept = command.split()[2:], []
    while words:
        word = words.pop(0)
        value = [words.pop(0)] if words and not words[0].startswith("--") else []
        if word.partition("=")[0] not in UNRELATED:
            kept.append(" ".join([word, *value]))
    return sorted(kept)


def baseline_of(folder: Path) -> dict[str, Any]:
    """The baseline that a folder of results gives; what was never run is null."""
    found: dict[str, Any] = {}
    for name, figures in {**FIGURES, **GPU}.items():
        result = read(folder / f"{name}.json")
        if result is None:
            found[name] = None
            continue
        values = {figure.name: figure.of(result) for figure in figures}
        found[name] = {
            "command": result.get("command", ""),
            "commit": result.get("commit"),
            "hardware": result.get("hardware"),
            "figures": {key: value for key, value in values.items() if value is not None},
        }
    return found


def compare(baseline: Mapping[str, Any], folder: Path, names: Sequence[str]) -> Iterator[Line]:
    """The table's lines for the benchmarks named."""
    for name in names:
        kept, result = baseline.get(name), read(folder / f"{name}.json")
        if kept is None:
            told = "no baseline" if result is not None else "never run"
            yield Line(name, "", told, decides=False)
        elif result is None:
            yield Line(name, "", "not run", decides=name in FIGURES)
        elif name in FIGURES and options_of(result.get("command", "")) != options_of(kept["command"]):
            yield Line(name, "", f"other options than {' '.join(options_of(kept['command'])) or 'none'}")
        elif name in GPU and _card(result) != _card(kept):
            yield Line(name, "", f"another card than {_card(kept)}: {_card(result)}")
        else:
            yield from _figures(name, kept["figures"], result)


def _card(result: Mapping[str, Any]) -> str | None:
    return (result.get("hardware") or {}).get("gpu")


def _figures(name: str, kept: Mapping[str, float], result: Mapping[str, Any]) -> Iterator[Line]:
    for figure in {**FIGURES, **GPU}[name]:
        value, base = figure.of(result), kept.get(figure.name)
        if base is None:
            yield Line(name, figure.name, "no baseline", value=value, decides=False)
        elif value is None:
            yield Line(name, figure.name, "missing", base=base)
        else:
            room = TOLERANCES[figure.kind]
            allowed = f"{'-' if figure.higher else '+'}{room:.0%}"
            yield Line(name, figure.name, figure.verdict(base, value), base, value, allowed)


def table(lines: Sequence[Line]) -> str:
    """The comparison as text."""
    rows = [("benchmark", "figure", "baseline", "now", "change", "allowed", "")]
    for line in lines:
        change = "" if not line.base or line.value is None else f"{line.value / line.base - 1:+.1%}"
        numbers = ("" if number is None else f"{number:.4g}" for number in (line.base, line.value))
        rows.append((line.benchmark, line.figure, *numbers, change, line.allowed, line.verdict))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 1, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def run(name: str, folder: Path) -> None:
    """Run a benchmark into ``folder``; one that fails leaves no result."""
    option, arguments = COMMANDS[name]
    script = FOLDER / f"{name}.py"
    print(f"running {script.name} {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(script), *arguments, option, str(folder / f"{name}.json")]
    done = subprocess.run(command, cwd=FOLDER.parent, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        print(f"{script.name} ended with status {done.returncode}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, or rewrite the baseline."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, help="folder of ready results; absent: the benchmarks are run")
    parser.add_argument("--only", nargs="+", choices=[*FIGURES, *GPU], help="these benchmarks alone")
    parser.add_argument("--update", action="store_true", help="write the baseline from --results (benchmark/results)")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    options = parser.parse_args(arguments)
    if options.results is not None and not options.results.is_dir():
        parser.error(f"--results: there is no folder {options.results}")
    if options.update:
        kept = baseline_of(options.results or RESULTS)
        if options.only:
            kept = {**json.loads(options.baseline.read_text(encoding="utf-8")), **{n: kept[n] for n in options.only}}
        options.baseline.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(f"{options.baseline}: {sum(one is not None for one in kept.values())} of {len(kept)} benchmarks")
        return 0
    baseline = json.loads(options.baseline.read_text(encoding="utf-8"))
    names = options.only or [*FIGURES, *GPU]
    with tempfile.TemporaryDirectory() as made:
        folder = options.results or Path(made)
        if options.results is None:
            for name in (name for name in names if name in COMMANDS):
                run(name, folder)
        lines = list(compare(baseline, folder, names))
    print(table(lines))
    failed = sorted({line.benchmark for line in lines if line.failed})
    print(f"not passed: {', '.join(failed)}" if failed else "nothing is worse than the baseline allows")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
