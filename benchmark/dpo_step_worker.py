"""One side of benchmark/dpo_step.py in a process of its own: takes steps when it is told to, and measures them.

It imports nothing but torch, because TRL's environment has no medtune. A worker reads one command per line and answers
each with one line of JSON: ``step`` takes a step, ``count`` takes one with counters, ``memory`` tells how the process
has grown since its first step, ``end`` ends it.
"""

import contextlib
import ctypes
import gc
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

RESET_PEAK = "5"  # proc(5): resets the peak resident set size
KIB = 1024
FLAT = 4  # dimensions of a batch of pictures without tiles


class Worker:
    """Commands of the parent, and what they measure.

    Args:
        tower: The image encoder; reads [n, 3, h, w], or [b, images, tiles, 3, h, w].
        embeddings: The word embeddings of the language model; their input has one entry per token of a row.
    """

    def __init__(self, tower: nn.Module, embeddings: nn.Module) -> None:
        self.tower, self.embeddings = tower, embeddings
        self.replies = _only_replies()
        self.resident: int | None = None
        self._open: contextlib.ExitStack | None = None
        self._found: dict[str, Any] = {}
        self._began = 0.0

    def wait(self) -> None:
        """Answer commands until one asks for a step; returns when that step is to begin.

        Raises:
            SystemExit: If the parent has no more commands.
        """
        if self.resident is None:
            self._reply({"ready": True, "torch": torch.__version__})
        for line in sys.stdin:
            command = line.strip()
            if command == "end":
                break
            if command == "memory":
                peak = _status("VmHWM")
                self._reply({"growth_bytes": peak - (self.resident or 0), "process_bytes": peak})
                continue
            if self.resident is None:
                self._start_memory()
            self._found, self._open = {}, contextlib.ExitStack()
            if command == "count":
                self._open.enter_context(self._counted())
            self._began = time.process_time()
            return
        raise SystemExit(0)

    def done(self, loss: float) -> None:
        """The step that :meth:`wait` began has ended."""
        seconds = time.process_time() - self._began
        assert self._open is not None
        self._open.close()
        self._reply({"loss": loss, "seconds": seconds, **self._found})

    def _start_memory(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
        self.resident = _status("VmRSS")

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count images that are encoded, tokens that the language model reads, and the peak of all tensors."""
        found = {"encodes": 0, "lm_tokens": 0}

        def encode(_: nn.Module, args: tuple, kwargs: dict) -> None:
            pixels = args[0] if args else kwargs.get("pixel_values", kwargs.get("images"))
            found["encodes"] += pixels.shape[0] * (pixels.shape[1] if pixels.dim() > FLAT else 1)

        def embed(_: nn.Module, args: tuple) -> None:
            found["lm_tokens"] += args[0].numel()

        hooks = [
            self.tower.register_forward_pre_hook(encode, with_kwargs=True),
            self.embeddings.register_forward_pre_hook(embed),
        ]
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            yield
        for hook in hooks:
            hook.remove()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        found["tensor_bytes"] = max(itertools.accumulate(event.nbytes() for event in events))
        self._found = found

    def _reply(self, values: dict[str, Any]) -> None:
        self.replies.write(json.dumps(values) + "\n")
        self.replies.flush()


def _only_replies() -> TextIO:
    """The stream to the parent; what libraries print goes to the error stream."""
    replies, sys.stdout = sys.stdout, sys.stderr
    return replies


def _status(name: str) -> int:
    """A size of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * KIB
    raise RuntimeError(f"/proc/self/status does not tell {name}; this benchmark needs Linux")
