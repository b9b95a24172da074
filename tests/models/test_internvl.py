"""InternVL's parts: sizes, pixel shuffle, tiling, adapters, and weights that do not fit."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchao.dtypes.nf4tensor import NF4Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor, get_optimal_tiled_canvas

from medtune.errors import ModelError
from medtune.models.internvl import (
    DynamicTiler,
    internvl2_2b,
    internvl3_8b,
    lora_internvl2_2b,
    lora_internvl3_8b,
    qlora_internvl2_2b,
)
from medtune.models.internvl._component_builders import LoraOptions, internvl_vlm
from medtune.models.internvl._images import IMAGENET_MEAN, IMAGENET_STD, closest_grid
from medtune.models.internvl._model_builders import INTERNVL2_2B, INTERNVL3_8B
from medtune.models.internvl._vision import Connector, pixel_shuffle
from medtune.models.mini import qlora_mini_internvl
from medtune.models.weights import load_weights, save_hf, save_tensors
from tests.parity.internvl_twin import SHAPES, batch_of, item, tiny


def counted(model):
    sizes = dict(model.named_parameters())
    return {part: sum(sizes[name].numel() for name in names) for part, names in model.parts().items()}


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("builder", "parts"),
    [
        (internvl2_2b, {"vision": 304_012_288, "projection": 12_595_200, "decoder": 1_889_146_880}),
        (internvl3_8b, {"vision": 304_012_288, "projection": 27_540_480, "decoder": 7_612_820_992}),
    ],
)
def test_the_published_models_have_their_sizes(builder, parts):
    with torch.device("meta"):
        assert counted(builder()) == parts


@pytest.mark.parametrize("layout", ["original", "hf"])
@pytest.mark.parametrize("builder", [internvl2_2b, internvl3_8b])
def test_the_published_tensors_convert_both_ways_without_storage(builder, layout):
    with torch.device("meta"):
        model = builder(layout=layout)
        published = model.family.tune_to_hf(dict(model.named_parameters()))
        again = model.family.hf_to_tune(published)
    assert {key: value.shape for key, value in again.items()} == {n: p.shape for n, p in model.named_parameters()}
    packed = {"original": "vision_model.encoder.layers.0.attn.qkv.weight", "hf": "vision_tower.embeddings.cls_token"}
    assert packed[layout] in published


def test_the_original_names_of_internvl2_2b():
    """As they stand in the file on the hub, of layer 23 and around the layers."""
    with torch.device("meta"):
        model = internvl2_2b()
        published = model.family.tune_to_hf(dict(model.named_parameters()))
    expected = {
        "vision_model.embeddings.class_embedding": (1, 1, 1024),
        "vision_model.embeddings.position_embedding": (1, 1025, 1024),
        "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "vision_model.encoder.layers.23.attn.qkv.weight": (3072, 1024),
        "vision_model.encoder.layers.23.attn.proj.bias": (1024,),
        "vision_model.encoder.layers.23.ls1": (1024,),
        "vision_model.encoder.layers.23.norm2.bias": (1024,),
        "vision_model.encoder.layers.23.mlp.fc1.weight": (4096, 1024),
        "mlp1.0.weight": (4096,),
        "mlp1.1.weight": (2048, 4096),
        "mlp1.3.weight": (2048, 2048),
        "language_model.model.tok_embeddings.weight": (92553, 2048),
        "language_model.model.layers.23.attention.wqkv.weight": (4096, 2048),
        "language_model.model.layers.23.attention.wo.weight": (2048, 2048),
        "language_model.model.layers.23.feed_forward.w2.weight": (2048, 8192),
        "language_model.model.layers.23.attention_norm.weight": (2048,),
        "language_model.model.layers.23.ffn_norm.weight": (2048,),
        "language_model.model.norm.weight": (2048,),
        "language_model.output.weight": (92553, 2048),
    }
    assert {name: tuple(published[name].shape) for name in expected} == expected


def test_a_tile_gives_256_tokens():
    assert INTERNVL2_2B.tokens_per_tile == INTERNVL3_8B.tokens_per_tile == 256


def test_adapters_stand_where_internvl_puts_them():
    """All linear maps of the decoder but its output; the count is that of ME-VLIP's InternVL3-8B run at rank 8."""
    with torch.device("meta"):
        model = lora_internvl3_8b(lora_rank=8)
        assert counted(model)["adapter.decoder"] == 20_185_088
        names = {name.split(".lora_")[0].split(".", 3)[-1] for name in model.parts()["adapter.decoder"]}
        attention = {f"attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "output_proj")}
        assert names == attention | {"mlp.w1", "mlp.w2", "mlp.w3"}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == set(model.parts()["adapter.decoder"])
        both = lora_internvl2_2b(lora_parts=["vision", "decoder"])
    assert "encoder.vision.layers.23.attn.q_proj.lora_a.weight" in both.parts()["adapter.vision"]


@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_qlora_keeps_adapted_parts_alone_as_nf4(decoder):
    model = qlora_mini_internvl(300, decoder=decoder)
    both = qlora_mini_internvl(300, decoder=decoder, lora_parts=["vision", "decoder"])
    assert {n.split(".")[0] for n, p in model.named_parameters() if isinstance(p.data, NF4Tensor)} == {"decoder"}
    quantised = {n for n, p in both.named_parameters() if isinstance(p.data, NF4Tensor)}
    assert any(name.startswith("encoder.vision.layers.0.attn.q_proj") for name in quantised)
    assert not any(word in name for name in quantised for word in ("projection", "tok_embeddings", "decoder.output"))


def test_qlora_builds_at_its_real_size():
    with torch.device("meta"):
        model = qlora_internvl2_2b(lora_parts=["vision"])
    quantised = {n for n, p in model.named_parameters() if isinstance(p.data, NF4Tensor)}
    assert len(quantised) == 24 * 6


@pytest.mark.parametrize("decoder", ["internlm2", "qwen2"])
def test_adapted_layers_share_one_table_of_positions(decoder):
    model = tiny(decoder, lora=LoraOptions())
    assert len({id(layer.attn.pos_embeddings) for layer in model.decoder.layers}) == 1


def test_the_vision_transformer_is_not_causal():
    """With or without adapters: the first patch hears of the last."""
    for lora in (None, LoraOptions(parts=("vision",), rank=2)):
        model = tiny("qwen2", lora=lora)
        pixels = torch.zeros(1, 3, 28, 28)
        other = pixels.clone()
        other[..., -7:, -7:] = 1
        with torch.no_grad():
            change = (model.encoder.vision(pixels) - model.encoder.vision(other)).abs().amax(dim=-1)[0]
        assert change[0] > 1e-3


# -- pixel shuffle ----------------------------------------------------------------------------------------------------


def test_pixel_shuffle_joins_blocks_of_two_by_two():
    side, channels = 6, 3
    patches = torch.randn(2, side**2, channels, dtype=torch.float64, requires_grad=True)
    grid = patches.view(2, side, side, channels)
    expected = torch.stack(
        [
            torch.cat([grid[:, 2 * r + i, 2 * c + j] for i in (0, 1) for j in (0, 1)], dim=-1)
            for r in range(side // 2)
            for c in range(side // 2)
        ],
        dim=1,
    )
    found = pixel_shuffle(patches)
    assert torch.equal(found, expected)
    weight = torch.randn_like(found)
    one, other = (torch.autograd.grad((x * weight).sum(), patches, retain_graph=True)[0] for x in (found, expected))
    assert torch.equal(one, other)


def test_connector_equals_its_formula():
    connector = Connector(4, 6).double()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_()
    x = pixel_shuffle(torch.randn(1, 4, 4, dtype=torch.float64))
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    h = (normed * connector.norm.weight + connector.norm.bias) @ connector.linear_1.weight.T + connector.linear_1.bias
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    expected = h @ connector.linear_2.weight.T + connector.linear_2.bias
    found = connector(x.view(1, 2, 2, 4).reshape(1, 4, 4))
    assert (found - expected).abs().max() < 1e-6  # the norm is taken in fp32


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 6, 12])
def test_grids_are_those_of_transformers(most):
    rng = torch.Generator().manual_seed(most)
    sizes = torch.randint(16, 3000, (200, 2), generator=rng).tolist()
    for width, height in [*sizes, (448, 448), (1344, 448), (100, 50), (896, 896), (2000, 1000), (500, 625)]:
        expected = get_optimal_tiled_canvas((height, width), (448, 448), 1, most)
        assert closest_grid(width, height, size=448, most=most) == expected, (width, height)


def picture(width, height, seed=0):
    noise = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("size", "tiles"), [((90, 30), 4), ((30, 70), 3), ((15, 17), 1), ((200, 190), 5)])
