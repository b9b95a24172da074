"""A question file during whose reading a process may die, as the environment says."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from medtune.datasets import jsonl_dataset
from medtune.errors import DataError

VARIABLE = "MEDTUNE_TEST_DIE"


def dying_dataset(source: str, **options: Any) -> Any:
    """``jsonl_dataset``; ``MEDTUNE_TEST_DIE=HOW:RANK:FOLDER:PROCESSES`` ends process RANK after some answers.

    It happens once PROCESSES of them have written an answer into FOLDER; HOW is ``kill``, ``raise`` or ``wait``, which
    lets it hang.
    """
    dataset = jsonl_dataset(source, **options)
    how, rank, folder, processes = (os.environ.get(VARIABLE) or ":::").split(":")
    if how and rank == os.environ.get("RANK", "0"):
        opened, plain = [0], dataset.open_images

        def open_images(sample: Any) -> Any:
            opened[0] += 1
            if opened[0] > 2:
                wait_for_answers(Path(folder), int(processes))
                if how == "wait":
                    time.sleep(120)
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise DataError(f"{sample.id}: the disk with the images has gone")
            return plain(sample)

        dataset.open_images = open_images
    return dataset


def wait_for_answers(folder: Path, processes: int) -> None:
    """Wait until as many prediction files of a folder hold an answer.

    Raises:
        AssertionError: If that takes a minute.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if sum(b"\n" in path.read_bytes() for path in folder.glob("predictions*.jsonl")) >= processes:
            return
        time.sleep(0.02)
    raise AssertionError("not every process has written an answer")
