"""What prompts begin with is read once: the same logits, the same answers, fewer tokens."""

from dataclasses import replace

import pytest
import torch

from medtune.generation.engine import packed_decoding, prefixes
from medtune.generation.engine.batches import Plan, PromptBatch, left_pad
from medtune.generation.engine.decoding import CachedDecoder
from medtune.generation.engine.features import FeatureStore
from medtune.generation.engine.generator import Generator
from medtune.generation.engine.packed_decoding import PackedDecoder, pack
from medtune.generation.engine.prefixes import SharedPrefixes, find_shared
from medtune.generation.exemplars import ExemplarSource
from medtune.generation.prompt_extension import NoExtension
from medtune.models.exemplars import ExemplarRecord, save_exemplars
from medtune.modules.exemplar import ExemplarConnector
from tests.generation.test_decoding import prompt_batch
from tests.tiny_task import write_tsm

CPU, IMAGE = torch.device("cpu"), 99


def token_batch(rows: list[list[int]], attended: bool = False) -> PromptBatch:
    tokens, padding = left_pad(rows, 0)
    shape = (len(rows), tokens.shape[1], 2) if attended else (len(rows), 2)
    return PromptBatch(Plan([], frozenset()), [None] * len(rows), tokens, padding, {}, torch.ones(shape).bool())


@pytest.fixture
def eager(monkeypatch):
    """Share however little it saves."""
    monkeypatch.setattr(prefixes, "WORTH", 3.0)


def test_a_group_reads_its_beginning_once():
    image = [1, *[IMAGE] * 20]
    rows = [[*image, 2, 5, 6], [*image, 2, 7], [3, 4], [*image, 2, 5, 8, 9]]
    found = find_shared(token_batch(rows), ["a", "a", "", "a"], IMAGE)
    assert found.readers == 1
    assert found.reader == [0, 0, 0, 0]
    assert sorted(found.order[:3]) == [0, 1, 3]
    assert found.order[3] == 2
    assert (found.length, found.images) == ([22, 22, 22, 0], [20, 20, 20, 0])
    assert (found.tokens, found.images_left) == (22, False)


def test_rows_without_a_partner_are_cut_so_that_the_second_pass_stays_narrow():
    image = [1, *[IMAGE] * 20]
    rows = [[*image, 2], [*image, 3], [*image, 4], [1, *[IMAGE] * 10, 5, 6, 7]]
    found = find_shared(token_batch(rows), ["a", "a", "a", "b"], IMAGE)
    assert [found.length[place] for place in (0, 1)] == [21, 13]
    assert (found.order[1], found.reader) == (3, [0, 1, 0, 0])


def test_no_pass_ends_within_an_image_whose_tokens_see_one_another(eager):
    image = [1, *[IMAGE] * 20]
    rows = [[*image, 2], [*image, 3], [*image, 4], [*image, 9], [1, 2, *[IMAGE] * 3, 5, 6, 7], [8, 9, *[IMAGE] * 9]]
    keys = ["a", "a", "a", "a", "b", "c"]
    found = find_shared(token_batch(rows), keys, IMAGE, whole_images=True)
    prompts = [rows[row] for row in found.order]
    cuts = [prompt[length - 1 : length + 1] for prompt, length in zip(prompts, found.length, strict=True) if length]
    assert [IMAGE, IMAGE] not in cuts and max(found.length) == 21 and found.images_left
    free = find_shared(token_batch(rows), keys, IMAGE)
    assert [IMAGE, IMAGE] in [rows[row][at - 1 : at + 1] for row, at in zip(free.order, free.length, strict=True) if at]


def test_equal_prompts_share_all_but_their_last_token():
    found = find_shared(token_batch([[1, 2, 3, 4, 5]] * 4), [""] * 4, IMAGE)
    assert found.length == [4] * 4


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([[1, *[IMAGE] * 20, 2], [1, *[IMAGE] * 20, 3]], ["a", "b"]),  # other images
        ([[1, *[IMAGE] * 20, 2], [2, *[IMAGE] * 20, 3]], ["a", "a"]),  # other text before the image
        ([[1, IMAGE, *range(20)], [1, IMAGE, *range(1, 21)]], ["a", "a"]),  # too little in common
        ([[1, 2, 3, 4]], ["a"]),
    ],
)
def test_what_does_not_pay_is_read_in_one_pass(rows, keys):
    assert find_shared(token_batch(rows), keys, IMAGE) is None


def test_a_cross_attending_row_reads_its_images_in_the_first_pass(eager):
    rows = [[1, IMAGE, 2, 3, 4, 5, 6], [1, IMAGE, 2, 3, 4, 5, 7], [1, IMAGE]]
    found = find_shared(token_batch(rows, attended=True), ["a", "a", "b"], IMAGE)
    assert (found.length, found.readers) == ([6, 1, 6], 2)
    assert find_shared(token_batch([*rows, [8]], attended=True), ["a", "a", "b", "c"], IMAGE) is None


