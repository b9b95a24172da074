"""Pictures found once, their features written in shards and read back where pictures stood."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medtune.data.features import EncodedPicture, EncodedSource, FeatureShards, PictureItems, find_pictures
from medtune.data.sample import Message, Sample
from medtune.datasets import jsonl_dataset, mixture_dataset
from medtune.errors import ConfigError, DataError
from medtune.models.mini import (
    mini_gemma3,
    mini_gemma3_transform,
    mini_internvl,
    mini_internvl_transform,
    mini_transform,
    mini_vlm,
)
from tests.data.tools import LetterTransform

TOKENIZER = str(Path(__file__).parents[2] / "medtune" / "assets" / "mini_tokenizer")
SIZES = {"embed_dim": 16, "vision_layers": 1, "decoder_layers": 1, "image_size": 16}


def write(folder: Path, rows: list[list[str]], sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """A file of rows with these pictures, and the pictures, each of its own noise."""
    folder.mkdir(parents=True)
    for number, (name, size) in enumerate(sizes.items()):
        noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    lines = [
        {"id": str(number), "images": names, "messages": [{"role": "assistant", "content": "A cell."}]}
        for number, names in enumerate(rows)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return {
        "_component_": "medtune.datasets.jsonl_dataset",
        "source": str(folder / "rows.jsonl"),
        "image_root": str(folder),
    }


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    pictures = {"a.png": (16, 16), "b.png": (32, 16), "c.png": (20, 40)}
    return write(tmp_path / "rows", [["b.png", "a.png"], [], ["a.png"], ["c.png", "c.png"]], pictures)


def test_each_picture_is_found_once_where_it_first_appears(rows: dict[str, Any]) -> None:
    found = find_pictures(instantiate_source(rows), range(4), LetterTransform(), progress=False)
    assert [found.number(name) for name in ("b.png", "a.png", "c.png", "d.png")] == [0, 1, 2, None]
    assert (found.rows.tolist(), found.slots.tolist()) == ([0, 0, 3], [0, 1, 0])
    assert found.sizes.tolist() == [[32, 16], [16, 16], [20, 40]] and found.tiles.tolist() == [2, 1, 6]
    some = find_pictures(instantiate_source(rows), [2], LetterTransform(), progress=False)
    assert len(some) == 1 and some.digest != found.digest


def instantiate_source(rows: dict[str, Any]) -> Any:
    return jsonl_dataset(rows["source"], rows["image_root"])


def test_no_picture_at_all(rows: dict[str, Any]) -> None:
    assert len(find_pictures(instantiate_source(rows), [1], LetterTransform(), progress=False)) == 0


def test_one_path_in_two_parts_of_a_mixture_is_two_pictures(tmp_path: Path) -> None:
    first = write(tmp_path / "first", [["a.png"]], {"a.png": (16, 16)})
    second = write(tmp_path / "second", [["a.png"]], {"a.png": (48, 16)})
    cropped = {**second, "center_crop": 0.5}
    source = mixture_dataset([first, cropped])
    found = find_pictures(source, range(2), LetterTransform(), progress=False)
    assert found.sizes.tolist() == [[16, 16], [24, 8]]


KINDS: dict[str, Any] = {
    "llama": lambda: (mini_vlm(1024, max_num_tiles=2, **SIZES), mini_transform(TOKENIZER, 16, max_num_tiles=2)),
    "gemma3": lambda: (mini_gemma3(1024, patch_size=4, **SIZES), mini_gemma3_transform(TOKENIZER, 16, patch_size=4)),
    "internvl": lambda: (mini_internvl(1024, **SIZES), mini_internvl_transform(TOKENIZER, 16, max_num_tiles=3)),
}


def kept(source: Any, model: Any, transform: Any, folder: Path) -> FeatureShards:
    """Each picture encoded by itself; two shards."""
    found = find_pictures(source, range(len(source)), transform, progress=False)
    items = PictureItems(found)
    encoded = []
    for number in range(len(found)):
        batch = items.collate([items(source, number, random.Random(0), transform)], transform)
        encoded.append(model.encode(batch["vision"])[0].unflatten(0, (int(found.tiles[number]), -1)))
    shards = FeatureShards(folder, found, np.array([0, 2, 3]))
    shards.write(0, [{"features": one} for one in encoded[:2]])
    shards.write(1, [{"features": encoded[2]}])
    return shards


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_batch_of_features_is_what_the_encoder_gives(kind: str, rows: dict[str, Any], tmp_path: Path) -> None:
    model, transform = KINDS[kind]()
    for parameter in model.parameters():
        parameter.normal_(std=0.3)
    source = instantiate_source(rows)
    encoded = EncodedSource(source, pickle.loads(pickle.dumps(kept(source, model, transform, tmp_path))))
    plain = transform.collate([transform(source[at], source.open_images(source[at])) for at in range(4)])
    transform.feature_width = model.embed_dim
    ours = transform.collate([transform(source[at], encoded.open_images(source[at])) for at in range(4)])
    assert "vision" not in ours and all(torch.equal(ours[name], plain[name]) for name in ("tokens", "vision_mask"))
    theirs = model.encode(plain["vision"])
    assert ours["features"].shape == theirs.shape and ours["features"].dtype == theirs.dtype
    seen = plain["vision_mask"].flatten(1, -2).any(1) if plain["vision_mask"].dim() == 3 else plain["vision_mask"]
    assert seen.sum() > 5 and (ours["features"] - theirs)[seen].abs().max() < 1e-6
    assert not ours["features"][~seen].any()


PLACES = (slice(0, 2), slice(2, 3), slice(3, 9))  # tiles of three pictures


def test_reading_takes_a_picture_its_own_features_and_why_it_has_none(tmp_path: Path, rows: dict[str, Any]) -> None:
    found = find_pictures(instantiate_source(rows), range(4), LetterTransform(), progress=False)
    shards = FeatureShards(tmp_path, found, np.array([0, 2, 3]))
    features, own = torch.randn(9, 4, 5).bfloat16(), torch.randn(3, 1, 7)
    assert not shards.is_whole(0)
    items = [{"features": features[at], "own": own[number][None]} for number, at in enumerate(PLACES)]
    shards.write(0, items[:2], {1: "it is torn"})
    shards.write(1, items[2:])
    assert shards.is_whole(0) and shards.is_whole(1)
    first, last = shards.read(0), shards.read(2)
    assert first.size == (32, 16) and torch.equal(first.features, features[:2]) and torch.equal(first.own, own[0])
    assert last.size == (20, 40) and torch.equal(last.features, features[3:]) and torch.equal(last.own, own[2])
    with pytest.raises(DataError, match="^it is torn$"):
        shards.read(1)
    shards.path(1).write_bytes(shards.path(1).read_bytes()[:-1])
    assert not shards.is_whole(1)
    with pytest.raises(ConfigError, match="start again"):
        FeatureShards(tmp_path, found, shards.starts).read(2)


def test_a_picture_that_was_not_looked_at_is_an_error(rows: dict[str, Any], tmp_path: Path) -> None:
    source = instantiate_source(rows)
    found = find_pictures(source, [2], LetterTransform(), progress=False)
    encoded = EncodedSource(source, FeatureShards(tmp_path, found, np.array([0, 1])))
    with pytest.raises(DataError, match=r"line 4.*c\.png was not among"):
        encoded.open_images(source[3])


def test_a_picture_that_changes_under_way_is_noticed(rows: dict[str, Any], tmp_path: Path) -> None:
    source = instantiate_source(rows)
    _, transform = KINDS["internvl"]()
    found = find_pictures(source, range(4), transform, progress=False)
    Image.new("RGB", (16, 16)).save(Path(rows["image_root"]) / "b.png")
    with pytest.raises(DataError, match=r"b\.png changed"):
        PictureItems(found)(source, 0, random.Random(0), transform)


def test_an_encoded_picture_needs_no_pixels() -> None:
    """A transform lays out its tokens by the picture's size alone."""
    _, transform = KINDS["internvl"]()
    sample = Sample("1", ("a.png",), (Message("user", "?"), Message("assistant", "A cell.")))
    tiles = transform.tile_count(48, 16)
    item = transform(sample, [EncodedPicture((48, 16), torch.zeros(tiles, 1, 16))])
    assert item["tokens"] == transform(sample, [Image.new("RGB", (48, 16))])["tokens"] and len(item["images"][0]) == 4
