"""Image features from disk: the same run, made once, made anew after a kill, refused when stale."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medtune.config import to_plain
from medtune.training.plan import plan
from tests.runs import SFT, SGD, TINY, die_at, kill_self, largest_difference, launch, losses, tiny, weights
from tests.tiny_task import task_rows, write_task, write_tsm

SIZES = {"vocab_size": 1024, "embed_dim": 16, "vision_layers": 1, "decoder_layers": 2, "image_size": 16}
INTERNVL: dict[str, Any] = {
    "model": {"_component_": "medtune.models.mini.mini_internvl", **SIZES},
    "transform": {"_component_": "medtune.models.mini.mini_internvl_transform", "image_size": 16, "max_num_tiles": 2},
    "trainable": ["decoder"],
}
LLAMA: dict[str, Any] = {
    "model": {**TINY["model"], "max_num_tiles": 2},
    "transform": {**TINY["transform"], "max_num_tiles": 2},
    "trainable": ["fusion", "decoder"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Pictures of one and of two tiles, one of them in two rows, and a row without any."""
    rows = task_rows(2)
    shared = {**rows[0], "id": "again", "messages": rows[1]["messages"], "images": rows[1]["images"]}
    text = {**rows[0], "id": "text", "images": []}
    return write_task(tmp_path_factory.mktemp("data"), [*rows, shared, text])


def sft(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**SFT, "dataset": data, "optimizer": SGD, "max_steps": 5, **changes}


def vitask(folder: Path, **objective: Any) -> dict[str, Any]:
    return {
        "dataset": write_task(folder / "data"),
        "objective": {
            "_component_": "medtune.objectives.VITask",
            "tsm": write_tsm(folder / "tsm"),
            "align_steps": 2,
            "chunk_tokens": 0,
            **objective,
        },
        "learning_rates": {},
        "max_steps": 3,
        "optimizer": SGD,
    }


def small_shards() -> None:
    """A few pictures each."""
    from medtune.training import feature_cache

    feature_cache.SHARD_BYTES = 400


def uneven_shards() -> None:
    """Three to five pictures each, so that of two processes one encodes longer."""
    from medtune.training import feature_cache

    feature_cache.SHARD_BYTES = 2000


def no_pixels() -> None:
    """Make a run fail that decodes a picture or encodes several."""
    from medtune.data.images import ImageRoot
    from medtune.models.classifier.tsm import TaskModel
    from medtune.models.common.deep_fusion import DeepFusionVLM
    from medtune.models.common.early_fusion import EarlyFusionVLM

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a picture was looked at")

    features = TaskModel.features

    def of_one(self: TaskModel, pixels: torch.Tensor, tokens: Any = "cls") -> torch.Tensor:
        assert len(pixels) == 1  # a black one, whose features are measured
        return features(self, pixels, tokens)

    ImageRoot.load = EarlyFusionVLM.encode = DeepFusionVLM.encode = refused  # type: ignore[method-assign,assignment]
    TaskModel.features = of_one  # type: ignore[method-assign]


def killed_at_the_third_shard() -> None:
    from medtune.data.features import FeatureShards

    small_shards()
    write = FeatureShards.write

    def instead(self: FeatureShards, shard: int, *made: Any) -> None:
        if shard == 2:
            self.path(shard).with_name(".shard_00002.safetensors.1.tmp").write_bytes(b"torn")
            kill_self()
        write(self, shard, *made)

    FeatureShards.write = instead  # type: ignore[method-assign]


def run(folder: Path, world: int = 1, harm: Any = None, **changes: Any) -> Path:
    assert launch(tiny(folder, **changes), world, harm) == [0] * world
    return folder


def refusal(folder: Path, **changes: Any) -> str:
    assert launch(tiny(folder, **changes)) == [2]
    return (folder / "error_0.txt").read_text()


def same(first: Path, second: Path) -> None:
    assert losses(first) == pytest.approx(losses(second), abs=1e-6)
    assert largest_difference(weights(first), weights(second)) < 1e-6


