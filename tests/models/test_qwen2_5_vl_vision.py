"""The vision tower of Qwen2.5-VL reads a ragged batch without padding, and attends within windows or images only."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medtune.models import mini
from medtune.models.qwen2_5_vl._shape import MERGE
from medtune.models.qwen2_5_vl._vision import PATCHES, Groups, Runs, attend_within, block_places

# 9 x 9 blocks have equal windows side by side, whose blocks alternate in reading order
GRIDS = ((5, 4), (1, 1), (9, 9), (5, 4))
BLOCKS = sum(rows * columns for rows, columns in GRIDS)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mini.mini_qwen2_5_vl(64, patch_size=4, embed_dim=32, vision_layers=4, decoder_layers=1, heads=2).eval()


def blocks_of(number: int) -> Tensor:
    return torch.randn(number, 3, 4 * MERGE, 4 * MERGE, generator=torch.Generator().manual_seed(1))


def test_each_layer_reads_every_patch_once_and_no_padding(model):
    vision, seen = model.encoder.vision, []
    handles = [
        module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:-1])))
        for layer in vision.layers
        for module in (layer, layer.attn, layer.mlp)
    ]
    with torch.no_grad():
        vision(blocks_of(BLOCKS), GRIDS)
    for handle in handles:
        handle.remove()
    assert seen == [(1, BLOCKS * PATCHES)] * 3 * len(vision.layers)


def test_a_ragged_batch_gives_each_image_what_it_gives_alone(model):
    """Values, and gradients of the pixels: an image's features do not depend on another image's pixels."""
    vision = model.encoder.vision
    blocks = blocks_of(BLOCKS).requires_grad_()
    together = vision(blocks, GRIDS)
    sizes = [rows * columns for rows, columns in GRIDS]
    for number, (part, image) in enumerate(zip(together.split(sizes), blocks.split(sizes), strict=True)):
        torch.testing.assert_close(part, vision(image, GRIDS[number : number + 1]), rtol=0, atol=1e-5)
    (gradient,) = torch.autograd.grad(together.split(sizes)[2].square().sum(), blocks)
    touched = [bool(part.any()) for part in gradient.split(sizes)]
    assert touched == [False, False, True, False]


def test_groups_of_equal_length_are_one_run():
    """Windows of 4 x 4 blocks: 5 x 4 blocks are one full window and one of 1 x 4."""
    _, images, windows = block_places(((5, 4), (1, 1), (5, 4)), window=4)
    assert Groups.of(windows).runs == Runs(((1, PATCHES), (2, 4 * PATCHES), (2, 16 * PATCHES)))
    assert Groups.of(images).runs == Runs(((1, PATCHES), (2, 20 * PATCHES)))


@pytest.mark.parametrize("of", ["windows", "images"])
def test_an_order_holds_each_block_once_and_keeps_groups_together(of):
    _, images, windows = block_places(GRIDS, window=4)
    numbers = windows if of == "windows" else images
    groups = Groups.of(numbers)
    assert groups.order.sort().values.equal(torch.arange(BLOCKS))
    lengths = [length // PATCHES for count, length in groups.runs.sizes for _ in range(count)]
    parts = numbers[groups.order].split(lengths)
    assert all(len(part.unique()) == 1 for part in parts)
    assert len(parts) == len(numbers.unique())
    assert all(part.equal(part.sort().values) for part in groups.order.split(lengths))


def test_attention_within_groups_is_attention_under_a_mask_of_blocks():
    """Values and gradients in fp64, beside one sequence under a block-diagonal mask."""
    runs = Runs(((3, 2), (1, 5), (2, 7)))
    lengths = [length for count, length in runs.sizes for _ in range(count)]
    mask = torch.block_diag(*[torch.ones(length, length) for length in lengths]).bool()
    torch.manual_seed(0)
    heads = [torch.randn(1, 2, sum(lengths), 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    found = attend_within(*heads, mask=runs, dropout_p=0.0, is_causal=False)
    expected = F.scaled_dot_product_attention(*heads, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(expected)
    gradients = (torch.autograd.grad((out * weight).sum(), heads) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_the_meta_device_gives_the_shape(model):
    with torch.device("meta"):
        lazy = mini.mini_qwen2_5_vl(64, patch_size=4, embed_dim=32, vision_layers=4, decoder_layers=1, heads=2)
    out = lazy.encoder.vision(blocks_of(BLOCKS).to("meta"), GRIDS)
    assert out.is_meta
    assert out.shape == (BLOCKS, PATCHES, model.encoder.vision.conv.out_channels)


def test_other_grids_do_not_compile_a_layer_anew():
    """A new batch has other groups and another number of patches; the program of a layer must not be built for one."""
    torch._dynamo.reset()
    programs = []

    def backend(graph, _):
        programs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    vision = mini.mini_qwen2_5_vl(64, patch_size=4, embed_dim=32, vision_layers=2, decoder_layers=1, heads=2)
    vision = vision.encoder.vision.requires_grad_(False)
    # windows of three, three, one, and four different lengths
    batches = [(blocks_of(rows * columns), [(rows, columns)]) for rows, columns in ((5, 5), (6, 6), (8, 8), (5, 6))]
    expected = [vision(*batch) for batch in batches]
    vision.layers[0].compile(backend=backend)
    counts = []
    for batch, plain in zip(batches, expected, strict=True):
        torch.testing.assert_close(vision(*batch), plain, rtol=0, atol=1e-5)
        counts.append(len(programs))
    torch._dynamo.reset()
    assert counts[0] > 0
    assert counts[3] == counts[1], counts