def questions(setup):
    """Twelve on one image, some on others, on two and on none; longer and shorter, two of them alike."""
    words = ["cell", "size", "what is the nucleus", "color", "big", "small", "cell size", "what", "the", "is", "x", "x"]
    made = [setup.request(f"a{i}", f"what is {word}", "wide-2") for i, word in enumerate(words)]
    made += [setup.request(f"b{i}", f"what {word}", "tall-4", "square-5") for i, word in enumerate(words[:3])]
    made += [setup.request("c", "cell", "large-3"), setup.request("d", "what is the cell size")]
    return [*made, setup.request("e", "what <image> or is it this <image> cell", "tall-4", "square-5")]


@pytest.mark.parametrize("fullness", [None, 0.9, 0.1])
@torch.inference_mode()
def test_logits_equal_those_of_one_pass(setup, eager, monkeypatch, fullness):
    """Row by row, and in packs narrow and wide.

    Measured: 1.1e-5 on logits up to 8, and between 4e-6 and 2e-5 with noise of 1e-6 on the features.
    """
    monkeypatch.setattr(packed_decoding, "FULLNESS", fullness or 1.0)
    made = questions(setup)
    keys = [tuple(request.image_keys) for request in made]
    shared = find_shared(prompt_batch(setup, made), keys, setup.transform.image_id)
    assert shared.readers < len(keys)
    compare_with_one_pass(setup, made, shared, bool(fullness))


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("setup", ["early", "axes"], indirect=True)
@torch.inference_mode()
def test_a_beginning_may_end_within_an_image(setup, monkeypatch, packs):
    """The rows of a pack then have half an image each left."""
    monkeypatch.setattr(packed_decoding, "FULLNESS", 0.1)
    made = [setup.request(word, f"{word} x", "wide-3") for word in ("cell", "size", "what")]
    prompt, image_id = prompt_batch(setup, made).prompt(0), setup.transform.image_id
    begun = prompt.index(image_id) + prompt.count(image_id) // 2 + 1
    count = prompt[:begun].count(image_id)
    assert 0 < count < prompt.count(image_id)
    compare_with_one_pass(setup, made, SharedPrefixes([0, 1, 2], 1, [0] * 3, [begun] * 3, [count] * 3, True), packs)


def compare_with_one_pass(setup, requests, shared, packs):
    batch = prompt_batch(setup, requests)
    features = FeatureStore(setup.model, at_once=2)(batch)
    decoder = CachedDecoder(setup.model, CPU, torch.float32)
    forced = torch.arange(3 * len(requests)).reshape(3, -1)
    packed = PackedDecoder(decoder, setup.transform.max_seq_len) if packs else decoder
    try:
        plain = [decoder.prefill(batch, features, 3)] + [decoder.step(row.tolist()) for row in forced]
        ordered = batch.select(shared.order)
        found = [packed.prefill(ordered, features[shared.order], 3, shared)]
        found += [packed.step(row[shared.order].tolist()) for row in forced]
    finally:
        decoder.close()
    for one, two in zip(plain, found, strict=True):
        assert one.abs().max() > 1
        assert (one[shared.order] - two).abs().max() < max(1e-5, 3e-6 * one.abs().max())


def shares(reader: list[int], length: list[int]) -> SharedPrefixes:
    rows = list(range(len(reader)))
    return SharedPrefixes(rows, len(set(reader)), reader, length, [0] * len(rows), False)


def test_packs_are_as_wide_as_leaves_few_places_empty():
    packing = pack(shares([0, 1, *[0] * 5, *[1] * 5], [9] * 12), most=99)
    assert (packing.width, packing.copies) == (6, [])
    assert packing.rows == [0, 2, 3, 4, 5, 6, 1, 7, 8, 9, 10, 11]
    assert [packing.rows[place] for place in packing.places] == list(range(12))
    assert pack(shares([0, 1, *[0] * 5], [9] * 7), most=99).width == 2  # 6 and 1: eight places for seven rows
    packing = pack(shares([0, 1, *[0] * 5, *[1] * 2], [9] * 9), most=99)  # 6 and 3: three packs of 3
    assert (packing.width, packing.copies) == (3, [0])
    assert packing.rows == [0, 2, 3, 1, 7, 8, 4, 5, 6]


def test_a_pack_is_no_wider_than_a_forward_pass_allows():
    assert pack(shares([0] * 12, [9] * 12), most=4).width == 4
    assert pack(shares([0] * 12, [9] * 12), most=0).width == 1


def test_rows_that_read_no_beginning_have_packs_of_their_own():
    packing = pack(shares([0, 0, 0, 0], [5, 5, 5, 0]), most=99)
    assert packing.width == 1
    assert (packing.rows, packing.copies) == ([0, 1, 2, 3], [0, 0])


@torch.inference_mode()
def test_a_shared_beginning_is_kept_once(setup, eager):
    """Keys and values of twelve questions on an image need less room than twelve prompts do."""
    batch = prompt_batch(setup, questions(setup)[:12])
    features = FeatureStore(setup.model, at_once=2)(batch)
    shared = find_shared(batch, [""] * 12, setup.transform.image_id)
    decoder, rooms = CachedDecoder(setup.model, CPU, torch.float32), []
    try:
        for packed in (False, True):
            way = PackedDecoder(decoder, 128) if packed else decoder
            way.prefill(batch.select(shared.order), features[shared.order], 4, shared)
            rooms.append(decoder.caches.rows * decoder.caches.columns)
            decoder.close()
    finally:
        decoder.close()
    assert rooms[1] < rooms[0]


