"""A mixed batch of requests, each row with its adapter, through the generator and its key-value cache."""

import pytest
import torch

from medtune.errors import ModelError
from medtune.generation.engine.batches import PromptBatch
from medtune.generation.engine.generator import Generator
from medtune.generation.requests import Generation
from medtune.models.lora.bank import AdapterBank, _linear_maps
from tests.models.banked import alone, random_adapter


class Routed(Generator):
    """Answers each request with the adapter that is named for its id."""

    bank: AdapterBank
    chosen: dict[str, int]

    def _answer(self, batch: PromptBatch) -> list[Generation]:
        with self.bank.route([self.chosen[request.id] for request in batch.requests]):
            return super()._answer(batch)


def answers(model, setup, requests, batch_size, cls=Generator, **attributes) -> dict[str, Generation]:
    generator = cls(model, setup.transform, batch_size=batch_size, max_new_tokens=8, window=2)
    vars(generator).update(attributes)
    return {answer.id: answer for answer in generator(requests)}


@pytest.fixture
def requests(setup):
    made = setup.requests(12)
    return [setup.request(r.id, r.sample.messages[0].content, *r.sample.images) for r in made]


def adapters(model):
    maps = [prefix for prefix in _linear_maps(model) if prefix.startswith("decoder.layers.")]
    attention = [prefix for prefix in maps if ".attn." in prefix]
    return {
        "all": random_adapter(model, maps, 4, 4.0, seed=1),
        "attention": random_adapter(model, attention, 2, 6.0, seed=2),
    }


def test_a_mixed_batch_answers_as_each_adapter_alone(setup, requests):
    given = adapters(setup.model)
    single = [answers(model, setup, requests, 4) for model in
              (setup.model, *(alone(setup.model, one) for one in given.values()))]  # fmt: skip
    merged = [answers(alone(setup.model, one, merged=True), setup, requests, 4) for one in given.values()]
    differing = sum(len({one[r.id].text for one in single}) > 1 for r in requests)
    assert differing > len(requests) // 2, "the adapters change nothing"
    bank = AdapterBank(setup.model, given)
    try:
        for shift, batch_size in ((0, 5), (1, 4), (2, 1)):
            chosen = {request.id: (place + shift) % 3 - 1 for place, request in enumerate(requests)}
            found = answers(setup.model, setup, requests, batch_size, Routed, bank=bank, chosen=chosen)
            for request in requests:
                wanted = single[chosen[request.id] + 1][request.id]
                assert found[request.id] == wanted
                if chosen[request.id] >= 0:
                    assert found[request.id].text == merged[chosen[request.id]][request.id].text
    finally:
        bank.close()


def test_a_generator_without_a_route_is_refused(setup, requests):
    bank = AdapterBank(setup.model, adapters(setup.model))
    try:
        with pytest.raises(ModelError, match=r"outside of `with bank\.route"):
            answers(setup.model, setup, requests[:2], 2)
        chosen = dict.fromkeys((request.id for request in requests), 0)
        scored = setup.request("s", "cell", continuations=("big " * 60, "small " * 60))
        with pytest.raises(ModelError, match="a pass of 2 rows under a route of 1"):  # one row became two
            answers(setup.model, setup, [scored], 1, Routed, bank=bank, chosen={**chosen, "s": 0})
    finally:
        bank.close()


def test_features_that_the_generator_shares_are_not_those_of_an_adapter(setup, requests):
    maps = [prefix for prefix in _linear_maps(setup.model) if prefix.startswith("encoder.")]
    bank = AdapterBank(setup.model, {"tower": random_adapter(setup.model, maps, 2, 4.0, seed=1)})
    try:
        chosen = dict.fromkeys((request.id for request in requests), 0)
        with pytest.raises(ModelError, match="share no features between rows"):
            answers(setup.model, setup, requests, 4, Routed, bank=bank, chosen=chosen)
    finally:
        bank.close()


def test_the_caches_are_gone_and_the_model_is_itself_again(setup, requests):
    before = answers(setup.model, setup, requests, 4)
    bank = AdapterBank(setup.model, adapters(setup.model))
    chosen = dict.fromkeys((request.id for request in requests), -1)
    assert answers(setup.model, setup, requests, 4, Routed, bank=bank, chosen=chosen) == before
    bank.close()
    assert answers(setup.model, setup, requests, 4) == before and not setup.model.caches_are_setup()
    assert not any(torch.is_inference(value) for value in setup.model.state_dict().values())
