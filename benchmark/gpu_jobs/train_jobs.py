"""The training jobs: InstFree beside torchtune's stock step, VITask beside its plain form, the trainer's steps."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from gpu_jobs import step, training
from gpu_jobs.scripts import script
from gpu_jobs.setting import Setting
from gpu_jobs.step import peak_flops
from medtune.models.classifier.tsm import LabelledSet, TaskModel
from medtune.models.weights import save_hf

TOKENS, TINY_TOKENS = 512, 40
MINI = "medtune.models.mini"
DATA = "gpu_jobs.parts.pictures"
TRANSFORM = "gpu_jobs.parts.transform"
MANY_STEPS = 10_000  # the schedule's length, not what is run
PLAIN = {"checkpoint": None, "max_steps": MANY_STEPS, "gradient_accumulation_steps": 1, "export": "none"}
TINY_RUN: dict[str, Any] = {
    "base": "sft/mini_internvl",
    "checkpoint": None,
    "batch_size": 2,
    "max_steps": MANY_STEPS,
    "export": "none",
    "dataset": {"_component_": DATA, "size": 4, "side": 32, "words": 8},
}
LOW_RANK = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2, "lora_alpha": 4}
SMALL = {"vocab_size": 1024, "image_size": 32, "vision_layers": 1, "decoder_layers": 2}
IMAGE = {"path": "${asset:mini_tokenizer}", "image_size": 32}


def instfree(setting: Setting, batch_size: int, checkpointing: bool) -> dict[str, Any]:
    """InstFree on the 11B beside torchtune's stock step, and beside the plan of the paper's config."""
    options = argparse.Namespace(
        method="instfree",
        batch_size=batch_size,
        tokens=TINY_TOKENS if setting.tiny else TOKENS,
        optimizer="adamw",
        activation_checkpointing=checkpointing,
        encoder_mode="torchtune",
        rounds=setting.rounds,
        warmup=setting.warmup,
    )
    with training.config_file(_instfree_config(options, setting.tiny)) as path:
        estimate = training.planned(str(path))
    found = step.measure(options, step.TINY if setting.tiny else step.REAL, setting.device)
    ours = found["steps"]["instfree"]
    rates = (
        "median_seconds", "tokens_per_second", "samples_per_second", "model_flops", "model_flops_utilisation",
    )  # fmt: skip
    settings = {**vars(options), "peer": "torchtune's full_finetune_single_device, its loss step, on the same model"}
    return {
        **settings,
        **found,
        **{name: ours[name] for name in rates},
        **training.beside_plan(ours["peak_memory_bytes"], estimate),
        "reserved_memory_bytes": training.reserved(setting.device),
    }


def _instfree_config(options: argparse.Namespace, tiny: bool) -> dict[str, Any]:
    """The config of the run that :func:`step.build` makes; without a tokenizer a plan takes 512 tokens a sample."""
    values: dict[str, Any] = {
        "base": "instfree/mini" if tiny else "instfree/llama3_2_vision_11b_single_device",
        "batch_size": options.batch_size,
        "activation_checkpointing": options.activation_checkpointing,
        "optimizer": step.OPTIMIZERS[options.optimizer],
        "model": {"encoder_mode": options.encoder_mode},
        "objective": {"vectors": step.VECTORS},
        "transform": {"path": "no tokenizer is needed"},
    }
    if tiny:
        sizes = {"embed_dim": 32, "vision_layers": 2, "decoder_layers": 2, "heads": 2, "image_size": 16}
        values["model"] |= sizes
        values["checkpoint"] = None
        values["transform"]["image_size"] = 16
    return values


def sft_lora_llava(setting: Setting) -> dict[str, Any]:
    """Visual instruction tuning of LLaVA-1.5-7B with LoRA, rank 128, and the projection."""
    values: dict[str, Any] = {
        "base": "sft/llava1_5_7b_lora_single_device",
        **PLAIN,
        "transform": {"_component_": TRANSFORM, "model": "llava1_5_7b"},
        "dataset": {"_component_": DATA},
    }
    if setting.tiny:
        values = {
            **TINY_RUN,
            "model": {"_component_": f"{MINI}.lora_mini_llava", **LOW_RANK, **SMALL, "embed_dim": 32},
            "transform": {"_component_": f"{MINI}.mini_llava_transform", **IMAGE},
            "trainable": ["adapter", "projection"],
        }
    return training.measure(values, setting.rounds, setting.warmup)


def dpo_llava(setting: Setting) -> dict[str, Any]:
    """DPO on LLaVA-1.5-7B with LoRA on the language model, in the shared form beside rows of their own.

    Both forms encode an image once. ``precomputed`` is the paper's setting, with a trained tower and projection.
    """
    live = {"trainable": ["adapter"], "~learning_rates": None, "model": {"lora_parts": ["decoder"]}}
    forms = {
        "shared": {**live, "objective": {"reference": "adapters_off", "reference_cache": None}},
        "plain": {**live, "objective": {"reference": "adapters_off", "reference_cache": None, "form": "plain"}},
        "precomputed": {},
    }
    found = {
        name: training.measure(_dpo_config(setting.tiny, changes), setting.rounds, setting.warmup)
        for name, changes in forms.items()
    }
    shared, plain = found["shared"], found["plain"]
    ratios = {
        "time_ratio": shared["median_seconds"] / plain["median_seconds"],
        "precomputed_time_ratio": found["precomputed"]["median_seconds"] / plain["median_seconds"],
        "pairs_per_second": {name: one["samples_per_second"] for name, one in found.items()},
    }
    return {**shared, "peer": "each answer in a row of its own, one encode", **ratios, "forms": found}


def _dpo_config(tiny: bool, changes: dict[str, Any]) -> dict[str, Any]:
    pairs = {"_component_": "gpu_jobs.parts.pairs"}
    values: dict[str, Any] = {
        "base": "dpo/llava1_5_7b_lora_single_device",
        **PLAIN,
        "dataset": pairs,
        "transform": {"_component_": TRANSFORM, "model": "llava1_5_7b"},
    }
    if tiny:
        values = {
            **TINY_RUN,
            "base": "dpo/mini_llava",
            "model": {
                "_component_": f"{MINI}.lora_mini_llava",
                **LOW_RANK,
                **SMALL,
                "embed_dim": 32,
                "lora_parts": ["decoder"],
            },
            "transform": {"_component_": f"{MINI}.mini_llava_transform", **IMAGE},
            "dataset": {**pairs, "size": 4, "side": 32, "words": 8},
            "dataset_val": None,
            "trainable": ["adapter", "projection"],
            "~learning_rates": None,
        }
    merged = {
        key: {**values.get(key, {}), **change} if isinstance(change, dict) else change
        for key, change in changes.items()
    }
    return {**values, **merged}


def qlora_internvl(setting: Setting) -> dict[str, Any]:
    """Visual instruction tuning of InternVL3-8B with adapters on an NF4 base."""
    values: dict[str, Any] = {
        "base": "sft/internvl2_2b_lora_single_device",
        **PLAIN,
        "model": {"_component_": "medtune.models.internvl.qlora_internvl3_8b", "lora_dropout": 0.0},
        "transform": {"_component_": TRANSFORM, "model": "internvl3_8b"},
        "dataset": {"_component_": DATA},
    }
    if setting.tiny:
        model = {"_component_": f"{MINI}.qlora_mini_internvl", **LOW_RANK, **SMALL, "embed_dim": 128}
        values = {
            **TINY_RUN,
            "model": model,
            "transform": {"_component_": f"{MINI}.mini_internvl_transform", **IMAGE},
            "trainable": ["adapter"],
        }
    return training.measure(values, setting.rounds, setting.warmup)


def vitask(setting: Setting) -> dict[str, Any]:
    """A step of VITask's last stage beside its plain form, and the trainer's own steps beside the plan."""
    bench = script("vitask_step")
    sizes = ["--model", "internvl2_2b", "--dtype", "bfloat16", "--device", "cuda", "--batch-size", "4"]
    if setting.tiny:
        sizes = ["--embed-dim", "16", "--image-size", "64", "--decoder-layers", "2", "--batch-size", "2"]
        sizes += ["--tsm-layers", "1", "--tsm-dim", "16", "--tsm-image-size", "16"]
    options = bench.parse([*sizes, "--rounds", str(max(2, setting.rounds))])
    beside = bench.measured(options)
    with tempfile.TemporaryDirectory() as folder:
        _save_classifier(Path(folder), setting.tiny)
        run = training.measure(_vitask_config(folder, setting.tiny), setting.rounds, setting.warmup)
    card = peak_flops(training.card_name(setting.device))
    rate = beside["operations_per_second"]["medtune"]
    return {
        **run,
        "peer": "the plain form of Eq. 7, benchmark/vitask_step.py",
        **{name: beside[name] for name in ("time_ratio", "memory_ratio", "cached_time_ratio", "cached_memory_ratio")},
        "beside_plain_form": {**beside, "model_flops_utilisation": None if card is None else rate / card},
    }


def _save_classifier(folder: Path, tiny: bool) -> None:
    """A task-specific model with random weights, as the trainer reads one."""
    sets = {"pictures": LabelledSet("multi_class", ("a", "b", "c", "d"))}
    shape = {"patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 1}
    tsm = TaskModel("vit_tiny_patch16_224", sets, 16, arguments=shape) if tiny else None
    tsm = tsm or TaskModel("vit_base_patch16_224", sets, 224)
    save_hf(tsm.state_dict(), tsm.family, folder)


def _vitask_config(classifier: str, tiny: bool) -> dict[str, Any]:
    short = {"size": 64, "words": 6, "kinds": 4}  # the response names a class
    if not tiny:
        return {
            "base": "vitask/internvl2_2b_single_device",
            **PLAIN,
            "transform": {"_component_": TRANSFORM, "model": "internvl2_2b"},
            "dataset": {"_component_": DATA, "side": 224, **short},
            "objective": {"tsm": classifier},
        }
    return {
        **TINY_RUN,
        "model": {"_component_": f"{MINI}.lora_mini_internvl", **LOW_RANK, **SMALL, "embed_dim": 32},
        "transform": {"_component_": f"{MINI}.mini_internvl_transform", **IMAGE},
        "dataset": {"_component_": DATA, "side": 32, **short},
        "objective": {"_component_": "medtune.objectives.VITask", "tsm": classifier, "align_steps": 1},
        "trainable": ["adapter"],
    }
