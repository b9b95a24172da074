"""What reaches the vision encoder, and what it refuses."""

import pytest
import torch

from medtune.errors import ModelError
from medtune.models.mini import mini_vlm

SIZES = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}


def encoder(mode="checkpoint", tiles=4):
    return mini_vlm(300, max_num_tiles=tiles, encoder_mode=mode, **SIZES).encoder


def test_more_tiles_than_slots_are_refused():
    with pytest.raises(ModelError, match="an image of 3 tiles reached an encoder that pads to 2"):
        encoder(tiles=2)(torch.zeros(1, 1, 3, 3, 16, 16), torch.tensor([[[1, 2]]]))


def test_tiles_need_their_grid():
    with pytest.raises(ModelError, match="2 tiles need their aspect_ratio"):
        encoder()(torch.zeros(1, 1, 2, 3, 16, 16))


@pytest.mark.parametrize("mode", ["checkpoint", "strict", "torchtune"])
def test_features_have_the_order_of_the_mask(mode):
    """Image by image, tile by tile: an image's features do not depend on the other image of its sample."""
    e = encoder(mode)
    images = torch.randn(1, 2, 2, 3, 16, 16)
    grid = torch.tensor([[[1, 2], [2, 1]]])
    both = e(images, grid)
    assert both.shape == (1, 2 * 2 * 5, 32)
    for i in range(2):
        alone = e(images[:, i : i + 1], grid[:, i : i + 1])
        assert (both[:, i * 10 : (i + 1) * 10] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["checkpoint", "strict"])
def test_counts_of_tiles_and_grids_say_the_same(mode):
    e = encoder(mode)
    images, grid = torch.randn(2, 1, 3, 3, 16, 16), torch.tensor([[[1, 3]], [[2, 1]]])
    images[1, 0, 2] = 0
    assert torch.equal(e(images, grid), e(images, grid, torch.tensor([[3], [2]])))


def test_images_are_cast_to_the_models_dtype():
    e = encoder().to(torch.bfloat16)
    assert e(torch.randn(1, 1, 1, 3, 16, 16)).dtype == torch.bfloat16


def test_every_parameter_gets_a_gradient():
    e = encoder()
    features = e(torch.randn(1, 1, 2, 3, 16, 16), torch.tensor([[[2, 1]]]))
    features.square().mean().backward()
    # the tables' other grids and the gated tables behind a gate of zero rest
    still = {name for name, p in e.named_parameters() if p.grad is None or not p.grad.any()}
    assert still <= {
        "clip.pre_tile_pos_embed.embedding",
        "clip.post_tile_pos_embed.embedding",
        "clip.token_pos_embedding.global_token_positional_embedding",
    }
