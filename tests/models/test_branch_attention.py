"""Branches attended to in two calls, and a last layer of chosen columns, against whole rows: states and gradients."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchtune import training
from torchtune.modules import TransformerSelfAttentionLayer

from medtune.data.sample import Message, Sample
from medtune.errors import ModelError
from medtune.losses.log_probs import sequence_log_probs
from medtune.models.common.branch_attention import BranchMask, LastLayer
from medtune.models.common.branch_predictions import Predictions
from medtune.models.common.branches import Branch, PackedRows, pack
from medtune.modules.exemplar import TokenRows
from tests.objectives.tiny_vitask import BUILDERS, family

NO = -100
ANSWERS = (([4, 5, 6], [7]), ([8], [9, 10]), ([11, 12], [13, 14, 15, 16]))


@pytest.fixture(params=BUILDERS)
def prompts(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any], TokenRows]:
    """A model, and a batch of three prompts of different lengths about pictures of different sizes."""
    model, transform = family(request.param)
    items = []
    for number, words in enumerate(("Name it.", "What is shown in this picture here?", "Colour?")):
        sample = Sample(str(number), ("a.png",), (Message("user", words),))
        picture = Image.new("RGB", (16 * (1 + number % 2), 16), (200, 30 * number, 30))
        items.append(transform(sample, [picture], inference=True))
    batch = transform.collate(items)
    return model, batch, TokenRows(batch["tokens"], batch["vision_mask"], None, batch["padding"])


def branches() -> list[Branch]:
    made = []
    for side in (0, 1):
        texts = [pair[side] for pair in ANSWERS]
        width = max(map(len, texts))
        tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
        real = torch.tensor([[place < len(text) for place in range(width)] for text in texts])
        made.append(Branch(tokens, tokens.masked_fill(~real, NO), real))
    return made


def run(model: Any, packed: PackedRows, features: Tensor, **more: Any) -> Tensor:
    rows = packed.rows
    return model.hidden(
        rows.tokens, features, vision_mask=rows.vision_mask, mask=packed.mask, input_pos=packed.input_pos, **more
    )


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward(retain_graph=True)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def sums_of_whole_rows(model: Any, rows: TokenRows, features: Tensor) -> Tensor:
    found = []
    for branch in branches():
        one = pack(rows, [branch], pad_id=0).rows
        hidden = model.hidden(one.tokens, features, vision_mask=one.vision_mask)
        found.append(sequence_log_probs(hidden, one.labels, model.logits)[0])
    return torch.stack(found, dim=1)


def test_aligned_rows_are_packed_rows(prompts: tuple[Any, dict[str, Any], TokenRows]) -> None:
    model, batch, rows = prompts
    features = model.encode(batch["vision"])
    aligned = pack(rows, branches(), pad_id=0, aligned=True)
    packed = pack(rows, branches(), pad_id=0)
    assert isinstance(aligned.mask, BranchMask) and aligned.mask.prefix == rows.tokens.shape[1]
    assert aligned.rows.tokens.shape[1] == rows.tokens.shape[1] + 3 + 4 > packed.rows.tokens.shape[1]
    ours, theirs = (one.unpack(run(model, one, features))[one.filled] for one in (aligned, packed))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_log_probs_and_gradients_are_those_of_whole_rows(prompts: tuple[Any, dict[str, Any], TokenRows]) -> None:
    model, batch, rows = prompts
    features = model.encode(batch["vision"])
    aligned = pack(rows, branches(), pad_id=0, aligned=True)
    predictions = Predictions.of(aligned)
    assert predictions.lengths(3).tolist() == [[3, 1], [1, 2], [2, 4]]
    assert predictions.columns.shape[1] == 1 + (2 - 1) + (4 - 1)  # of the row with most
    hidden = run(model, aligned, features, keep=predictions.columns)
    assert hidden.shape[:2] == predictions.columns.shape
    ours, theirs = predictions.log_probs(hidden, model.logits, 3), sums_of_whole_rows(model, rows, features)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    scale = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.0, 0.7]], dtype=torch.float64)
    found, expected = (gradients(model, (one.tanh() * scale + 0.01 * one).sum()) for one in (ours, theirs))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("masked", [False, True])
def test_chosen_columns_are_those_of_all(prompts: tuple[Any, dict[str, Any], TokenRows], masked: bool) -> None:
    """Under the plain causal mask, and under one that is given as a tensor, with positions that begin at 5."""
    model, batch, rows = prompts
    features = model.encode(batch["vision"])
    width = rows.tokens.shape[1]
    mask = torch.ones(3, width, width, dtype=torch.bool).tril() if masked else None
    if mask is not None:
        mask[:, 3:, 1] = False
    positions = torch.arange(5, width + 5).expand(3, -1) if masked else None
    more = {"vision_mask": rows.vision_mask, "mask": mask, "input_pos": positions}
    whole = model.hidden(rows.tokens, features, **more)
    columns = torch.tensor([[2, 7, 5], [6, 6, 0], [1, 3, 4]])
    chosen = model.hidden(rows.tokens, features, **more, keep=columns)
    expected = torch.stack([whole[row, places] for row, places in enumerate(columns)])
    torch.testing.assert_close(chosen, expected, rtol=0, atol=2e-6)
    other = model.hidden(rows.tokens, features, vision_mask=rows.vision_mask, keep=columns)
    assert not masked or (other - expected).abs().max() > 1e-3  # the mask and the positions matter


def test_the_last_layer_computes_no_other_column(prompts: tuple[Any, dict[str, Any], TokenRows]) -> None:
    model, batch, rows = prompts
    seen: list[tuple[str, int]] = []
    (last,) = [module for module in model.decoder.modules() if isinstance(module, LastLayer)]
    handles = [
        part.register_forward_hook(lambda _, inputs, __, name=name: seen.append((name, inputs[0].shape[1])))
        for name, part in (("q", last.attn.q_proj), ("k", last.attn.k_proj), ("mlp", last.mlp))
    ]
    columns = torch.tensor([[2, 3]] * 3)
    model.hidden(rows.tokens, model.encode(batch["vision"]), vision_mask=rows.vision_mask, keep=columns)
    assert sorted(seen) == [("k", rows.tokens.shape[1]), ("mlp", 2), ("q", 2)]
    for handle in handles:
        handle.remove()


def test_checkpointed_layers_give_the_same_gradients(prompts: tuple[Any, dict[str, Any], TokenRows]) -> None:
    model, batch, rows = prompts
    aligned = pack(rows, branches(), pad_id=0, aligned=True)
    predictions = Predictions.of(aligned)
    found = []
    for wrapped in (False, True):
        if wrapped:
            training.set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
        hidden = run(model, aligned, model.encode(batch["vision"]), keep=predictions.columns)
        got = gradients(model, predictions.log_probs(hidden, model.logits).sum())
        found.append({name.replace("_checkpoint_wrapped_module.", ""): value for name, value in got.items()})
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_the_limit_is_that_of_one_branch_and_not_of_the_row(prompts: tuple[Any, dict[str, Any], TokenRows]) -> None:
    model, batch, rows = prompts
    features = model.encode(batch["vision"])
    aligned = pack(rows, branches(), pad_id=0, aligned=True)
    assert isinstance(aligned.mask, BranchMask)
    model.decoder.max_seq_len = aligned.mask.longest
    assert aligned.rows.tokens.shape[1] > model.decoder.max_seq_len
    run(model, aligned, features)
    model.decoder.max_seq_len -= 1
    with pytest.raises(ModelError, match=f"{aligned.mask.longest} tokens is longer than the model's"):
        run(model, aligned, features)


def test_the_rows_of_a_mask_by_hand() -> None:
    """Two prefixes, of two tokens and of one, and branches of two tokens and of one."""
    sees = torch.ones(2, 0, dtype=torch.bool)
    prefix = TokenRows(torch.tensor([[4, 5], [6, 0]]), sees, padding=torch.tensor([[True, True], [True, False]]))
    first, second = (torch.tensor([[7, 8], [9, 10]]), torch.tensor([[11], [12]]))
    packed = pack(prefix, [Branch(first, first), Branch(second, second)], pad_id=0, aligned=True)
    mask = packed.mask
    assert isinstance(mask, BranchMask) and mask.longest == 4 and mask.prefix == 2
    assert packed.input_pos.tolist() == [[0, 1, 2, 3, 2], [0, 0, 1, 2, 1]]
    every = torch.arange(5).expand(2, -1)
    assert mask.rows(every).int().tolist() == [
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 0, 1]],
    ]
    predictions = Predictions.of(packed)
    # the states of: the last token of the prefix, which predicts both first tokens, and the first token of the first
    assert predictions.columns.tolist() == [[1, 2], [0, 2]]
    assert predictions.rows.tolist() == [0, 1, 2, 3, 0, 2] and predictions.targets.tolist() == [7, 8, 9, 10, 11, 12]
    assert predictions.slots.tolist() == [0, 1, 4, 5, 2, 6]


def test_a_batch_without_a_supervised_token_has_a_zero_with_a_backward_pass(
    prompts: tuple[Any, dict[str, Any], TokenRows],
) -> None:
    model, batch, rows = prompts
    blank = [Branch(one.tokens, torch.full_like(one.tokens, NO), one.padding) for one in branches()]
    aligned = pack(rows, blank, pad_id=0, aligned=True)
    predictions = Predictions.of(aligned)
    sums = predictions.log_probs(
        run(model, aligned, model.encode(batch["vision"]), keep=predictions.columns), model.logits
    )
    assert sums.shape == (3, 2) and not sums.any() and not predictions.lengths(3).any()
    found = gradients(model, sums.sum())
    assert "decoder.norm.scale" in found and not any(value.any() for value in found.values())


def test_a_supervised_prefix_and_caches_are_refused(prompts: tuple[Any, dict[str, Any], TokenRows]) -> None:
    model, batch, rows = prompts
    labels = rows.tokens.clone()
    with pytest.raises(ModelError, match="prefix must have none"):
        Predictions.of(pack(TokenRows(rows.tokens, rows.vision_mask, labels, rows.padding), branches(), pad_id=0))
    features = model.encode(batch["vision"])
    model.setup_caches(3, torch.float32, encoder_max_seq_len=features.shape[1], decoder_max_seq_len=64)
    with pytest.raises(ModelError, match="without key-value caches only"):
        keep = torch.zeros(3, 1, dtype=torch.long)
        model.hidden(rows.tokens, features, vision_mask=rows.vision_mask, keep=keep)
