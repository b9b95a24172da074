"""Output of a run: metrics.jsonl, a progress bar with an ETA, torchtune's metric loggers. Only ids and numbers."""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from medtune.config import Component, instantiate, to_shown
from medtune.config.environment import literal
from medtune.data.writing import write_whole
from medtune.errors import TrainingError
from medtune.progress import tqdm


class Telemetry:
    """Writes the metrics of a run; it does nothing on any process but the first.

    Args:
        folder: The run's output folder.
        loggers: Components of torchtune metric loggers.
        config: The run's config, passed to each logger.
        total: Steps of the whole run.
        done: Steps done before this start; lines that an earlier start wrote for later steps are removed.
        active: Whether this process writes.
    """

    def __init__(
        self, folder: Path, loggers: list[Component], config: Any, total: int, done: int, active: bool
    ) -> None:
        self.active = active
        if not active:
            return
        path = folder / "metrics.jsonl"
        _keep_lines_up_to(path, done)
        self.file = path.open("a", encoding="utf-8")
        self.loggers = [instantiate(logger) for logger in loggers]
        for logger in self.loggers:
            logger.log_config(OmegaConf.create(literal(to_shown(config))))
        self.bar = tqdm(total=total, initial=done, unit="step", file=sys.stderr, dynamic_ncols=True, mininterval=0.5)
        self.seconds = 0.0
        self.lap = time.perf_counter()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics for a step.

        Raises:
            TrainingError: If writing fails.
        """
        if not self.active:
            return
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        try:
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
            for logger in self.loggers:
                logger.log_dict(numbers, step=step)
        except OSError as error:
            raise TrainingError(
                f"step {step}: cannot write into {self.file.name} or a logger's file: {error}; free space, then resume"
            ) from error

    def step(self, stage: str, shown: dict[str, float]) -> None:
        """Move the progress bar by one step."""
        if self.active:
            self.bar.set_description(stage, refresh=False)
            self.bar.set_postfix({key: f"{value:.4g}" for key, value in shown.items()}, refresh=False)
            with contextlib.suppress(OSError):  # stderr may be a file, and a full disk must not end the run
                self.bar.update(1)

    def say(self, message: str) -> None:
        """Print a line without breaking the progress bar."""
        if self.active:
            tqdm.write(message, file=sys.stderr)

    def elapsed(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        lap = now - getattr(self, "lap", now)
        self.lap = now
        return lap

    def close(self) -> None:
        """Flush and close everything."""
        if self.active:
            for closed in (self.bar, self.file, *self.loggers):
                with contextlib.suppress(OSError):  # a full disk has already been reported
                    closed.close()


class Stopwatch:
    """Counts the seconds that a run has taken, over all its starts.

    A checkpoint carries the count, as it carries steps and tokens; what a killed start did after its last checkpoint is
    in none of them.
    """

    def __init__(self) -> None:
        self._begun: float | None = time.perf_counter()
        self._before = 0.0

    def go_on(self, before: float, finished: bool = False) -> None:
        """Add the seconds of earlier starts. Those of a finished run do not grow when it is started once more."""
        self._before = before
        if finished:
            self._begun = None

    @property
    def seconds(self) -> float:
        """Seconds of all starts so far, with what each needed to load and check."""
        return self._before + (0.0 if self._begun is None else time.perf_counter() - self._begun)


def _keep_lines_up_to(path: Path, step: int) -> None:
    """Remove the lines of steps that will be done again, and an incomplete last line."""
    kept: list[str] = []
    if step and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(f"{line}\n")
            except (ValueError, KeyError):
                continue
    write_whole(path, "".join(kept))
