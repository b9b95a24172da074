"""Features of real images by real pretrained encoders, and a CLIP model in BiomedCLIP's layout, without a network."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medtune.config import PACKAGE
from medtune.curation.features import ClipFeatures, TimmFeatures
from medtune.curation.figures import Figure
from medtune.data.images import ImageRoot
from medtune.errors import ConfigError, ModelError
from tests.curation.real_encoder import IMAGE_MODEL, packaged_files, write_clip, write_encoder
from tests.recipe_modules import load_recipe

pytestmark = pytest.mark.skipif(packaged_files() is None, reason="needs two packages with weights: make install")
CELLS = PACKAGE / "assets" / "demo_wbcatt" / "images.tar"
SOME = 6


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    return write_clip(tmp_path_factory.mktemp("clip"))


def mixed_images(data: Path, folder: Path) -> list[dict[str, object]]:
    """Radiological images of VQA-RAD and blood cells of WBCAtt in one folder, all with the same caption."""
    cells = ImageRoot(CELLS)
    folder.mkdir()
    names = sorted(path.name for path in (data / "vqa_rad/images").iterdir())[:SOME]
    for name in names:
        Image.open(data / "vqa_rad/images" / name).convert("RGB").save(folder / f"rad_{Path(name).stem}.png")
    rows = csv.DictReader((CELLS.parent / "pbc_attr_v1_train.csv").open())
    for number, row in zip(range(SOME), rows, strict=False):
        cells.load(row["path"], "test").save(folder / f"cell_{number}.png")
    return [{"id": path.stem, "image": path.name, "caption": "A figure."} for path in sorted(folder.iterdir())]


def test_real_weights_group_radiology_and_blood_cells_by_their_images(
    encoder: Path, medtune_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "figures.json").write_text(json.dumps(mixed_images(medtune_data, tmp_path / "images")))
    command = [
        "--config", "curate/groups", f"figures={tmp_path / 'figures.json'}", f"image_root={tmp_path / 'images'}",
        "features._component_=medtune.curation.features.TimmFeatures", f"features.model={IMAGE_MODEL}",
        f"features.weights={encoder / 'image.safetensors'}", f"features.text_encoder={encoder / 'text'}",
        "~features.path", "groups.count=2", "groups.size=4", "groups.complex_share=1.0",
        f"output_dir={tmp_path / 'out'}",
    ]  # fmt: skip
    assert load_recipe("curate").main(command) == 0
    rows = list(csv.DictReader((tmp_path / "out/groups.csv").open()))
    found = {(row["id"].partition("_")[0], row["group"]) for row in rows}
    assert len(rows) == 2 * SOME and len(found) == 2 and len({group for _, group in found}) == 2
    chosen = [json.loads(line)["id"] for line in (tmp_path / "out/chosen.jsonl").open()]
    assert sorted(name.partition("_")[0] for name in chosen) == ["cell", "cell", "rad", "rad"]


def test_the_sentence_encoder_reads_what_a_caption_says(encoder: Path) -> None:
    features = TimmFeatures(IMAGE_MODEL, str(encoder / "image.safetensors"), str(encoder / "text"))
    captions = ("CT scan of a brain haemorrhage.", "Computed tomography: bleeding in the head.", "A cat on a sofa.")
    figures = [Figure(str(number), "x", (), caption) for number, caption in enumerate(captions)]
    table = features.of(figures, [Image.new("RGB", (64, 64))] * 3, [0, 1, 2])
    first, same, other = table[:, :384]
    assert table.shape == (3, 384 + 1280) and np.allclose(np.linalg.norm(table[:, :384], axis=1), 1, atol=1e-6)
    assert first @ same > 0.5 > 0.2 > first @ other


def test_a_clip_model_in_biomed_clips_layout_gives_open_clips_features_and_asks_nobody(
    clip: Path, medtune_data: Path
) -> None:
    import open_clip
    from safetensors.torch import load_file

    paths = sorted((medtune_data / "vqa_rad/images").iterdir())[:3]
    images = [Image.open(path).convert("RGB") for path in paths]
    figures = [Figure(path.stem, path.name, (), f"Image {path.stem}.", ("See it.",)) for path in paths]
    found = ClipFeatures(f"local-dir:{clip}").of(figures, images, [0, 1, 2])

    settings = json.loads((clip / "open_clip_config.json").read_text())["model_cfg"]
    text = {**settings["text_cfg"], "hf_model_name": str(clip), "hf_model_pretrained": False}
    network = open_clip.CustomTextCLIP(**{**settings, "text_cfg": text}).eval()
    network.load_state_dict(load_file(clip / "open_clip_model.safetensors"))
    transform = open_clip.image_transform(224, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    tokens = open_clip.tokenizer.HFTokenizer(str(clip), context_length=256)([figure.text for figure in figures])
    with torch.inference_mode():
        read = network.encode_text(tokens, normalize=True)
        seen = network.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    assert found.shape == (3, 256)
    np.testing.assert_allclose(found, torch.cat((read, seen), dim=-1).numpy(), atol=1e-5)


def test_a_clip_model_without_its_parts_is_refused_and_never_random(clip: Path, tmp_path: Path) -> None:
    figure, image = Figure("a", "a", (), "A."), Image.new("RGB", (8, 8))
    for name in ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    features = ClipFeatures(f"local-dir:{tmp_path}")
    with pytest.raises(ConfigError, match="hf download microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract config"):
        features.of([figure], [image], [0])
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    logging.disable()
    with pytest.raises(ModelError, match="cannot be opened by open_clip"):
        features.of([figure], [image], [0])
    logging.disable(logging.NOTSET)
    (tmp_path / "open_clip_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"open_clip_config.json is missing or no config"):
        features.of([figure], [image], [0])
