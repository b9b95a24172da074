"""Invariants of whole DPO runs on every family: references, forms, processes, kills and stale results."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medtune.config import save_config
from medtune.errors import ConfigError, DataError, MedtuneError
from medtune.models.mini import mini_internvl
from medtune.models.weights import save_hf
from medtune.training.plan import plan
from medtune.training.trainer import Trainer
from tests.objectives.tiny_dpo import pair_rows, write_pairs
from tests.runs import SGD, TINY, die_at, keep_gradients, largest_difference, launch, losses, metrics, tiny, weights

TEXT = {"vocab_size": 1024, "embed_dim": 16, "vision_layers": 2, "decoder_layers": 2}
SIZES, PIXELS = {**TEXT, "image_size": 16}, {"min_pixels": 256, "max_pixels": 512}
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 2, "lora_alpha": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3_2_vision": {
        "model": {**TINY["model"], "_component_": "medtune.models.mini.lora_mini_vlm", **LORA},
    },
    "internvl": {
        "model": {"_component_": "medtune.models.mini.lora_mini_internvl", **SIZES, **LORA},
        "transform": {
            "_component_": "medtune.models.mini.mini_internvl_transform",
            "image_size": 16,
            "max_num_tiles": 2,
        },
    },
    "llava": {
        "model": {"_component_": "medtune.models.mini.lora_mini_llava", **SIZES, **LORA},
        "transform": {"_component_": "medtune.models.mini.mini_llava_transform", "image_size": 16},
    },
    "qwen2_5_vl": {
        "model": {
            "_component_": "medtune.models.mini.lora_mini_qwen2_5_vl",
            **TEXT,
            **LORA,
            "patch_size": 4,
            "heads": 2,
        },
        "transform": {"_component_": "medtune.models.mini.mini_qwen2_5_vl_transform", "patch_size": 4, **PIXELS},
    },
}
FULL = {
    "model": {"_component_": "medtune.models.mini.mini_llava", **SIZES},
    "transform": FAMILIES["llava"]["transform"],
    "trainable": ["vision", "projection", "decoder"],
}
BETA = 0.5


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "dataset": write_pairs(tmp_path_factory.mktemp("pairs")),
        "objective": {"_component_": "medtune.objectives.DPO", "beta": BETA, "chunk_tokens": 5},
        "learning_rates": {},
        "optimizer": SGD,
        "max_steps": 5,
        "trainable": ["adapter"],
    }


def with_reference(run: dict[str, Any], kind: str, folder: Path, **more: Any) -> dict[str, Any]:
    cache = {"reference_cache": str(folder)} if kind == "precomputed" else {}
    return {**run, "objective": {**run["objective"], "reference": kind, **cache, **more}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> dict[str, Any]:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def plain(family: dict[str, Any], pairs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters switched off, one process."""
    folder = tmp_path_factory.mktemp("plain")
    assert launch(tiny(folder, **pairs, **family)) == [0]
    return folder


def check_same(run: Path, plain: Path) -> None:
    """The first loss is ln 2, and losses, metrics and weights are those of the plain run."""
    assert losses(run)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(run) == pytest.approx(losses(plain), abs=1e-6)
    for ours, theirs in zip(metrics(run), metrics(plain), strict=True):
        names = [name for name in theirs if name.startswith("rewards/margins")]
        assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], abs=2e-6)
    assert largest_difference(weights(run), weights(plain)) < 1e-6


def test_the_first_loss_is_ln_2_and_later_ones_are_not(plain: Path) -> None:
    first, *_, last = [line for line in metrics(plain) if "loss" in line]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["weight"] == 4
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6) and first["rewards/accuracies"] < 1
    assert abs(last["rewards/margins"]) > 1e-3 and last["logps/chosen"] < 0
    names = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen"}
    assert names | {"logps/rejected"} <= last.keys()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("kind", ["adapters_off", "companion", "precomputed"])
