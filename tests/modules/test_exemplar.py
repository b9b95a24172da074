"""The connector, and exemplars' places among the tokens of both kinds of models, padded on either side."""

import pytest
import torch
from torch import Tensor, nn

from medtune.errors import ModelError
from medtune.modules.exemplar import ExemplarConnector, TokenRows, hide_images, insert_placeholders, widen

IMAGE, SLOT, PAD, NO = 90, 7, 0, -100


def early(pad_side: str = "right") -> TokenRows:
    """Features in place of tokens: two of them in the first row, one in the second, which is padded."""
    short = [5, IMAGE, 8], [NO, NO, 8], [True] * 3
    if pad_side == "right":
        second = [short[0] + [PAD] * 2, short[1] + [NO] * 2, short[2] + [False] * 2]
    else:
        second = [[PAD] * 2 + short[0], [NO] * 2 + short[1], [False] * 2 + short[2]]
    return TokenRows(
        torch.tensor([[5, IMAGE, IMAGE, 6, 9], second[0]]),
        torch.tensor([[True, True], [True, False]]),
        torch.tensor([[NO, NO, NO, NO, 9], second[1]]),
        torch.tensor([[True] * 5, second[2]]),
    )


def insert(rows: TokenRows, count: int = 2) -> TokenRows:
    return insert_placeholders(rows, image_id=IMAGE, placeholder_id=SLOT, count=count)


def values(tensor: Tensor | None) -> list:
    assert tensor is not None
    return tensor.int().tolist()


def test_placeholders_stand_right_behind_the_last_image_token() -> None:
    found = insert(early())
    assert values(found.tokens) == [[5, IMAGE, IMAGE, SLOT, SLOT, 6, 9], [5, IMAGE, SLOT, SLOT, 8, PAD, PAD]]
    assert values(found.placeholders) == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0, 0]]
    assert values(found.labels) == [[NO, NO, NO, NO, NO, NO, 9], [NO, NO, NO, NO, 8, NO, NO]]
    assert values(found.padding) == [[1] * 7, [1, 1, 1, 1, 1, 0, 0]]
    assert torch.equal(found.vision_mask, early().vision_mask)


def test_left_padded_prompts_keep_their_padding() -> None:
    found = insert(early("left"), 1)
    assert values(found.tokens) == [[5, IMAGE, IMAGE, SLOT, 6, 9], [PAD, PAD, 5, IMAGE, SLOT, 8]]
    assert values(found.padding) == [[1] * 6, [0, 0, 1, 1, 1, 1]]


def test_labels_and_padding_may_be_absent() -> None:
    found = insert(TokenRows(early().tokens, early().vision_mask))
    assert found.labels is None and found.padding is None and found.tokens.shape == (2, 7)


def test_the_exemplar_follows_the_last_of_several_images() -> None:
    rows = TokenRows(torch.tensor([[IMAGE, 5, IMAGE, 6]]), torch.ones(1, 2, dtype=torch.bool))
    assert values(insert(rows, 1).tokens) == [[IMAGE, 5, IMAGE, SLOT, 6]]


def test_a_row_without_an_image_is_refused() -> None:
    rows = TokenRows(torch.tensor([[IMAGE, 5], [5, 6]]), torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ModelError, match="row 1 of the batch holds no image token"):
        insert(rows)


def cross_attending() -> TokenRows:
    """The text from the image token on sees three features."""
    sees = torch.zeros(1, 4, 3, dtype=torch.bool)
    sees[0, 1:] = torch.tensor([True, True, False])
    sees[0, 3] = False  # told apart from its neighbours
    return TokenRows(torch.tensor([[5, IMAGE, 6, 9]]), sees)


def test_a_placeholder_sees_what_its_image_token_sees() -> None:
    found, before = insert(cross_attending()), cross_attending()
    assert found.vision_mask.shape == (1, 6, 3)
    assert torch.equal(found.vision_mask[0], before.vision_mask[0, [0, 1, 1, 1, 2, 3]])


