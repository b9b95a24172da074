"""Rows of keys and values: written, copied, grown, each at a position of its own."""

import torch

from medtune.generation.engine.continuous_cache import CrossAttentionCache, Cursor, SelfAttentionCache, SlotCaches

LIKE = torch.zeros(1, 2, 1, 3)


def keys(rows: int, columns: int, start: float = 1.0) -> torch.Tensor:
    return torch.arange(rows * 2 * columns * 3).reshape(rows, 2, columns, 3) + start


def test_rows_are_written_at_their_own_columns():
    cursor = Cursor()
    cache = SelfAttentionCache(cursor, LIKE)
    cache.resize(3, 6, keep=0)
    cursor.rows, cursor.columns, cursor.length = slice(0, 3), 0, 2
    first = keys(3, 2)
    found, values = cache.update(first, -first)
    assert torch.equal(found, first)
    assert torch.equal(values, -first)
    cursor.rows, cursor.columns, cursor.length = slice(1, 3), torch.tensor([[2], [4]]), 5
    new = keys(2, 1, 100.0)
    found, values = cache.update(new, -new)
    assert found.shape == (2, 2, 5, 3)
    assert torch.equal(found[0, :, 2], new[0, :, 0])
    assert torch.equal(found[1, :, 4], new[1, :, 0])
    assert torch.equal(values, -found)
    assert torch.equal(found[:, :, :2], first[1:])
    assert not found[0, :, 3:].any()
    assert not found[1, :, 2:4].any()
    assert not cache.keys[0, :, 2:].any(), "a row out of the pass stays as it was"


def test_growing_keeps_the_rows_that_are_in_use():
    cache = SelfAttentionCache(Cursor(slice(0, 2), 0, 3), LIKE)
    cache.resize(2, 3, keep=0)
    cache.update(keys(2, 3), keys(2, 3, 50.0))
    cache.resize(4, 5, keep=1)
    assert torch.equal(cache.keys[:1, :, :3], keys(2, 3)[:1])
    assert torch.equal(cache.values[:1, :, :3], keys(2, 3, 50.0)[:1])
    assert not cache.keys[1:].any()
    assert cache.keys.shape == (4, 2, 5, 3)


def test_rows_are_copied():
    cache = SelfAttentionCache(Cursor(slice(0, 4), 0, 3), LIKE)
    cache.resize(4, 3, keep=0)
    cache.update(keys(4, 3), -keys(4, 3))
    cache.copy_row(1, slice(2, 4), 2)
    for row in (2, 3):
        assert torch.equal(cache.keys[row, :, :2], keys(4, 3)[1, :, :2])
        assert torch.equal(cache.values[row, :, :2], -keys(4, 3)[1, :, :2])
    assert torch.equal(cache.keys[2:, :, 2], keys(4, 3)[2:, :, 2]), "only the first two columns"
    assert torch.equal(cache.keys[:2], keys(4, 3)[:2])


def test_image_embeddings_leave_nothing_of_the_row_s_last_image():
    cursor = Cursor(slice(0, 2), 0, 1, features=4)
    cache = CrossAttentionCache(cursor, LIKE)
    cache.resize(2, 4, keep=0)
    cache.update(keys(2, 4), keys(2, 4))
    cursor.rows = slice(1, 2)
    found, _ = cache.update(keys(1, 2, 70.0), keys(1, 2, 70.0))
    assert found.shape[2] == 2
    assert not cache.k_cache[:, :, 2:].any()
    cursor.rows = slice(0, 1)
    assert torch.equal(cache.v_cache, keys(2, 4)[:1])
    assert cache.size == 4


def test_a_model_gets_its_caches_and_loses_them(setup):
    caches = SlotCaches(setup.model, torch.device("cpu"), torch.float32)
    try:
        caches.reserve(2, 10, 5)
        assert setup.model.caches_are_setup()
        layers = [m.kv_cache for m in setup.model.modules() if getattr(m, "kv_cache", None) is not None]
        assert {type(layer) for layer in layers} <= {SelfAttentionCache, CrossAttentionCache}
        assert all(len(layer.keys) == 2 for layer in layers)
        caches.reserve(3, 10, 9, keep=2)
        assert all(len(layer.keys) == 3 for layer in layers)
        assert all(layer.keys.shape[2] == 9 for layer in layers if isinstance(layer, CrossAttentionCache))
        for layer in layers:
            layer.keys[:2] = torch.tensor([1.0, 2.0])[:, None, None, None]
        caches.copy_rows([1, 0], 1, 4)
        assert [[float(layer.keys[row, 0, 0, 0]) for row in range(3)] for layer in layers] == [[1.0, 2.0, 1.0]] * len(
            layers
        )
    finally:
        caches.close()
    assert not setup.model.caches_are_setup()
