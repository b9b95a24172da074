"""Sweeps of InstFree's tables and figures on the paper's model: the paper's variants, one data set each."""

from pathlib import Path
from typing import Any

import pytest

from medtune.config import load_config
from medtune.errors import ConfigError
from medtune.sweep.config import SweepConfig, chains
from medtune.sweep.run import run_chain, run_step
from medtune.training.config import TrainConfig
from tests.test_sweep import config_class, trained

FULL = {"wbcatt": ("", None), "skincon": ("_skincon", 560), "cbis_ddsm": ("_cbis_ddsm", 560)}
"""Data sets of the papers' Tables 1, 2 and 4: the infix of their configs, and the side of the padded square."""


@pytest.mark.parametrize("name", FULL)
def test_the_full_sweeps_hold_the_papers_variants_with_its_values(name: str) -> None:
    tables = trained(f"sweep/instfree_{name}_tables")
    found = {
        variant: (one.objective["mode"], one.objective["shuffle_separator"], one.sampling)
        for variant, one in tables.items()
    }
    assert found == {
        "ft": ("text", None, "uniform"),
        "instfree": ("momentum", None, "uniform"),
        "instfree_rs": ("momentum", ",", "uniform"),
        "fix": ("fixed", None, "uniform"),
        "update": ("update", None, "uniform"),
        "instfree_bal": ("momentum", None, "balanced"),
        "instfree_rs_blank": ("momentum", " ", "uniform"),
        "ft_rs": ("text", ",", "uniform"),
        "ft_rand": ("random_text", None, "uniform"),
    }
    alphas = {one.objective["alpha"] for one in trained(f"sweep/instfree_{name}_alpha").values()}
    assert alphas == {0.9, 0.99, 0.999, 0.9999}
    vectors = {one.objective["vectors"] for one in trained(f"sweep/instfree_{name}_vectors").values()}
    assert vectors == {1, 2, 4, 8, 16, 32}
    infix, square = FULL[name]
    sweep = load_config(f"sweep/instfree_{name}_tables", SweepConfig)
    assert sweep.seeds == [0, 1, 2] and sweep.weights == "best"
    for one in tables.values():
        assert one.questions is not None and one.monitor == "multiple_choice/accuracy_micro"
        assert one.dataset_val is not None
        places = {Path(node["source"]).parent for node in (one.dataset, one.dataset_val, one.questions.source)}
        assert places == {Path(sweep.prepared_dir)}, "one folder of prepared data"
        for node in (one.dataset, one.dataset_val, one.questions.source):
            assert node.get("pad_to_square") == square and node["image_root"] == sweep.image_root
    asked = load_config(sweep.predict, config_class("predict"))
    assert asked.questions.get("pad_to_square") == square
    plain = load_config(f"instfree/llama3_2_vision_11b{infix}_single_device", TrainConfig)
    chosen = load_config(sweep.train, TrainConfig)
    for key in ("model", "objective", "optimizer", "trainable", "epochs", "batch_size", "dataset", "dataset_val"):
        assert getattr(chosen, key) == getattr(plain, key), key


def test_the_sweep_of_table_3_shuffles_sections_in_one_variant() -> None:
    units = {
        name: (one.objective["shuffle_unit"], one.objective.get("shuffle_separator"))
        for name, one in trained("sweep/instfree_mimic_cxr_table3").items()
    }
    assert units == {"instfree": ("separator", None), "instfree_rs": ("section", None)}


def test_a_sweep_may_ask_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("medtune.sweep.run.run_recipe", lambda _, name, arguments: calls.append((name, arguments)))
    for weights in ("weights", "best"):
        config = load_config("sweep/mini_wbcatt", SweepConfig, [f"output_dir={tmp_path}", f"weights={weights}"])
        for chain in chains(config)[:2]:
            run_chain(config, chain)
        asked = [arguments for name, arguments in calls if name == "predict"]
        assert not any(argument.startswith("checkpoint=") for argument in asked[0]), "the untuned base has no run"
        assert f"checkpoint={tmp_path / 'ft' / weights}" in asked[1]
        calls.clear()
    with pytest.raises(ConfigError, match="weights"):
        load_config("sweep/mini_wbcatt", SweepConfig, ["weights=first"])


