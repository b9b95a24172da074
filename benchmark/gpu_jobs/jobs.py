"""The list of jobs, most valuable first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_jobs import answers, resume, train_jobs
from gpu_jobs.setting import Setting


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        what: what it answers, in a line.
        minutes: what it is reckoned to take on an 80 GB GPU, from its process's start to its end; not measured so far.
        run: gives the figures.
    """

    what: str
    minutes: float
    run: Callable[[Setting], dict[str, Any]]


JOBS: dict[str, Job] = {
    "instfree_11b": Job(
        "InstFree on Llama-3.2-11B-Vision, batch 2, beside torchtune's stock step",
        1.0,
        lambda setting: train_jobs.instfree(setting, 2, checkpointing=True),
    ),
    "instfree_11b_batch8": Job(
        "the same with batch 8",
        1.3,
        lambda setting: train_jobs.instfree(setting, 2 if setting.tiny else 8, checkpointing=True),
    ),
    "instfree_11b_no_checkpointing": Job(
        "the same with batch 2, without activation checkpointing",
        0.9,
        lambda setting: train_jobs.instfree(setting, 2, checkpointing=False),
    ),
    "vitask_internvl2_2b": Job("VITask on InternVL2-2B beside the plain form of its equation", 1.2, train_jobs.vitask),
    "sft_lora_llava_7b": Job("visual instruction tuning of LLaVA-1.5-7B with LoRA", 0.8, train_jobs.sft_lora_llava),
    "dpo_llava_7b": Job(
        "DPO on LLaVA-1.5-7B with LoRA: shared prompts beside rows of their own, and precomputed references",
        2.0,
        train_jobs.dpo_llava,
    ),
    "qlora_internvl3_8b": Job("visual instruction tuning of InternVL3-8B with QLoRA", 0.9, train_jobs.qlora_internvl),
    "predict_11b": Job(
        "answers per second of the 11B, 64 prompts, beside transformers' generate", 1.6, answers.predict_11b
    ),
    "predict_8b_shared": Job(
        "answers per second of InternVL3-8B, twelve questions on each picture, with and without shared prompts",
        0.9,
        answers.predict_8b_shared,
    ),
    "resume": Job("a run that is killed and resumed beside one that is not: bitwise, or how far", 1.0, resume.resume),
}
"""A job's name and the job. Models have random weights; nothing is downloaded."""
