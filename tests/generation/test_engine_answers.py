"""The engine as a source of answers: those of the generator, beginnings copied from rows in use, and errors."""

from dataclasses import replace
from typing import Any

import pytest

from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.generation.engine.answers import EngineAnswers
from medtune.generation.engine.continuous import Engine
from medtune.generation.engine.generator import Generator
from medtune.generation.engine.live_prefixes import Beginning, ReadPrompt, find_beginning
from medtune.generation.engine.sampling import Sampling
from medtune.generation.requests import Request

IMAGE = 9
SAMPLING = Sampling(temperature=1.3, top_p=0.95, seed=1)


@pytest.mark.parametrize(
    ("tokens", "live", "found"),
    [
        ([1, IMAGE, IMAGE, 4, 5], [[1, IMAGE, IMAGE, 4, 6]], Beginning(0, 4, 2)),
        ([1, IMAGE, IMAGE, 4, 5], [[1, IMAGE, IMAGE, 4, 5]], Beginning(0, 4, 2)),
        ([1, IMAGE, IMAGE, 4, 5], [[1, IMAGE, IMAGE, 7], [1, IMAGE, IMAGE, 4, 5, 6]], Beginning(1, 4, 2)),
        ([1, IMAGE, IMAGE, 4, 5], [[1, IMAGE]], None),
        ([1, IMAGE, 4, 5, 6, 7, 8], [[1, IMAGE, 3]], None),
        ([1, 2, 3], [[1, 2, 3]], Beginning(0, 2, 0)),
        ([1], [[1, 2]], None),
    ],
    ids=["longest", "one token is left", "best of two", "image unfinished", "too short", "no image", "single token"],
)
def test_the_beginning_that_a_row_holds(tokens: list[int], live: list[list[int]], found: Beginning | None) -> None:
    rows = [ReadPrompt("k", one) for one in live]
    assert find_beginning(ReadPrompt("k", tokens), rows, IMAGE) == found
    assert find_beginning(ReadPrompt("other", tokens), rows, IMAGE) is None


def requests(setup: Any) -> list[Request]:
    """Several on each image, one after another, of different lengths; greedy and sampled; also on two images."""
    found = []
    for images in (("square-1",), ("wide-2",), ("tall-4", "square-5"), ()):
        for number in range(6):
            text = "what cell size " + "nucleus " * (number % 3)
            sample = Sample(f"{images}{number}", images, (Message("user", text),))
            sampling = SAMPLING if number % 2 else None
            most = 3 + 4 * (number % 4)
            found.append(Request(sample.id, sample, setup.source, max_new_tokens=most, sampling=sampling))
    return found


def by_engine(setup: Any, asked: list[Request], done: Any = frozenset(), **options: Any) -> tuple[Engine, dict]:
    with Engine(setup.model, setup.transform, **{"slots": 3, **options}) as engine:
        found = [one for batch in EngineAnswers(engine).batches(asked, done) for one in batch]
    assert len({one.id for one in found}) == len(found)
    return engine, {one.id: one for one in found}


def test_answers_are_those_of_the_generator(setup: Any) -> None:
    asked = requests(setup)
    expected = {one.id: one for one in Generator(setup.model, setup.transform, batch_size=1)(asked)}
    engine, found = by_engine(setup, asked)
    plain, alone = by_engine(setup, asked, share_prefix=False)
    assert found == expected == alone
    assert len({one.text for one in found.values()}) > 12
    assert engine.tokens_read < 0.7 * plain.tokens_read, "rows that join later copy the beginning of a row in use"
    assert engine.features.encoded == 4


def test_requests_that_are_done_are_left_out(setup: Any) -> None:
    asked = requests(setup)
    done = {request.id for request in asked[::2]}
    _, found = by_engine(setup, asked, done)
    assert found.keys() == {request.id for request in asked[1::2]}


def test_a_request_that_cannot_be_used_is_told_or_raised(setup: Any) -> None:
    broken = setup.request("broken", "what", "broken-1")
    asked = [*requests(setup)[:2], broken, *requests(setup)[2:5]]
    told: list[str] = []
    with Engine(setup.model, setup.transform, slots=2, max_new_tokens=4) as engine:
        answers = EngineAnswers(engine, lambda request, error: told.append(request.id))
        found = [one.id for batch in answers.batches(asked) for one in batch]
    assert told == ["broken"] and len(found) == 5
    with Engine(setup.model, setup.transform, slots=2, max_new_tokens=4) as engine:
        answers = EngineAnswers(engine)
        with pytest.raises(DataError, match="broken-1 is not an image"):
            list(answers.batches(asked))
        assert engine.idle, "the others are cancelled"


def test_images_are_kept_for_the_next_stream_if_asked(setup: Any) -> None:
    asked = requests(setup)
    first, second = asked[:3], asked[3:6]
    for keep, encoded in ((False, 2), (True, 1)):
        setup.source.opened.clear()
        with Engine(setup.model, setup.transform, slots=2) as engine:
            answers = EngineAnswers(engine)
            if keep:
                with answers.keeping_images():
                    assert len([*answers.batches(first), *answers.batches(second)])
                    assert answers.keeps_images and len(engine.features) == 1
            else:
                assert len([*answers.batches(first), *answers.batches(second)])
            assert answers.images_encoded == len(setup.source.opened) == encoded
            assert len(engine.features) == 0 and not answers.keeps_images


def test_an_answer_carries_the_notes_of_its_request(setup: Any) -> None:
    requests = [replace(setup.request(f"n{i}", "cell"), notes={"place": i}) for i in range(5)]
    with Engine(setup.model, setup.transform, slots=2, max_new_tokens=2) as engine:
        found = {answer.id: answer.notes for batch in EngineAnswers(engine).batches(requests) for answer in batch}
    assert found == {request.id: request.notes for request in requests}