STLLAVA = {"table2": "virtual_user_single_device", "table4": "virtual_user_benchmarks"}
"""STLLaVA-Med's tables, and the ends of the names of their stage 1."""
BENCHMARKS = ("vqa_rad", "slake", "path_vqa")


@pytest.mark.parametrize("table", STLLAVA)
def test_stllava_meds_tables_score_one_stage_1_and_its_dpo_on_three_benchmarks(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, Any]] = []

    def run(_: Path, name: str, arguments: list[str]) -> None:
        """Read the config with its overrides, and write what later steps look for."""
        ran.append((name, load_config(arguments[0], config_class(name), arguments[1:])))
        folder = Path(getattr(ran[-1][1], "output" if name == "evaluate" else "output_dir"))
        folder.mkdir(parents=True, exist_ok=True)
        if name == "dpo":
            (folder / "weights").mkdir()
        if name == "predict":
            (folder / "predictions.jsonl").touch()

    monkeypatch.setattr("medtune.sweep.run.run_recipe", run)
    sweep = load_config(f"sweep/stllava_med_{table}", SweepConfig, [f"output_dir={tmp_path}"])
    for step in sweep.before:
        run_step(sweep, step)
    assert [name for name, _ in ran] == ["prepare", "prepare", "prepare", "sft"] and ran[1][1].data["languages"] == [
        "en"
    ]
    assert [Path(one.output_dir).name for _, one in ran[:3]] == list(BENCHMARKS)
    stage_1 = Path(ran[3][1].output_dir) / "weights"
    assert sweep.train == f"sft/sq_llava_7b_{STLLAVA[table]}"
    assert ran[3][1].objective["virtual_user"] == "sampled", "it learns to ask"

    llava, sq_llava, without, tuned = chains(sweep)
    for chain, builder, weights in (
        (llava, "llava1_5_7b", "models/llava-1.5-7b-hf"),
        (sq_llava, "sq_llava_7b", "models/sq-llava-7b"),
    ):
        ran.clear()
        run_chain(sweep, chain)
        predicted = [one for name, one in ran if name == "predict"]
        assert [name for name, _ in ran] == ["predict", "evaluate"] * 3
        assert {str(one.checkpoint) for one in predicted} == {weights}
        assert {one.model["_component_"].rpartition(".")[2] for one in predicted} == {builder}
        scored = [Path(one.prepared_dir).name for name, one in ran if name == "evaluate"]
        assert sorted(scored) == sorted(BENCHMARKS) and scored[-1] == "vqa_rad"
    for chain in (without, tuned):
        ran.clear()
        run_chain(sweep, chain)
        if chain is tuned:
            asked, judged, pairs = (ran.pop(0) for _ in range(3))
            assert [name for name, _ in (asked, judged, pairs)] == ["self_question", "judge", "dpo"]
            assert asked[1].checkpoint == pairs[1].checkpoint == str(stage_1)
            assert Path(judged[1].candidates).parent == Path(asked[1].output_dir)
            assert Path(pairs[1].dataset["source"]).parent == Path(judged[1].output_dir)
            assert pairs[1].dataset["image_root"] == judged[1].image_root == asked[1].dataset["image_root"]
            stage_2 = str(Path(pairs[1].output_dir) / "weights")
        answered, scored = ([one for name, one in ran if name == wanted] for wanted in ("predict", "evaluate"))
        assert {one.checkpoint for one in answered} == {str(stage_1) if chain is without else stage_2}
        for prediction, score in zip(answered, scored, strict=True):
            assert Path(score.predictions).parent == Path(prediction.output_dir)
            assert Path(prediction.questions["source"]).parent == Path(score.prepared_dir)
        assert sorted(Path(one.prepared_dir).name for one in scored) == sorted(BENCHMARKS)
        assert (scored[-1].output, Path(scored[-1].prepared_dir).name) == (str(chain.folder), "vqa_rad")


