"""Greedy answers with the cache equal transformers' ``generate``, past the window and whatever a batch holds."""

import warnings

import pytest
import torch

from medtune.generation.engine.batches import Plan, PromptBatch
from medtune.generation.engine.decoding import CachedDecoder
from medtune.generation.engine.packed_decoding import PackedDecoder
from medtune.generation.engine.prefixes import find_shared
from medtune.models.common.branches import Branch, pack
from medtune.modules.exemplar import TokenRows
from tests.parity.gemma3_twin import IMAGE, PAD, SHAPE, batch_of, item, left_padded, our_logits, tiny, twin

NEW = 24
ITEMS = [item([1, 2, None, *range(3, 10)], 1), item([1, None, 5, None, *range(40, 60)], 2), item([*range(30, 45)], 3)]


def sharp(seed=1):
    """With flat attention an output layer that is tied to the embeddings repeats its last token."""
    model = tiny(seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.scale"):
                parameter.add_(3)
        model.decoder.tok_embeddings.weight.mul_(0.2)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    ours = sharp()
    return ours, twin(ours, tmp_path_factory.mktemp("twin"))


def prompts(batch):
    requests = [None] * len(batch["tokens"])
    parts = (batch[name] for name in ("tokens", "padding", "vision", "vision_mask"))
    return PromptBatch(Plan([], frozenset()), requests, *parts)


@torch.inference_mode()
def greedy(model, batch, decoder=None, **more):
    """[b, NEW] answers and the logits that chose them."""
    decoder = decoder or CachedDecoder(model, torch.device("cpu"), torch.float32)
    logits = [decoder.prefill(prompts(batch), model.encode(batch["vision"]), NEW, **more)]
    for _ in range(NEW - 1):
        logits.append(decoder.step(logits[-1].argmax(dim=-1).tolist()))
    getattr(decoder, "decoder", decoder).close()
    found = torch.stack(logits, dim=1)
    return found.argmax(dim=-1), found


def theirs_greedy(theirs, batch):
    images, tiles = batch["vision"]["images"], batch["vision"]["tiles"]
    real = [images[b, i, :n] for b, row in enumerate(tiles) for i, n in enumerate(row)]
    pixels = {"pixel_values": torch.cat(real)} if tiles.sum() else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = theirs.generate(
            input_ids=batch["tokens"],
            attention_mask=batch["padding"].long(),
            token_type_ids=(batch["tokens"] == IMAGE).long(),
            **pixels,
            do_sample=False,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            suppress_tokens=None,
            eos_token_id=None,
            pad_token_id=PAD,
        )
    return out[:, batch["tokens"].shape[1] :]


@pytest.mark.parametrize("chosen", [[0], [1], [2], [0, 1, 2]], ids=str)
def test_answers_equal_generate(pair, chosen):
    ours, theirs = pair
    batch = batch_of(*(ITEMS[i] for i in chosen), pad_side="left")
    assert batch["tokens"].shape[1] + NEW > 2 * SHAPE.window
    found, _ = greedy(ours, batch)
    assert found.tolist() == theirs_greedy(theirs, batch).tolist()
    assert all(len(set(row)) > 2 for row in found.tolist()), "the model repeats itself"


@torch.inference_mode()
def test_cached_steps_equal_plain_forwards(pair):
    ours, _ = pair
    batch = batch_of(*ITEMS, pad_side="left")
    found, logits = greedy(ours, batch)
    longer = {**batch, "tokens": torch.cat([batch["tokens"], found], dim=1)}
    longer["padding"] = torch.cat([batch["padding"], torch.ones_like(found, dtype=torch.bool)], dim=1)
    plain = our_logits(ours, longer, **left_padded(longer))[:, batch["tokens"].shape[1] - 1 : -1]
    assert (plain - logits).abs().max() < 1e-5


def test_rows_that_share_a_prefix_answer_as_alone(pair, monkeypatch):
    """In packs, whose columns are no positions, and with the prefix copied; both past the window."""
    monkeypatch.setattr("medtune.generation.engine.prefixes.WORTH", 3.0)
    ours, _ = pair
    endings = ([50, 51], [52, *range(60, 67)], [53])
    rows = [item([1, 2, None, *range(3, 20), *ending], 1) for ending in endings] + [item([7, None, 8], 4)]
    batch = batch_of(*rows, pad_side="left")
    shared = find_shared(prompts(batch), ["a", "a", "a", "b"], IMAGE, whole_images=True)
    ordered = batch_of(*(rows[i] for i in shared.order), pad_side="left")
    expected = [greedy(ours, batch_of(rows[i], pad_side="left"))[0][0].tolist() for i in shared.order]
    assert greedy(ours, ordered, shared=shared)[0].tolist() == expected
    decoder = PackedDecoder(CachedDecoder(ours, torch.device("cpu"), torch.float32), 256)
    assert greedy(ours, ordered, decoder, shared=shared)[0].tolist() == expected


@torch.inference_mode()
@pytest.mark.parametrize("aligned", [False, True])
def test_branches_are_rows_of_their_own(pair, aligned):
    """The image is in the prefix; a branch of twenty tokens is longer than the window, and so is the prefix."""
    ours, _ = pair
    batch = batch_of(*ITEMS[:2])
    answers = [[list(range(60, 80)), [81, 82]], [[83], list(range(10, 25))]]
    branches = []
    for number in (0, 1):
        texts = [row[number] for row in answers]
        width = max(map(len, texts))
        tokens = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        branches.append(Branch(tokens, None, torch.tensor([[i < len(t) for i in range(width)] for t in texts])))
    prefix = TokenRows(batch["tokens"], batch["vision_mask"], padding=batch["padding"])
    packed = pack(prefix, branches, pad_id=PAD, aligned=aligned)
    features = ours.encode(batch["vision"])
    more = {"vision_mask": packed.rows.vision_mask, "mask": packed.mask, "input_pos": packed.input_pos}
    hidden = ours.hidden(packed.rows.tokens, features, **more)
    found = packed.unpack(hidden)
    chosen = packed.places.flatten(1)
    kept = ours.hidden(packed.rows.tokens, features, **more, keep=chosen).view_as(found)
    assert (kept - found)[packed.filled].abs().max() < 1e-5
    for row, texts in enumerate(answers):
        for number, text in enumerate(texts):
            one = {**ITEMS[row], "tokens": [*ITEMS[row]["tokens"], *text], "labels": [*ITEMS[row]["labels"], *text]}
            alone = batch_of(one)
            states = ours.hidden(alone["tokens"], ours.encode(alone["vision"]), vision_mask=alone["vision_mask"])
            assert (states[0, -len(text) - 1 :] - found[row, number, : len(text) + 1]).abs().max() < 1e-5