def test_tiles_are_cut_as_in_internvl(size, tiles):
    """Resize to the grid, crop row by row, add the whole picture as one tile more; ImageNet's mean and deviation."""
    tiler, image = DynamicTiler(16, 4), picture(*size)
    columns, rows = closest_grid(*size, size=16, most=4)
    resized = image.resize((columns * 16, rows * 16))
    crops = [
        resized.crop((c * 16, r * 16, (c + 1) * 16, (r + 1) * 16)) for r in range(rows) for c in range(columns)
    ] + ([image.resize((16, 16))] if rows * columns > 1 else [])
    found = tiler(image)
    assert len(found) == len(crops) == tiles == tiler.count(*size)
    for tile, crop in zip(found, crops, strict=True):
        raw = torch.tensor(list(crop.getdata()), dtype=torch.float32).view(16, 16, 3) / 255
        expected = ((raw - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)).permute(2, 0, 1)
        assert (tile - expected).abs().max() < 1e-5


def test_tiles_are_close_to_transformers():
    """torchvision's bicubic resize rounds otherwise than Pillow's, by a level or two of 255."""
    processor = GotOcr2ImageProcessor(
        size={"height": 32, "width": 32}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD, crop_to_patches=True
    )
    image = picture(150, 60)
    theirs = processor(image, max_patches=6, return_tensors="pt")["pixel_values"]
    ours = DynamicTiler(32, 6)(image)
    assert ours.shape == theirs.shape == (4, 3, 32, 32)
    assert (ours - theirs).abs().max() < 3 / 255 / min(IMAGENET_STD)
    assert (ours - ours.flip(0)).abs().max() > 0.1