def test_table_4_trains_on_the_benchmarks_questions_too_and_differs_in_nothing_else() -> None:
    zero_shot, tuned = (load_config(f"sft/sq_llava_7b_{name}", TrainConfig) for name in STLLAVA.values())
    parts = tuned.dataset["parts"]
    assert parts[0] == zero_shot.dataset
    assert [Path(part["source"]) for part in parts[1:]] == [
        Path("prepared") / name / "train.jsonl" for name in BENCHMARKS
    ]
    same = {**vars(zero_shot), "dataset": None, "output_dir": None}
    assert same == {**vars(tuned), "dataset": None, "output_dir": None}


def test_dpo_on_sq_llava_has_the_values_of_dpo_on_llava_and_a_reference_of_its_own() -> None:
    single, four = (
        load_config(f"dpo/sq_llava_7b_lora_{name}", TrainConfig) for name in ("single_device", "distributed")
    )
    llava = load_config("dpo/llava1_5_7b_lora_single_device", TrainConfig)
    for key in ("trainable", "learning_rates", "optimizer", "schedule", "epochs", "dataset", "batch_size"):
        assert getattr(single, key) == getattr(four, key) == getattr(llava, key), key
    assert (
        single.batch_size * single.gradient_accumulation_steps == 4 * four.batch_size * four.gradient_accumulation_steps
    )
    for one in (single, four):
        assert one.model == {**llava.model, "_component_": "medtune.models.sq_llava.lora_sq_llava_7b"}
        assert "projection" in one.trainable and one.objective["reference"] == "precomputed", "adapters_off is refused"
        assert Path(one.objective["reference_cache"]).parent == Path(one.output_dir)


