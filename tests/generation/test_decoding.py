"""Logits with a cache, left padding and neighbours equal logits without any of them."""

import torch

from medtune.generation.engine.batches import Plan, PromptBatch
from medtune.generation.engine.continuous_cache import SelfAttentionCache
from medtune.generation.engine.decoding import CachedDecoder
from medtune.generation.engine.features import FeatureStore
from medtune.generation.requests import Request

FORCED = [[5, 60, 7, 88], [120, 9, 33, 33], [2, 250, 41, 17]]


def prompt_batch(setup, requests: list[Request]) -> PromptBatch:
    items = [setup.transform(r.sample, setup.source.open_images(r.sample), inference=True) for r in requests]
    batch = setup.transform.collate(items, pad_side="left")
    parts = (batch[name] for name in ("tokens", "padding", "vision", "vision_mask"))
    return PromptBatch(Plan(requests, frozenset()), requests, *parts)


def decoded(setup, decoder: CachedDecoder, requests: list[Request]) -> torch.Tensor:
    """Logits after the prompt and after each forced token, [rows, 1 + forced, vocabulary]."""
    batch = prompt_batch(setup, requests)
    steps = [decoder.prefill(batch, FeatureStore(setup.model, at_once=2)(batch), new_tokens=4)]
    steps += [decoder.step([row[i] for row in FORCED[: len(requests)]]) for i in range(4)]
    return torch.stack(steps, dim=1)


def plain(setup, requests: list[Request]) -> torch.Tensor:
    """The same logits from plain forwards; there must be no caches yet."""
    return torch.stack([setup.plain_logits(r, forced)[-5:] for r, forced in zip(requests, FORCED, strict=False)])


@torch.inference_mode()
def test_steps_equal_plain_forwards_for_one_decoder_and_many_batches(setup):
    """Measured: 2.4e-6 on logits up to 3.6 (deep), 1.1e-5 up to 6.5 (early); positions that stand still give 3.8."""
    decoder = CachedDecoder(setup.model, torch.device("cpu"), torch.float32)
    mixed = [
        setup.request("a", "cell " * 9, "large-1"),
        setup.request("b", "cell size", "tall-2", "square-3"),
        setup.request("c", "what is the nucleus"),
    ]
    batches = [mixed, [setup.request("d", "color", "wide-4"), setup.request("e", "x " * 20)], mixed[2:], mixed]
    expected = [plain(setup, requests) for requests in batches]
    try:
        for requests, logits in zip(batches, expected, strict=True):
            assert logits.abs().max() > 1
            found = decoded(setup, decoder, requests)
            assert (found - logits).abs().max() < 3e-6 * logits.abs().max()
    finally:
        decoder.close()
    assert not setup.model.caches_are_setup()


@torch.inference_mode()
def test_caches_are_made_again_only_where_they_are_too_small(setup, monkeypatch):
    made = []
    resize = SelfAttentionCache.resize
    monkeypatch.setattr(
        SelfAttentionCache, "resize", lambda *a: made.append(a[1:3]) if resize(*a) is None else None, raising=True
    )
    decoder = CachedDecoder(setup.model, torch.device("cpu"), torch.float32)
    long, short = setup.request("a", "cell " * 9, "large-1"), setup.request("b", "cell", "square-1")
    longest = setup.request("c", "cell " * 60, "square-1")
    try:
        for requests in ([long, short], [short, short], [long, long], [short], [longest]):
            decoded(setup, decoder, requests)
    finally:
        decoder.close()
    layers = len(setup.model.decoder.layers)
    assert len(made) == 2 * layers
    assert [rows for rows, _ in made] == [2] * 2 * layers, "fewer rows use what is there"
    assert made[0][1] < made[-1][1]
