"""Drawn tokens: the right distribution, cut in the right places, and bound to the request's id."""

import pytest
import torch

from medtune.errors import ConfigError
from medtune.generation.engine.answers import EngineAnswers
from medtune.generation.engine.continuous import Engine
from medtune.generation.engine.generator import Generator
from medtune.generation.engine.sampling import Sampler, Sampling, draw

LOGITS = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()


def frequencies(sampling: Sampling, resamples: int = 4000) -> list[float]:
    uniform = (torch.arange(resamples) + 0.5) / resamples
    tokens = draw(LOGITS.expand(resamples, -1), uniform, sampling)
    return (torch.bincount(tokens, minlength=4) / resamples).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.5, 0.15, 0.25]),
        (Sampling(top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(top_p=0.6), [0, 2 / 3, 0, 1 / 3]),  # 0.5 does not reach 0.6, 0.75 does
        (Sampling(top_p=0.5), [0, 1, 0, 0]),
        (Sampling(temperature=0.5), [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345]),
        (Sampling(top_k=1, temperature=3.0), [0, 1, 0, 0]),
    ],
)
def test_draws_follow_the_cut_and_tempered_distribution(sampling, expected):
    assert frequencies(sampling) == pytest.approx(expected, abs=1e-3)


def test_the_last_quantile_stays_among_the_kept_tokens():
    almost_one = torch.tensor([1.0])
    assert draw(LOGITS[None], almost_one, Sampling(top_k=2)).item() == 3


def test_a_request_draws_the_same_whatever_shares_its_batch():
    logits = torch.randn(8, 50)
    alone, together = Sampler(["x"], Sampling(seed=3)), Sampler(["y", "x"], Sampling(seed=3))
    single = [alone(row[None]).item() for row in logits]
    assert single == [together(row.expand(2, -1))[1].item() for row in logits]
    other = Sampler(["x"], Sampling(seed=4))
    assert single != [other(row[None]).item() for row in logits]


def test_rows_of_one_batch_are_drawn_each_in_its_own_way():
    logits = torch.randn(8, 50)
    settings = [None, Sampling(seed=3, temperature=2.0), Sampling(seed=3, top_k=2), Sampling(seed=3, temperature=2.0)]
    names = ["a", "b", "c", "d"]
    together = Sampler(names, settings)
    found = [together(row.expand(4, -1)).tolist() for row in logits]
    for row, (name, setting) in enumerate(zip(names, settings, strict=True)):
        alone = Sampler([name], setting)
        assert [step[row] for step in found] == [alone(one[None]).item() for one in logits]
    assert all(step[2] in logits[i].topk(2).indices for i, step in enumerate(found))
    assert [step[1] for step in found] != [step[3] for step in found], "equal settings, yet other requests"


def test_without_sampling_the_likeliest_token_is_taken():
    assert Sampler(["x"], None)(LOGITS[None]).tolist() == [1]


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("engine", [False, True])
def test_a_name_given_for_the_draws_replaces_the_id(setup, engine):
    sampling, others = Sampling(temperature=2.0, seed=5), {"max_new_tokens": 12}
    made = [setup.request(name, "cell", sampling=sampling, draws_as=told, **others)
            for name, told in (("a", "x"), ("b", "x"), ("x", None), ("c", None))]  # fmt: skip
    if engine:
        with Engine(setup.model, setup.transform, slots=4) as serving:
            found = {one.id: one for batch in EngineAnswers(serving).batches(made) for one in batch}
    else:
        found = {one.id: one for one in Generator(setup.model, setup.transform)(made)}
    assert found["a"].text == found["b"].text == found["x"].text != found["c"].text
