"""BioMed-VITAL's stage 3: three configs that follow each other, on one GPU and on two, with the paper's values."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medtune.config import load_config
from medtune.config.composition import CONFIGS
from medtune.sweep.config import SweepConfig, chains
from medtune.sweep.run import run_chain, run_step
from medtune.training.config import TrainConfig
from medtune.training.plan import _launched_processes
from tests.test_sweep import config_class

SIZES = ("7b", "13b")
STAGES = {"_alignment": (1, 2.0e-3, 128), "": (3, 2.0e-5, 128), "_150k": (3, 2.0e-5, 128), "_vqa": (15, 2.0e-5, 64)}
"""Stage -> epochs, learning rate where all weights are trained, and samples in a step."""


def train(size: str, stage: str, mode: str = "") -> TrainConfig:
    return load_config(f"sft/llava1_5_{size}_biomed_vital{stage}{mode}", TrainConfig)


def read_and_touch(ran: list[tuple[str, Any]], _: Path, name: str, arguments: list[str]) -> None:
    """In place of a recipe: read its config with the overrides, and write what later steps look for."""
    ran.append((name, load_config(arguments[0], config_class(name), arguments[1:])))
    folder = Path(getattr(ran[-1][1], "output" if name == "evaluate" else "output_dir"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.jsonl").touch()


@pytest.mark.parametrize("mode", ["", "_distributed"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", SIZES)
def test_a_stage_has_the_papers_values_on_one_gpu_and_on_two(size: str, stage: str, mode: str) -> None:
    config, (epochs, rate, samples) = train(size, stage, mode), STAGES[stage]
    gpus = _launched_processes(CONFIGS / f"sft/llava1_5_{size}_biomed_vital{stage}{mode}.yaml")
    assert gpus == (2 if mode else 1)
    assert config.batch_size * config.gradient_accumulation_steps * gpus == samples
    assert (config.epochs, config.optimizer["weight_decay"]) == (epochs, 0.0)
    assert (config.schedule.kind, config.schedule.warmup_ratio) == ("cosine", 0.03)
    assert config.transform["max_seq_len"] == 2048
    adapters = size == "13b" and not mode and stage != "_alignment"
    parts = ["projection"] if stage == "_alignment" else ["adapter" if adapters else "decoder", "projection"]
    assert sorted(config.trainable) == parts
    assert config.model.path == f"medtune.models.llava.{'lora_' if adapters else ''}llava1_5_{size}"
    assert config.optimizer["lr"] == (2.0e-4 if adapters else rate)
    paged = not adapters and not mode and stage != "_alignment"
    assert ("8bit" in config.optimizer.path) == paged, "8-bit moments cannot be sharded"


@pytest.mark.parametrize("size", SIZES)
def test_the_launch_line_of_a_stage_names_the_weights_of_the_one_before(size: str) -> None:
    for mode in ("", "_distributed"):
        for before, stage in (("_alignment", ""), ("_alignment", "_150k"), ("", "_vqa")):
            header = (CONFIGS / f"sft/llava1_5_{size}_biomed_vital{stage}{mode}.yaml").read_text()
            weights = f"{train(size, before, mode).output_dir}/weights"
            assert f"checkpoint={weights}\n" in header, (stage, mode)


def test_the_150k_are_llava_meds_10k_and_60k_and_what_was_selected() -> None:
    plain, mixed = train("7b", ""), train("7b", "_150k")
    parts = mixed.dataset["parts"]
    assert [Path(name).name for name in parts[0]["source"]] == [
        "llava_med_instruct_10k.json", "llava_med_instruct_60k_inline_mention.json",
    ]  # fmt: skip
    assert parts[1] == plain.dataset and all(part.get("weight", 1) == 1 for part in parts)
    same = {**vars(plain), "dataset": None, "output_dir": None}
    assert same == {**vars(mixed), "dataset": None, "output_dir": None}


@pytest.mark.parametrize("size", SIZES)
def test_table_4_chains_the_stages_and_scores_three_benchmarks(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, Any]] = []
    monkeypatch.setattr("medtune.sweep.run.run_recipe", partial(read_and_touch, ran))
    sweep = load_config(f"sweep/biomed_vital_table4_{size}", SweepConfig, [f"output_dir={tmp_path}", "seeds=[3]"])
    for step in sweep.before:
        run_step(sweep, step)
    assert [name for name, _ in ran] == ["prepare"] * 3 + ["sft"] and ran[1][1].data["languages"] == ["en"]
    aligned = ran[-1][1]
    assert aligned.trainable == ["projection"]
    for chain, source in zip(chains(sweep), ("source", "parts"), strict=True):
        ran.clear()
        run_chain(sweep, chain)
        tuned, *rest = ran
        assert tuned[1].checkpoint == f"{aligned.output_dir}/weights" and source in tuned[1].dataset
        assert [name for name, _ in rest] == ["sft", "predict", "evaluate"] * 3
        assert {one.seed for name, one in ran if name == "sft"} == {3}
        for place, benchmark in enumerate(("slake", "path_vqa", "vqa_rad")):
            (_, learnt), (_, asked), (_, scored) = rest[3 * place : 3 * place + 3]
            assert learnt.checkpoint == f"{tuned[1].output_dir}/weights" and learnt.epochs == 15
            assert asked.checkpoint == f"{learnt.output_dir}/weights"
            assert asked.transform["path"] == f"models/llava-1.5-{size}-hf"
            assert Path(scored.predictions).parent == Path(asked.output_dir)
            files = (learnt.dataset["source"], asked.questions["source"], f"{scored.prepared_dir}/x")
            assert {Path(file).parent.name for file in files} == {benchmark}
            assert learnt.dataset["image_root"] == asked.questions["image_root"]
        assert scored.output == str(chain.folder)


def test_table_2_compares_shares_and_ablations_of_the_same_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, Any]] = []
    monkeypatch.setattr("medtune.sweep.run.run_recipe", partial(read_and_touch, ran))
    sweep = load_config("sweep/biomed_vital_table2", SweepConfig, [f"output_dir={tmp_path}"])
    for step in sweep.before:
        run_step(sweep, step)
    made = {Path(one.output_dir).name: (name, one) for name, one in ran}
    pools = {name: one for name, (recipe, one) in made.items() if recipe == "curate"}
    assert {name: (one.limit, one.demonstrations is not None, one.per_modality) for name, one in pools.items()} == {
        "shown": (80_000, True, 2), "shown_first": (60_000, True, 2),
        "plain": (80_000, False, 2), "plain_first": (60_000, False, 2),
    }  # fmt: skip
    assert pools["shown"].cache == pools["shown_first"].cache != pools["plain"].cache == pools["plain_first"].cache
    taken = {
        name: (Path(one.data).parent.name, one.choice.count)
        for name, (kind, one) in made.items()
        if kind == "selection"
    }
    assert taken == {
        "top_10": ("shown", 6000), "top_50": ("shown", 30_000), "top_80": ("shown", 48_000),
        "top_100": ("shown", 60_000), "plain_top": ("plain", 60_000),
    }  # fmt: skip
    sources = {}
    for chain in chains(sweep):
        ran.clear()
        run_chain(sweep, chain)
        assert [name for name, _ in ran] == ["sft", "predict", "judge", "evaluate"]
        tuned, asked, judged, scored = (one for _, one in ran)
        assert tuned.checkpoint == f"{tmp_path}/alignment/weights" and asked.checkpoint == f"{tuned.output_dir}/weights"
        assert judged.score == f"{asked.output_dir}/predictions.jsonl" and scored.protocols == ["chat"]
        assert scored.predictions == f"{judged.output_dir}/graded.jsonl" and scored.output == str(chain.folder)
        sources[chain.variant.name] = Path(tuned.dataset["source"]).parent.name
    assert sources == {
        "llava_med": "data", "top_10": "top_10", "top_50": "top_50", "top_80": "top_80", "full": "top_100",
        "a0": "plain_first", "a1": "shown_first", "a2": "plain_top",
    }  # fmt: skip
