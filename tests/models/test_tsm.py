"""The task-specific model against timm itself, its files, and what it refuses."""

import json
import pickle
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.transforms_factory import create_transform
from torch import nn

from medtune.errors import ConfigError, DataError, ModelError
from medtune.models.classifier.tsm import LabelledSet, PixelTransform, TaskModel, label_sets, load_tsm, task_model
from medtune.models.weights import save_hf
from tests.labelled_pictures import TINY_VIT, rows, write

SETS = {"b": LabelledSet("multi_class", ("x", "y", "z")), "a": LabelledSet("multi_label", ("p", "q"))}
SWIN = {"window_size": 4, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
VIT = "vit_tiny_patch16_224"


def tiny(architecture: str = VIT, image_size: int = 8, **arguments: object) -> TaskModel:
    model = TaskModel(architecture, SETS, image_size, arguments=arguments or TINY_VIT)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def test_logits_and_features_are_timms() -> None:
    model = tiny()
    same = timm.create_model(VIT, num_classes=5, img_size=8, **TINY_VIT).eval()
    same.load_state_dict(model.encoder.state_dict())
    pixels = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.logits(pixels), same(pixels))
        tokens = torch.cat([same.cls_token.expand(3, -1, -1), same.patch_embed(pixels)], 1) + same.pos_embed
        tokens = same.norm(same.blocks(tokens))
        cls, patches = model.features(pixels), model.features(pixels, "all")
    torch.testing.assert_close(cls, tokens[:, :1], atol=1e-6, rtol=0)
    torch.testing.assert_close(patches, tokens[:, 1:], atol=1e-6, rtol=0)
    assert cls.shape == (3, 1, model.feature_dim()) and patches.shape == (3, 4, model.feature_dim("all"))
    torch.testing.assert_close(same.head(cls[:, 0]), model.logits(pixels), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "size", "arguments", "channels_last"),
    [("resnet10t", 64, {"stem_width": 8}, False), ("swin_tiny_patch4_window7_224", 64, SWIN, True)],
)
def test_maps_become_tokens_row_by_row(
    architecture: str, size: int, arguments: dict[str, object], channels_last: bool
) -> None:
    model = tiny(architecture, size, **arguments)
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = model.encoder.forward_features(pixels)
        cls, patches = model.features(pixels), model.features(pixels, "all")
    if channels_last:
        found = found.permute(0, 3, 1, 2)
    height, width = found.shape[2:]
    assert height * width == patches.shape[1] == 4 and patches.shape[2] == model.feature_dim("all")
    for row in range(height):
        for column in range(width):
            assert torch.equal(patches[:, row * width + column], found[:, :, row, column])
    torch.testing.assert_close(cls[:, 0], found.mean((2, 3)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("mode", "size"), [("L", (28, 28)), ("RGBA", (301, 20)), ("P", (1, 1)), ("RGB", (16, 16))])
def test_pixels_are_those_of_timms_squash(mode: str, size: tuple[int, int]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    picture = Image.effect_noise(size, 90).convert("RGB").convert(mode)
    transform = pickle.loads(pickle.dumps(PixelTransform(16, mean, std)))
    timms = create_transform(16, interpolation="bicubic", mean=mean, std=std, crop_pct=1.0, crop_mode="squash")
    assert torch.equal(transform.pixels(picture), timms(picture.convert("RGB")))


def test_batch_normalisation_keeps_its_statistics() -> None:
    model = tiny("resnet10t", 32, stem_width=8)
    with pytest.raises(ModelError, match="batch normalisations.*pretrained weights"):
        model.check_trainable()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    model.check_trainable()
    before = {name: value.clone() for name, value in model.named_buffers()}
    pixels = torch.randn(3, 3, 32, 32)
    trained = model.train().logits(pixels)
    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    torch.testing.assert_close(trained[:1], model.logits(pixels[:1]), atol=1e-5, rtol=1e-5)
    tiny().train().check_trainable()


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    model = tiny()
    save_hf(model.state_dict(), model.family, tmp_path)
    found = load_tsm(tmp_path)
    pixels = torch.randn(2, 3, 8, 8)
    assert torch.equal(found.logits(pixels), model.logits(pixels))
    assert list(found.sets.items()) == list(SETS.items())  # the logits stand in this order
    assert found.transform.settings() == model.transform.settings()
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "medtune_tsm"
    timms = timm.create_model(VIT, num_classes=5, img_size=8, **TINY_VIT)
    timms.load_state_dict(load_file(tmp_path / "model.safetensors"))  # timm's own names


def test_other_sets_on_the_same_weights_are_written_as_such(tmp_path: Path) -> None:
    """A run that begins from another's weights must not export that one's classes."""
    save_hf(tiny().state_dict(), tiny().family, tmp_path / "first")
    others = {"c": LabelledSet("multi_class", ("1", "2", "3", "4", "5"))}
    second = TaskModel(VIT, others, 8, arguments=TINY_VIT)
    save_hf(second.state_dict(), second.family, tmp_path / "second", tmp_path / "first")
    assert load_tsm(tmp_path / "second").sets == others


def test_parts_and_slices() -> None:
    model = tiny()
    assert model.parts() == {"vision": [name for name, _ in model.named_parameters()]}
    assert (model.slice("b"), model.slice("a")) == (slice(0, 3), slice(3, 5))
    assert model.embed_dim == 16
    model.check("b", ("x", "y", "z"))
    with pytest.raises(ModelError, match="does not know the set 'c'.*'b', 'a'"):
        model.slice("c")
    with pytest.raises(ModelError, match="2 classes 'y', 'x'.*trained on 3: 'x', 'y', 'z'"):
        model.check("b", ("y", "x"))


@pytest.mark.parametrize(
    ("architecture", "size", "arguments", "message"),
    [
        ("vit_tinny_patch16_224", 8, {}, "did you mean 'vit_tiny_patch16_224'"),
        (VIT, 8, {"patch_size": 16}, "8 cannot be cut into patches of 16x16|cannot build"),
        (VIT, 20, {"patch_size": 8, "depth": 1}, "20 cannot be cut into patches of 8x8"),
        (VIT, 8, {"no_such": 1}, "cannot build .*no_such"),
        (VIT, 8, {**TINY_VIT, "img_size": 16}, "img_size 16 is not image_size 8"),
        (VIT, 0, {}, "side must be at least 1"),
    ],
)
def test_what_cannot_be_built(architecture: str, size: int, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaskModel(architecture, SETS, size, arguments=arguments)


def test_a_model_needs_a_set_and_pixels_three_channels() -> None:
    with pytest.raises(ConfigError, match="at least one set"):
        TaskModel(VIT, {}, 8, arguments=TINY_VIT)
    with pytest.raises(ConfigError, match="three channels"):
        PixelTransform(8, (0.5,))


def test_sets_of_a_file(tmp_path: Path) -> None:
    found = label_sets(write(tmp_path))
    assert list(found) == ["cells", "chest", "grades"]
    assert found["chest"] == LabelledSet("multi_label", ("effusion", "mass"))
    table = rows(1)
    table[1]["meta"] |= {"classes": ["long", "round", "torn"], "label_index": 0}
    with pytest.raises(DataError, match="row 2: the set 'cells' has other classes"):
        label_sets(write(tmp_path, table, "other"))
    table[1]["meta"] = {}
    with pytest.raises(DataError, match="question 'cells/0/1'"):
        label_sets(write(tmp_path, table, "none"))


def test_pretrained_weights_but_their_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path)
    timms = timm.create_model(VIT, num_classes=7, img_size=8, **TINY_VIT)  # the head of as many classes, too
    file = str(tmp_path / "base.safetensors")
    save_file(timms.state_dict(), file)
    model = task_model(source, VIT, 8, pretrained=file, **TINY_VIT)
    assert "the head ('head.weight', 'head.bias') is new" in capsys.readouterr().out
    for name, value in timms.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value) != (name == "head.weight"), name
    with pytest.raises(ModelError, match="does not fit.*patch_embed"):
        task_model(source, VIT, 8, pretrained=file, **{**TINY_VIT, "patch_size": 2})
    with pytest.raises(ModelError, match="left over.*blocks.1"):
        task_model(source, VIT, 8, pretrained=file, **{**TINY_VIT, "depth": 1})
    Path(file).write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        task_model(source, VIT, 8, pretrained=file, **TINY_VIT)


def test_weights_are_fetched_only_when_asked_for(tmp_path: Path) -> None:
    source = write(tmp_path)
    with pytest.raises(ModelError, match="could not be fetched"):
        task_model(source, "vit_tiny_patch16_224.augreg_in21k", 224, download=True)
    with pytest.raises(ConfigError, match="leave one out"):
        task_model(source, VIT, 8, pretrained="x", download=True, **TINY_VIT)
    with pytest.raises(ModelError, match="x.safetensors"):
        task_model(source, VIT, 8, pretrained="x.safetensors", **TINY_VIT)


def test_a_planned_model_says_what_is_missing(tmp_path: Path) -> None:
    absent = str(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match="run the prepare recipe"):
        task_model(absent, VIT, 8, **TINY_VIT)
    with torch.device("meta"):
        model = task_model(absent, VIT, 8, pretrained="base.safetensors", **TINY_VIT)
    assert "prepare recipe" in model.missing[0] and "base.safetensors" in model.missing[1]


def test_tables_outside_the_weights_are_filled_after_a_meta_build() -> None:
    whole = tiny("swin_tiny_patch4_window7_224", 64, **SWIN)
    with torch.device("meta"):
        built = TaskModel("swin_tiny_patch4_window7_224", SETS, 64, arguments=SWIN)
    built.load_state_dict(whole.state_dict(), assign=True)
    assert any(value.is_meta for value in built.buffers())
    built.rope_init()
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(built.eval().logits(pixels), whole.logits(pixels))


@pytest.mark.parametrize("content", [None, "[]", "{}", '{"sets": 3}', "{torn"])
def test_a_folder_that_holds_no_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match="holds no task-specific model"):
        load_tsm(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"])
def test_arguments_with_which_timm_reads_weights_itself_are_refused(name, tmp_path, monkeypatch):
    """In a config and in the config.json of a stranger's model: timm would give the path to torch.load."""
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    sets = {"a": LabelledSet("binary", ("x", "y"))}
    with pytest.raises(ConfigError, match=f"{name} is no argument"):
        TaskModel("resnet18", sets, 32, arguments={name: str(tmp_path / "evil.pth")})
    config = {"architecture": "resnet18", "image_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    config |= {"arguments": {name: "evil.pth"}, "sets": [{"name": "a", "task": "binary", "classes": ["x", "y"]}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{name} is no argument"):
        load_tsm(tmp_path)