@pytest.mark.parametrize("kind", ["llama", "internvl"])
def test_tuning_on_kept_features_is_the_same_run(kind: str, data: dict[str, Any], tmp_path: Path) -> None:
    model = {"llama": LLAMA, "internvl": INTERNVL}[kind]
    changes = sft(data, **model, dataset_val=data, validate_every_steps=2, allow_leakage=["same_file"])
    plain = run(tmp_path / "plain", **changes)
    cached = {**changes, "feature_cache": str(tmp_path / "cache")}
    same(run(tmp_path / "made", **cached), plain)
    same(run(tmp_path / "read", harm=no_pixels, num_workers=1, **cached), plain)
    manifest = json.loads((tmp_path / "cache" / "train" / "manifest.json").read_text())
    assert manifest["starts"] == [0, 11]  # 12 rows with pictures, of which two show one


LORA_INTERNVL: dict[str, Any] = {
    **INTERNVL,
    "model": {
        **INTERNVL["model"],
        "_component_": "medtune.models.mini.lora_mini_internvl",
        "lora_rank": 2,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
    },
    "trainable": ["adapter"],
}


@pytest.mark.parametrize("method", [{"negatives": "sampled"}, {"negatives": "roll", "exemplar": "all"}])
def test_both_stages_of_vitask_on_kept_features(method: dict[str, Any], tmp_path: Path) -> None:
    changes = {**vitask(tmp_path, **method), **LORA_INTERNVL}
    plain = run(tmp_path / "plain", **changes)
    cached = {**changes, "feature_cache": str(tmp_path / "cache")}
    same(run(tmp_path / "made", harm=small_shards, **cached), plain)
    same(run(tmp_path / "read", harm=no_pixels, **cached), plain)
    assert len(list((tmp_path / "cache" / "train").glob("shard_*"))) > 3


@pytest.mark.parametrize(("model", "harm"), [(LLAMA, uneven_shards), (INTERNVL, None)], ids=["llama", "one shard"])
def test_two_processes_share_the_encoding(model: dict[str, Any], harm: Any, tmp_path: Path) -> None:
    changes = {**vitask(tmp_path), **model}
    plain = run(tmp_path / "plain", **changes)
    cached = {**changes, "feature_cache": str(tmp_path / "cache")}
    same(run(tmp_path / "two", 2, harm, **{**cached, "batch_size": 2}), plain)
    same(run(tmp_path / "one", harm=no_pixels, **cached), plain)


def test_killed_while_encoding_goes_on_with_the_missing_shards(tmp_path: Path) -> None:
    changes = {**vitask(tmp_path), **INTERNVL}
    plain = run(tmp_path / "plain", **changes)
    cached = {**changes, "feature_cache": str(tmp_path / "cache")}
    assert launch(tiny(tmp_path / "run", **cached), harm=killed_at_the_third_shard) == [-9]
    folder = tmp_path / "cache" / "train"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard_*")}
    assert len(before) == 2
    (folder / "shard_00001.safetensors").write_bytes((folder / "shard_00001.safetensors").read_bytes()[:-1])
    same(run(tmp_path / "run", **cached), plain)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after["shard_00000.safetensors"] == before["shard_00000.safetensors"] and len(after) > 4
    assert not any(name.endswith(".tmp") for name in after)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_features_end_the_run_by_name(workers: int, data: dict[str, Any], tmp_path: Path) -> None:
    """They are no unusable sample, which on_error=skip would leave out."""
    changes = sft(data, **INTERNVL, feature_cache=str(tmp_path / "cache"), on_error="skip", num_workers=workers)
    made = run(tmp_path / "made", **changes)
    (shard,) = (tmp_path / "cache" / "train").glob("shard_*")
    raw = bytearray(shard.read_bytes())
    raw[-3] ^= 0x40
    shard.write_bytes(raw)
    message = refusal(tmp_path / "run", **changes)
    assert f"ConfigError: feature_cache: {shard} was damaged after it was written" in message
    assert "delete that file and start again" in message and not losses(tmp_path / "run")
    shard.unlink()
    same(run(tmp_path / "run", **changes), made)