def answers(setup, requests, **options):
    generator = Generator(setup.model, setup.transform, **{"max_new_tokens": 8, "batch_size": 8, **options})
    return {answer.id: answer for answer in generator(requests)}, generator


@pytest.mark.parametrize("size", [3, 8, 32])
def test_answers_stay_the_same(setup, eager, size):
    requests = questions(setup)
    plain, one = answers(setup, requests, batch_size=size, share_prefix=False)
    shared, two = answers(setup, requests, batch_size=size)
    assert {k: a.text for k, a in shared.items()} == {k: a.text for k, a in plain.items()}
    assert two.tokens_read < one.tokens_read


def test_twelve_questions_on_one_image_read_it_once(setup):
    requests = questions(setup)[:12]
    lengths = [
        len(setup.transform(r.sample, r.source.open_images(r.sample), inference=True)["tokens"]) for r in requests
    ]
    _, plain = answers(setup, requests, batch_size=12, share_prefix=False)
    _, shared = answers(setup, requests, batch_size=12)
    assert plain.tokens_read == sum(lengths)
    assert shared.tokens_read < 0.6 * plain.tokens_read


def test_requests_that_an_extension_keeps_apart_share_nothing(setup, eager):
    class Adapters(NoExtension):
        seen: list[int] = []

        def prefix_key(self, request):
            return request.id

        def before_forward(self, requests):
            self.seen.append(len(requests))

    requests = questions(setup)[:5]
    found, generator = answers(setup, requests, extension=Adapters(), batch_size=5)
    lengths = [
        len(setup.transform(r.sample, r.source.open_images(r.sample), inference=True)["tokens"]) for r in requests
    ]
    assert generator.tokens_read == sum(lengths)
    assert set(Adapters.seen) == {5}
    plain, _ = answers(setup, requests)
    assert {k: a.text for k, a in found.items()} == {k: a.text for k, a in plain.items()}


def test_requests_of_two_groups_share_no_batch(setup):
    class Halves(NoExtension):
        def group_key(self, request):
            return int(request.id[1:]) % 2

    requests = questions(setup)[:7]
    generator = Generator(setup.model, setup.transform, batch_size=3, max_new_tokens=1, extension=Halves())
    batches = [sorted(int(answer.id[1:]) % 2 for answer in batch) for batch in generator.batches(requests)]
    assert sorted(map(len, batches)) == [1, 3, 3]
    assert all(len(set(batch)) == 1 for batch in batches)


@pytest.mark.parametrize("exemplar", ["cls", "all", "replace"])
def test_prompts_on_one_image_share_its_exemplars_too(setup, eager, tmp_path, exemplar):
    connector = ExemplarConnector(12, 32, seed=3)
    with torch.no_grad():
        connector.linear_2.weight.mul_(8)
    save_exemplars(tmp_path / "exemplar", connector, ExemplarRecord(exemplar, write_tsm(tmp_path / "tsm")))
    extension = ExemplarSource(str(tmp_path / "exemplar")).open(setup.transform, CPU)
    requests = [request for request in questions(setup) if request.sample.images]
    plain, one = answers(setup, requests, extension=extension, share_prefix=False)
    shared, two = answers(setup, requests, extension=extension)
    assert {k: a.text for k, a in shared.items()} == {k: a.text for k, a in plain.items()}
    assert two.tokens_read < one.tokens_read
    bare, _ = answers(setup, requests)
    assert {k: a.text for k, a in shared.items()} != {k: a.text for k, a in bare.items()}


@pytest.mark.parametrize(("words", "mixed"), [(1, False), (50, True)])
def test_short_questions_on_one_image_stand_in_one_batch(setup, words, mixed):
    """Sorted by length alone they would be scattered over the window; long texts on an image are."""
    names = ["wide-1", "wide-2", "wide-3"]
    requests = [
        setup.request(f"{name}/{i}", "cell " * (words + i), name, max_new_tokens=1) for i in range(4) for name in names
    ]
    generator = Generator(setup.model, setup.transform, batch_size=4)
    batches = [{answer.id.split("/")[0] for answer in batch} for batch in generator.batches(requests)]
    assert [len(batch) for batch in batches] == ([3, 3, 3] if mixed else [1, 1, 1])


def test_a_request_may_be_scored_and_answered_beside_others_on_its_image(setup, eager):
    requests = [replace(r, continuations=("big", "small")) if i % 3 == 0 else r for i, r in enumerate(questions(setup))]
    plain, _ = answers(setup, requests, share_prefix=False)
    shared, _ = answers(setup, requests)
    for name, answer in plain.items():
        assert shared[name].text == answer.text
        assert shared[name].scores == pytest.approx(answer.scores, abs=1e-5, rel=1e-6)