def test_replacing_takes_the_features_tokens_out() -> None:
    found = hide_images(insert(early(), 1), image_id=IMAGE, pad_id=PAD)
    assert values(found.tokens) == [[5, SLOT, 6, 9, PAD], [5, SLOT, 8, PAD, PAD]]
    assert values(found.placeholders) == [[0, 1, 0, 0, 0]] * 2
    assert values(found.labels) == [[NO, NO, NO, 9, NO], [NO, NO, 8, NO, NO]]
    assert values(found.padding) == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
    assert not found.vision_mask.any()


def test_replacing_in_left_padded_prompts() -> None:
    found = hide_images(insert(early("left"), 1), image_id=IMAGE, pad_id=PAD, pad_side="left")
    assert values(found.tokens) == [[PAD, 5, SLOT, 6, 9], [PAD, PAD, 5, SLOT, 8]]
    assert values(found.padding) == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 1]]


def test_replacing_before_cross_attention_hides_every_feature() -> None:
    before = insert(cross_attending())
    found = hide_images(before, image_id=IMAGE, pad_id=PAD)
    assert torch.equal(found.tokens, before.tokens) and not found.vision_mask.any()
    assert before.vision_mask.any(), "the rows given are not changed"


@pytest.mark.parametrize("rows", [insert(early()), insert(cross_attending())])
def test_widening_fills_on_the_right(rows: TokenRows) -> None:
    found, more = widen(rows, 9, PAD), 9 - rows.tokens.shape[1]
    assert found.tokens.shape[1] == 9 and found.placeholders is not None and rows.placeholders is not None
    assert torch.equal(found.tokens[:, :-more], rows.tokens) and not (found.tokens[:, -more:] != PAD).any()
    assert torch.equal(found.placeholders[:, :-more], rows.placeholders) and not found.placeholders[:, -more:].any()
    if rows.labels is not None and found.labels is not None:
        assert torch.equal(found.labels[:, :-more], rows.labels) and bool((found.labels[:, -more:] == NO).all())
    if rows.vision_mask.dim() == 3:
        assert torch.equal(found.vision_mask[:, :-more], rows.vision_mask) and not found.vision_mask[:, -more:].any()


def test_the_connector_is_norm_linear_gelu_linear() -> None:
    connector = ExemplarConnector(6, 4, seed=2).double()
    with torch.no_grad():
        connector.norm.weight.uniform_(0.5, 1.5)
        connector.norm.bias.uniform_(-1, 1)
    features = torch.randn(2, 3, 6, dtype=torch.float64)
    centred = features - features.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * connector.norm.weight
    inner = (normed + connector.norm.bias) @ connector.linear_1.weight.T + connector.linear_1.bias
    active = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    expected = active @ connector.linear_2.weight.T + connector.linear_2.bias
    found = connector(features)
    assert found.shape == (6, 4)
    torch.testing.assert_close(found, expected.flatten(0, 1), rtol=0, atol=1e-12)


def test_the_connector_is_fp32_and_its_start_is_torchs_from_a_seed_of_its_own() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    connector = ExemplarConnector(64, 48, seed=1)
    again, other = ExemplarConnector(64, 48, seed=1), ExemplarConnector(64, 48, seed=2)
    reference = nn.Linear(64, 48)
    assert {p.dtype for p in connector.parameters()} == {torch.float32}
    assert connector(torch.randn(1, 2, 64).bfloat16()).dtype == torch.float32
    assert connector.linear_1.weight.std().item() == pytest.approx(reference.weight.std().item(), rel=0.05)
    assert connector.linear_1.weight.abs().max().item() <= 64**-0.5
    assert torch.equal(connector.linear_2.weight, again.linear_2.weight)
    assert not torch.equal(connector.linear_2.weight, other.linear_2.weight)
    torch.set_rng_state(before)
    ExemplarConnector(64, 48, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