def test_every_reference_on_one_process_and_two_gives_the_same_run(
    kind: str, world: int, plain: Path, family: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    if kind == "adapters_off" and world == 1:
        pytest.skip("this is the plain run")
    run = with_reference(pairs, kind, tmp_path / "reference")
    config = tiny(tmp_path / "run", **{**run, **family, "batch_size": 4 // world})
    assert launch(config, world) == [0] * world
    check_same(tmp_path / "run", plain)


@pytest.mark.parametrize("name", [*FAMILIES, "full"])
def test_two_processes_give_the_gradients_of_one(name: str, pairs: dict[str, Any], tmp_path: Path) -> None:
    """In the first step, and in the third, where the matrices A have gradients too."""
    kind = "companion" if name == "full" else "adapters_off"
    run = {**with_reference(pairs, kind, tmp_path), **FAMILIES.get(name, FULL)}
    for world in (1, 2):
        run |= {"batch_size": 4 // world, "max_steps": 3, "export": "none"}
        assert launch(tiny(tmp_path / str(world), **run), world, harm=keep_gradients) == [0] * world
    for step in (0, 2):
        one, two = (load_file(tmp_path / str(world) / f"gradients_{step}.safetensors") for world in (1, 2))
        assert largest_difference(one, two) < 1e-6 and max(grad.abs().max() for grad in one.values()) > 1e-3


def test_rows_of_their_own_give_the_same_run(family: dict[str, Any], pairs: dict[str, Any], tmp_path: Path) -> None:
    for form in ("plain", "shared"):
        run = {**with_reference(pairs, "adapters_off", tmp_path, form=form), **family}
        # Steps are made of rows of similar length, and the forms have rows of different lengths.
        assert launch(tiny(tmp_path / form, **run, bucket=False)) == [0]
    check_same(tmp_path / "shared", tmp_path / "plain")


@pytest.mark.parametrize("kind", ["adapters_off", "precomputed"])
def test_a_killed_run_is_resumed_to_the_bit(
    kind: str, family: dict[str, Any], pairs: dict[str, Any], tmp_path: Path
) -> None:
    """With dropout, which the reference must not have."""
    model = {**family["model"], "lora_dropout": 0.2}
    run = {**family, "model": model, "save_every_steps": 2}
    whole = tiny(tmp_path / "whole", **with_reference(pairs, kind, tmp_path / "a"), **run)
    killed = tiny(tmp_path / "killed", **with_reference(pairs, kind, tmp_path / "b"), **run)
    assert launch(whole) == [0] and launch(killed, harm=die_at(3)) == [9] and launch(killed) == [0]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert largest_difference(weights(tmp_path / "killed"), weights(tmp_path / "whole")) == 0.0


@pytest.mark.parametrize("kind", ["companion", "precomputed"])
def test_a_trained_tower_has_a_reference_with_its_first_state(kind: str, pairs: dict[str, Any], tmp_path: Path) -> None:
    """Full tuning: on one process and on two, with a companion and with precomputed results."""
    runs = {}
    for name, world in ((kind, 1), (f"{kind}_two", 2)):
        run = {**with_reference(pairs, kind, tmp_path / "reference"), **FULL, "batch_size": 4 // world}
        assert launch(tiny(tmp_path / name, **run), world) == [0] * world
        runs[name] = losses(tmp_path / name)
        assert runs[name][0] == pytest.approx(math.log(2), abs=1e-6)
    assert runs[kind] == pytest.approx(runs[f"{kind}_two"], abs=1e-6)
    other = "companion" if kind == "precomputed" else "precomputed"
    run = {**with_reference(pairs, other, tmp_path / "other_reference"), **FULL}
    assert launch(tiny(tmp_path / "other", **run)) == [0]
    assert losses(tmp_path / "other") == pytest.approx(runs[kind], abs=1e-6)
    assert largest_difference(weights(tmp_path / "other"), weights(tmp_path / kind)) < 1e-6


def test_a_run_killed_while_references_are_computed_goes_on(
    pairs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtune.training.outputs.SHARD_ITEMS", 4)
    run = with_reference(pairs, "precomputed", tmp_path / "reference")
    config = tiny(tmp_path / "run", **run, **FAMILIES["llava"])
    assert launch(config, harm=_die_after(1)) == [9]
    shards = tmp_path / "reference" / "train"
    assert sorted(path.name for path in shards.glob("shard*")) == ["shard_00000.safetensors"]
    first = (shards / "shard_00000.safetensors").stat()
    assert launch(config) == [0]
    assert len(list(shards.glob("shard*"))) == 4
    assert (shards / "shard_00000.safetensors").stat().st_mtime_ns == first.st_mtime_ns
    assert launch(tiny(tmp_path / "again", **run, **FAMILIES["llava"]), harm=_die_after(0)) == [0], (
        "nothing is computed"
    )
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def _die_after(passes: int) -> Any:
    """End the process when the reference is to be computed for one batch more."""

    def harm() -> None:
        import os

        from medtune.objectives.dpo import DPO

        original, calls = DPO._reference_outputs, []

        def instead(self: Any, model: Any, batch: Any) -> Any:
            if len(calls) == passes:
                os._exit(9)
            calls.append(1)
            return original(self, model, batch)

        DPO._reference_outputs = instead  # type: ignore[method-assign]

    return harm


@pytest.fixture
def computed(pairs: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A run whose references lie in ``reference``, with data of its own that a test may change."""
    run = {**pairs, **FAMILIES["llava"], "dataset": write_pairs(tmp_path / "data", pair_rows(6)), "max_steps": 1}
    run = with_reference(run, "precomputed", tmp_path / "reference")
    assert launch(tiny(tmp_path / "first", **run)) == [0]
    return run


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 12}, "seed of the weights: 11 there, 12 here"),
        ({"dtype": "bf16"}, "dtype: fp32 there, bf16 here"),
        ({"transform": {"max_seq_len": 300}}, "transform.max_seq_len"),
        ({"model": {"heads": 2}}, "model.heads"),
        ("rows", "data: [0-9a-f]+... there"),
    ],
)
def test_stale_references_are_refused_with_the_command_that_makes_them_anew(
    change: Any, named: str, computed: dict[str, Any], tmp_path: Path
) -> None:
    if change == "rows":
        rows = pair_rows(6)
        rows[0]["rejected"] = "another answer"
        write_pairs(tmp_path / "data", rows)
        change = {}
    merged = {key: {**computed[key], **value} if isinstance(value, dict) else value for key, value in change.items()}
    with pytest.raises(ConfigError, match=rf"(?s)objective.reference_cache.*{named}.*run: rm -r .*reference/train"):
        Trainer(tiny(tmp_path / "second", **{**computed, **merged})).setup()


def test_references_of_another_tokenizer_are_refused(computed: dict[str, Any], tmp_path: Path) -> None:
    config = tiny(tmp_path / "second", **computed)
    folder = tmp_path / "tokenizer"
    shutil.copytree(config.transform["path"], folder)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    config.transform["path"] = str(folder)
    with pytest.raises(ConfigError, match=r"(?s)tokenizer.tokenizer.json: [0-9a-f]+... there.*rm -r .*reference/train"):
        Trainer(config).setup()


def test_references_of_other_weights_are_refused(pairs: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    run = {**pairs, **FAMILIES["internvl"], "max_steps": 1}
    run = with_reference(run, "precomputed", tmp_path / "reference")
    for number in range(2):
        folder = tmp_path / f"base_{number}"
        folder.mkdir()
        model = mini_internvl(**SIZES)
        save_hf(model.state_dict(), model.family, folder)
    config = tiny(tmp_path / "a", **run, checkpoint=str(tmp_path / "base_0"))
    assert launch(config) == [0]
    # Adapters that add nothing yet may have another size; other weights may not be there.
    larger = {**run, "model": {**run["model"], "lora_rank": 3}}
    assert launch(tiny(tmp_path / "b", **larger, checkpoint=str(tmp_path / "base_0")), harm=_die_after(0)) == [0]
    with pytest.raises(ConfigError, match="(?s)weights: [0-9a-f]+... there.*rm -r"):
        Trainer(tiny(tmp_path / "c", **run, checkpoint=str(tmp_path / "base_1"))).setup()


def test_tokens_of_another_template_are_refused_when_they_are_read(
    computed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting names what a new version of the code writes; the digest of each item does."""
    from medtune.models.common.early_transform import EarlyFusionTransform

    original = EarlyFusionTransform._lay_out

    def instead(self: Any, *arguments: Any, **keywords: Any) -> Any:
        tokens, labels = original(self, *arguments, **keywords)
        return [tokens[0], *tokens], [labels[0], *labels]

    monkeypatch.setattr(EarlyFusionTransform, "_lay_out", instead)
    trainer = Trainer(tiny(tmp_path / "second", **computed))
    trainer.setup()
    with pytest.raises(ConfigError, match=r"other tokens than pairs.jsonl, line \d .*run: rm -r .*reference/train"):
        next(trainer.feed.epoch(0))
    trainer._close()


@pytest.mark.parametrize("which", [1, 4])
def test_a_picture_that_is_gone_is_named_or_counted(which: int, pairs: dict[str, Any], tmp_path: Path) -> None:
    run = {**pairs, **FAMILIES["llava"], "dataset": write_pairs(tmp_path / "data", pair_rows(7)), "max_steps": 3}
    (tmp_path / "data" / f"{which}.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 7 rows of pairs cannot be used(?s:.*)line {which + 1} .*{which}.png"):
        Trainer(tiny(tmp_path / "raised", **run)).setup()
    for kind in ("adapters_off", "precomputed"):
        skipping = with_reference({**run, "on_error": "skip"}, kind, tmp_path / "reference")
        assert launch(tiny(tmp_path / kind, **skipping)) == [0]
        (listed,) = json.loads((tmp_path / kind / "summary.json").read_text())["skipped"]
        assert listed["id"] == f"pair-{which}"
        assert losses(tmp_path / kind)[0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_damaged_picture_is_counted_with_precomputed_references(pairs: dict[str, Any], tmp_path: Path) -> None:
    """When the picture is whole again there are other usable pairs, and the references are refused."""
    run = {**pairs, **FAMILIES["llava"], "dataset": write_pairs(tmp_path / "data", pair_rows(7)), "max_steps": 3}
    picture = tmp_path / "data" / "3.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:45])
    run = with_reference({**run, "on_error": "skip"}, "precomputed", tmp_path / "reference")
    assert launch(tiny(tmp_path / "run", **run)) == [0]
    (listed,) = json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"]
    assert listed["id"] == "pair-3" and losses(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-6)
    picture.write_bytes(whole)
    with pytest.raises(ConfigError, match="(?s)usable: 6 of 7 rows.*rm -r .*reference/train"):
        Trainer(tiny(tmp_path / "again", **run)).setup()


def test_plan_says_before_training_what_is_wrong_with_a_pair(pairs: dict[str, Any], tmp_path: Path) -> None:
    rows = pair_rows(6)
    rows[1]["rejected"] = ""
    rows[3]["rejected"] = "thin " * 400
    rows[4]["rejected"] = f" {rows[4]['chosen']} "
    run = {**pairs, **FAMILIES["llava"], "dataset": write_pairs(tmp_path / "data", rows)}
    save_config(tiny(tmp_path / "run", **run), tmp_path / "config.yaml")
    (problem,) = plan(str(tmp_path / "config.yaml"), ["transform.max_seq_len=200"]).problems
    assert "3 of 6 rows of pairs cannot be used" in problem
    for said in ("line 2: the rejected answer is empty", "the limit is 200", "line 5 (id 'pair-4'): both answers"):
        assert said in problem


def test_plan_counts_the_companion_and_refuses_what_switching_off_cannot_do(
    pairs: dict[str, Any], tmp_path: Path
) -> None:
    for kind, companions in (("adapters_off", False), ("companion", True), ("precomputed", False)):
        save_config(
            tiny(tmp_path, **with_reference(pairs, kind, tmp_path / "r"), **FAMILIES["llava"]), tmp_path / "config.yaml"
        )
        found = plan(str(tmp_path / "config.yaml"))
        assert found.problems == [] and ("companions" in found.memory) == companions
    save_config(tiny(tmp_path, **{**pairs, **FULL}), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="adapters_off is the run's base only while nothing but adapters is trained"):
        plan(str(tmp_path / "config.yaml"))


def test_a_reference_of_another_architecture_is_refused(pairs: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "internvl"
    folder.mkdir()
    model = mini_internvl(**SIZES)
    save_hf(model.state_dict(), model.family, folder)
    run = with_reference(pairs, "companion", tmp_path, reference_weights=str(folder))
    with pytest.raises(MedtuneError) as raised:
        Trainer(tiny(tmp_path / "run", **run, **FAMILIES["llava"])).setup()
    assert "the reference model" in str(raised.value) and "mini_llava needs" in str(raised.value)


def test_a_reference_of_another_size_is_refused(pairs: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "wider"
    folder.mkdir()
    model = mini_internvl(**{**SIZES, "embed_dim": 32})
    save_hf(model.state_dict(), model.family, folder)
    run = with_reference(pairs, "companion", tmp_path, reference_weights=str(folder))
    with pytest.raises(MedtuneError, match="the reference model"):
        Trainer(tiny(tmp_path / "run", **run, **FAMILIES["internvl"])).setup()


def test_validation_has_the_metrics_and_one_of_them_can_be_monitored(pairs: dict[str, Any], tmp_path: Path) -> None:
    run = {
        **pairs,
        **FAMILIES["llava"],
        "dataset_val": pairs["dataset"],
        "allow_leakage": ["same_file"],
        "max_steps": 2,
    }
    for kind in ("adapters_off", "precomputed"):
        folder = tmp_path / kind
        chosen = with_reference(run, kind, tmp_path / "r")
        assert launch(tiny(folder, **chosen, monitor="validation_rewards/accuracies")) == [0]
        (line,) = [line for line in metrics(folder) if "validation_loss" in line]
        assert {"validation_rewards/margins", "validation_logps/rejected"} <= line.keys()
        best = json.loads((folder / "summary.json").read_text())["best_validation"]
        assert best["value"] == line["validation_rewards/accuracies"]
    assert metrics(tmp_path / "precomputed")[-1] == pytest.approx(
        {key: value for key, value in metrics(tmp_path / "adapters_off")[-1].items()}, abs=1e-5
    )


def test_feature_cache_and_precomputed_references_work_together(pairs: dict[str, Any], tmp_path: Path) -> None:
    run = {**pairs, **FAMILIES["internvl"]}
    assert launch(tiny(tmp_path / "plain", **run)) == [0]
    both = with_reference({**run, "feature_cache": str(tmp_path / "features")}, "precomputed", tmp_path / "reference")
    assert launch(tiny(tmp_path / "both", **both)) == [0]
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "plain"), abs=1e-6)
    shutil.rmtree(tmp_path / "features")