def test_a_cache_of_an_older_version_is_read(data: dict[str, Any], tmp_path: Path) -> None:
    """Its shards have no checksum, and there is no record of what was written."""
    changes = sft(data, **INTERNVL, feature_cache=str(tmp_path / "cache"))
    made = run(tmp_path / "made", **changes)
    (shard,) = (tmp_path / "cache" / "train").glob("shard_*")
    with safe_open(shard, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    assert metadata.keys() == {"failed", "blake2b"} and tensors.keys() == {"features"}
    save_file(tensors, shard, {"failed": metadata["failed"]})
    same(run(tmp_path / "read", harm=no_pixels, **changes), made)


def test_refused_when_anything_differs_that_decides_the_features(tmp_path: Path) -> None:
    changes = {**vitask(tmp_path), **LORA_INTERNVL, "feature_cache": str(tmp_path / "cache"), "max_steps": 1}
    run(tmp_path / "made", **changes)
    # what does not decide them is no matter: the text's model may be adapted otherwise
    base = {"checkpoint": str(tmp_path / "made" / "weights")}
    other = {**changes, "objective": {**changes["objective"], "tsm": write_tsm(tmp_path / "other", scale=0.2)}}
    tiles = {**changes, "transform": {**changes["transform"], "max_num_tiles": 1}}
    rows = {**changes, "dataset": write_task(tmp_path / "rows", task_rows(3))}
    for name, different, said in (
        ("weights", {**changes, **base}, "weights: random there"),
        ("seed", {**changes, "seed": 12}, "seed of the weights: 11 there, 12 here"),
        ("tsm", other, "task-specific model.weights: "),
        ("transform", tiles, "transform.most: 2 there, 1 here"),
        ("data", rows, "data: "),
        ("dtype", {**changes, "dtype": "bf16"}, "dtype: fp32 there, bf16 here"),
    ):
        message = refusal(tmp_path / name, **different)
        assert message.startswith("ConfigError: feature_cache: the features in") and said in message, name
        assert "To make them anew, run: rm -r" in message and str(tmp_path / "cache" / "train") in message


def test_a_picture_of_another_size_is_noticed(data: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(data["image_root"], root)
    changes = sft({**data, "image_root": str(root)}, **INTERNVL, feature_cache=str(tmp_path / "cache"))
    run(tmp_path / "made", **changes)
    shutil.copy(root / "blobs-blue-0.png", root / "blobs-red-0.png")  # the third picture is wide
    assert "  pictures: " in refusal(tmp_path / "changed", **changes)


def test_one_run_at_a_time_makes_them(data: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "train"
    folder.mkdir(parents=True)
    changes = sft(data, **INTERNVL, feature_cache=str(tmp_path / "cache"))
    with (folder / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        assert "another run is making the features" in refusal(tmp_path / "run", **changes)
    run(tmp_path / "run", **changes)


def little_disk() -> None:
    from medtune.training import precompute

    precompute.shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10, 9, 1000)  # type: ignore[attr-defined]


def test_the_size_is_told_and_compared_with_the_disk(
    data: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {**vitask(tmp_path), **INTERNVL, "feature_cache": str(tmp_path / "cache")}
    assert launch(tiny(tmp_path / "run", **changes), harm=little_disk) == [2]
    said = (tmp_path / "run" / "error_0.txt").read_text()
    # 21 images, 7 of them wide: two tiles and a thumbnail
    size = "21 images, 35 tiles x 1 tokens x 16 x 4 bytes + 21 x 1 x 12 x 4 bytes = 3.2 kB, of which 3.2 kB are to be"
    assert size in capfd.readouterr().out
    assert "needs 3.2 kB more and the disk has 1.0 kB free" in said
    assert not list((tmp_path / "cache" / "train").iterdir())
    run(tmp_path / "run", **changes)
    (shard,) = (tmp_path / "cache" / "train").glob("shard_*")
    with safe_open(shard, framework="pt") as file:
        kept = sum(file.get_tensor(name).nbytes for name in file.keys())
    assert kept == 35 * 16 * 4 + 21 * 12 * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainable": ["vision", "fusion"]}, "stage train trains vision, and with it the image encoder"),
        (
            {**LORA_INTERNVL, "model": {**LORA_INTERNVL["model"], "lora_parts": ["vision"]}},
            "stage train trains adapter, and with it the image encoder (encoder.vision.",
        ),
    ],
)
def test_an_encoder_that_is_trained_cannot_be_cached(
    changes: dict[str, Any], said: str, data: dict[str, Any], tmp_path: Path
) -> None:
    assert said in refusal(tmp_path / "run", **sft(data, **changes, feature_cache=str(tmp_path / "cache")))
    assert not (tmp_path / "cache").exists()


def test_a_damaged_picture_is_skipped_as_without_a_cache(data: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(data["image_root"], root)
    picture = root / "blobs-blue-0.png"
    raw = bytearray(picture.read_bytes())
    at = raw.index(b"IDAT")
    raw[at + 6 : at + 12] = b"broken"
    picture.write_bytes(raw)
    changes = sft({**data, "image_root": str(root)}, **INTERNVL, on_error="skip")
    plain = run(tmp_path / "plain", **changes)
    cached = {**changes, "feature_cache": str(tmp_path / "cache")}
    same(run(tmp_path / "made", **cached), plain)
    same(run(tmp_path / "read", **cached), plain)
    first, second = (
        json.loads((tmp_path / name / "summary.json").read_text())["skipped"] for name in ("plain", "read")
    )
    assert first == second and [entry["id"] for entry in first] == ["blobs-blue-0"]
    assert "blobs-blue-0.png is truncated or damaged" in refusal(tmp_path / "strict", **{**cached, "on_error": "raise"})


def test_two_processes_go_on_from_a_checkpoint_though_the_features_are_gone(tmp_path: Path) -> None:
    changes = {**vitask(tmp_path), **INTERNVL, "feature_cache": str(tmp_path / "cache"), "save_every_steps": 1}
    changes |= {"batch_size": 2}
    whole = run(tmp_path / "whole", 2, **changes)
    assert launch(tiny(tmp_path / "killed", **changes), 2, harm=die_at(4)) == [9, 9]
    shutil.rmtree(tmp_path / "cache")
    run(tmp_path / "killed", 2, **changes)
    first, second = weights(whole), weights(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_plan_tells_the_size_and_who_trains_the_encoder(data: dict[str, Any], tmp_path: Path) -> None:
    values = to_plain(tiny(tmp_path / "run", **sft(data, **INTERNVL, feature_cache=str(tmp_path / "cache"))))
    path = tmp_path / "config.yaml"
    path.write_text(f"# tune run x.py\n{json.dumps({**values, 'dtype': 'bf16'})}")
    found = plan(str(path))
    # five rows show wide pictures (two tiles and a thumbnail), seven square ones, one none
    assert "feature cache        at most 0.7 kB of the model's features below" in found.text() and not found.problems
    (problem,) = plan(str(path), ["trainable=[projection]"]).problems
    assert problem.startswith("feature_cache: stage train trains projection")


def test_instfree_of_a_frozen_encoder(tmp_path: Path) -> None:
    changes = {**LLAMA, "trainable": ["fusion"], "objective": {"alpha": 0.5, "warmup_steps": 2}, "max_steps": 3}
    plain = run(tmp_path / "plain", **changes)
    same(run(tmp_path / "cached", feature_cache=str(tmp_path / "cache"), **changes), plain)
    manifest = json.loads((tmp_path / "cache" / "train" / "manifest.json").read_text())
    assert manifest["made_of"]["task-specific model"] is None and manifest["starts"] == [0, 22]
