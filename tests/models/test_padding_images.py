"""Padding images of a cross-attention model: not encoded, unless the decoder reads them."""

import pytest
import torch
from torch import Tensor

from medtune.models.mini import mini_vlm

SIZES = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2, "gate_init": 0.5}
IMAGES = torch.randn(4, 2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TOKENS = torch.arange(1, 25).view(4, 6)
MIXED, TEXT = [[1, 0], [0, 0], [1, 1], [0, 0]], [[0, 0]] * 4


def build(**options):
    torch.manual_seed(0)
    model = mini_vlm(300, **SIZES, **options).double()
    model.seen = []
    model.encoder.register_forward_pre_hook(
        lambda _, __, given: model.seen.append(given["images"].shape[:2]), with_kwargs=True
    )
    return model


def batch(tiles: list[list[int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Four rows of up to two images, of which only the real ones may be seen."""
    count = torch.tensor(tiles)
    vision = {
        "images": IMAGES * count[:, :, None, None, None, None],
        "tiles": count,
        "aspect_ratio": torch.ones(4, 2, 2, dtype=torch.long),
    }
    per_image = (16 // 8) ** 2 + 1
    return vision, (count > 0).repeat_interleave(per_image, 1)[:, None].expand(-1, TOKENS.shape[1], -1)


def outcome(model, features: Tensor, sees: Tensor) -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter."""
    model.zero_grad()
    logits = model.logits(model.hidden(TOKENS, features, vision_mask=sees))
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return {"logits": logits, **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("tiles", [MIXED, TEXT, [[1, 1]] * 4, [[0, 1], [1, 0]] * 2])
def test_states_and_gradients_are_those_of_encoding_everything(tiles):
    model = build()
    vision, sees = batch(tiles)
    fast = outcome(model, model.encode(vision), sees)
    plain = outcome(model, model.encoder(**vision), sees)
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        assert value is not None, f"{name} has a gradient, if only zeros: sharded training waits for it"
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-5)  # torchtune's norms are in fp32
    moved = any(value.any() for name, value in fast.items() if name.startswith("encoder."))
    assert moved == any(map(any, tiles))


def test_only_real_images_are_encoded():
    model = build()
    features = model.encode(batch(MIXED)[0])
    assert model.seen == [(3, 1)]
    blocks = features.view(4, 2, -1)
    assert blocks.any(-1).tolist() == [[bool(tiles) for tiles in row] for row in MIXED]


def test_a_batch_of_text_encodes_one_image():
    model = build()
    model.encode(batch(TEXT)[0])
    assert model.seen == [(1, 1)]


def test_a_decoder_that_reads_padding_gets_its_features():
    model = build(hf_rows=True)
    vision, _ = batch(MIXED)
    assert torch.equal(model.encode(vision), model.encoder(**vision))
    assert model.seen[0] == (4, 2)