def ran_by(
    name: str, only: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> dict[str, list[tuple[str, Any]]]:
    """Variant and seed -> recipes and configs of its steps, of the variants whose name begins with ``only``."""
    found: dict[str, list[tuple[str, Any]]] = {}

    def run(_: Path, recipe: str, arguments: list[str]) -> None:
        config = load_config(arguments[0], config_class(recipe), arguments[1:])
        found[current].append((recipe, config))
        out = Path(getattr(config, "output" if recipe == "evaluate" else "output_dir"))
        out.mkdir(parents=True, exist_ok=True)
        if recipe == "predict":
            (out / "predictions.jsonl").touch()
        elif recipe != "evaluate":
            (out / "weights").mkdir(exist_ok=True)

    monkeypatch.setattr("medtune.sweep.run.run_recipe", run)
    sweep = load_config(name, SweepConfig, [f"output_dir={folder}", *overrides])
    for chain in chains(sweep):
        if chain.variant.name.startswith(only):
            current = chain.folder.name
            found[current] = []
            run_chain(sweep, chain)
    return found


TABLE_1 = {
    "medgemma": ("models/medgemma-4b-it", "medgemma_4b"),
    "qwen2_5_vl": ("models/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl_3b"),
    "pubmedvision": ("models/HuatuoGPT-Vision-7B-Qwen2.5VL", None),
}


@pytest.mark.parametrize("name", FULL)
def test_table_1_has_the_papers_models_untuned_and_tuned_on_one_instruction(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = load_config(f"sweep/instfree_{name}_table1", SweepConfig)
    titles = [variant.title for variant in sweep.variants]
    assert titles == [
        "LLaMA-3.2-11B-Vision, untuned", "MedGemma-4B, untuned", "PubMedVision-7B, untuned", "Qwen2.5-VL-3B, untuned",
        "MedGemma-4B, FT", "Qwen2.5-VL-3B, FT", "LLaMA-3.2-11B-Vision, FT", "InstFree", "InstFree w/ RS",
    ]  # fmt: skip
    assert len(chains(sweep)) == 4 + 5 * len(sweep.seeds) == 19
    llama = trained(f"sweep/instfree_{name}_table1")
    assert {one: llama[one].objective["mode"] for one in llama} == {
        "ft": "text",
        "instfree": "momentum",
        "instfree_rs": "momentum",
    }
    for row, (checkpoint, builder) in TABLE_1.items():
        found = ran_by(f"sweep/instfree_{name}_table1", row, tmp_path / row, monkeypatch)
        ((predicted, scored),) = ([step for _, step in steps] for steps in found.values())
        assert predicted.checkpoint == checkpoint and predicted.model["checkpoint"] == checkpoint
        assert_data(predicted.questions, "test.jsonl", sweep)
        assert "multiple_choice" in predicted.protocols and scored.prepared_dir == sweep.prepared_dir
        if builder is None:
            continue
        tuned = ran_by(f"sweep/instfree_{name}_table1", f"ft_{row}", tmp_path / row, monkeypatch)
        assert len(tuned) == len(sweep.seeds)
        for seed, steps in zip(sweep.seeds, tuned.values(), strict=True):
            (training, asked, _), recipes = [step for _, step in steps], [recipe for recipe, _ in steps]
            assert recipes == ["instfree", "predict", "evaluate"] and training.seed == seed
            assert training.model["_component_"].endswith(f".lora_{builder}") and training.checkpoint == checkpoint
            assert training.objective["mode"] == "text" and training.objective["shuffle_separator"] is None
            assert training.trainable == ["adapter", "projection"] and training.epochs == llama["ft"].epochs
            assert_data(training.dataset, "train.jsonl", sweep)
            assert_data(training.dataset_val, "val_reports.jsonl", sweep)
            assert_data(training.questions.source, "val.jsonl", sweep)
            assert asked.checkpoint == asked.model["checkpoint"] == str(Path(training.output_dir) / "best")


def assert_data(node: Any, file: str, sweep: SweepConfig) -> None:
    """The file of the sweep's prepared data, with its images as they are."""
    assert (node["source"], node["image_root"]) == (str(Path(sweep.prepared_dir) / file), sweep.image_root)
    assert node.get("pad_to_square") is None


def test_me_vlips_table_3_trains_three_models_alike_and_asks_them_as_they_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {
        "general": ("internvl3_8b", "models/InternVL3-8B-hf"),
        "qwen2_5_vl": ("qwen2_5_vl_7b", "models/Qwen2.5-VL-7B-Instruct"),
        "medgemma": ("medgemma_4b", "models/medgemma-4b-it"),
    }
    found = {}
    for row, (builder, checkpoint) in models.items():
        ((training, asked, scored),) = (
            [step for _, step in steps] for steps in ran_by("sweep/me_vlip", row, tmp_path, monkeypatch).values()
        )
        found[row] = training
        assert training.model["_component_"].rpartition(".")[2].removeprefix("q") == f"lora_{builder}"
        assert asked.backend["model"]["_component_"].endswith(f".qlora_{builder}")
        assert training.checkpoint == asked.backend["checkpoint"] == checkpoint
        assert asked.backend["adapters"] == {"general": str(Path(training.output_dir) / "weights")}
        transforms = [dict(training.transform), dict(asked.backend["transform"])]
        for transform in transforms:
            assert transform.pop("path") == checkpoint
            transform.pop("max_seq_len", None)
        assert transforms[0] == transforms[1], "images and chat as in training"
        assert asked.questions["source"] == "prepared/flare/validation_public.jsonl"
        assert training.dataset["source"] == "prepared/flare/train.jsonl" and scored.split == "validation_public"
    assert found.keys() == models.keys()
    for key in ("optimizer", "schedule", "epochs", "batch_size", "gradient_accumulation_steps", "objective", "seed"):
        assert len({str(getattr(training, key)) for training in found.values()}) == 1, key
    for training in found.values():
        assert (training.model["lora_rank"], training.model["lora_alpha"], training.export) == (8, 16, "peft")