def test_most_tiles_count_the_thumbnail():
    assert [DynamicTiler(8, most).max_tiles for most in (1, 2, 6)] == [1, 3, 7]
    assert DynamicTiler(8, 6, thumbnail=False).max_tiles == 6
    with pytest.raises(ModelError, match="at least 1"):
        DynamicTiler(8, 0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(mode):
    assert DynamicTiler(8, 2)(picture(20, 10).convert(mode)).shape == (3, 3, 8, 8)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 21}, "multiple of 2 patches"),
        ({"heads": 3}, "heads must divide"),
        ({"kv_heads": 3}, "heads must divide"),
        ({"decoder": "llama"}, "internlm2 or qwen2"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        replace(SHAPES["qwen2"], **change)


def test_unknown_layout_parts_and_modules_are_refused():
    with pytest.raises(ModelError, match="layout must be one of original, hf"):
        internvl_vlm("tiny", SHAPES["qwen2"], layout="peft")
    with pytest.raises(ModelError, match="lora_parts must be some of vision, decoder"):
        LoraOptions(parts=("projection",))
    with pytest.raises(ModelError, match="lora_attn_modules must be some of"):
        LoraOptions(attn_modules=("wqkv",))


def test_weights_of_another_decoder_or_size_are_refused(tmp_path):
    qwen, other = tiny("qwen2", layout="original"), tiny("internlm2", layout="original")
    save_hf(qwen.state_dict(), qwen.family, tmp_path)
    with pytest.raises(ModelError, match="describes another model than tiny: template is 'internvl2_5'"):
        load_weights(tmp_path, other)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="not of this model in the layout 'original'"):
        load_weights(tmp_path, other)
    packed = other.family.tune_to_hf(other.state_dict())
    packed["language_model.model.layers.0.attention.wqkv.weight"] = torch.zeros(96, 64)
    save_tensors(packed, tmp_path / "short.safetensors")
    with pytest.raises(ModelError, match="wqkv.weight has 96 rows, the model 128"):
        load_weights(tmp_path / "short.safetensors", other)
    with pytest.raises(ModelError, match="1 tensors of the model are missing"):
        state = dict(other.state_dict())
        state.pop("decoder.norm.scale")
        other.family.tune_to_hf(state)


def test_a_transform_of_other_tiles_is_noticed():
    model = tiny("qwen2")
    batch = batch_of(item([1, None, 2], [1], 1))
    batch["tokens"][0, 1] = 5
    with pytest.raises(ModelError, match="3 image tokens for 4 image features"):
        model.hidden(batch["tokens"], model.encode(batch["vision"]), vision_mask=batch["vision_mask"])
