"""Answers through the real openai client are those of the generator, token for token."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from medtune.data.sample import Message
from medtune.generation.engine.sampling import Sampling
from medtune.serving.loading import separator_of
from tests.serving.running import alone, picture, png, serving, shown

IMAGES = [png(picture(1)), png(picture(2, (40, 16))), png(picture(3, (50, 50)))]
MORE_STOPS = range(5, 250, 8)
"""Further stop tokens, so that some answers of a random model end by themselves."""


def ask(client: Any, messages: list, **options: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=messages, **options)


def streamed(client: Any, messages: list, **options: Any) -> tuple[str, str | None, Any]:
    """Text, reason and usage of a stream."""
    text, reason, usage = "", None, None
    for chunk in ask(client, messages, stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason, usage


def varied(count: int) -> list[tuple[str, list[bytes], dict[str, Any], dict[str, Any]]]:
    """Text, images, what the client says, and what the generator is told."""
    rng, made = random.Random(0), []
    for number in range(count):
        text = " ".join(rng.choices(["cell", "size", "what", "nucleus", "color", "größer"], k=rng.randint(1, 9)))
        said: dict[str, Any] = {"max_tokens": rng.randint(1, 12)}
        told: dict[str, Any] = {"max_new_tokens": said["max_tokens"], "draws_as": "seeded"}
        if number % 3 == 1:
            said |= {"temperature": 1.5, "seed": number}
            told["sampling"] = Sampling(1.5, seed=number)
        if number % 3 == 2:
            said |= {"temperature": 0.9, "top_p": 0.9, "seed": number, "extra_body": {"top_k": 40}}
            told["sampling"] = Sampling(0.9, 0.9, 40, number)
        made.append((text, rng.sample(IMAGES, k=rng.choice([0, 1, 1, 2])), said, told))
    return made


def test_an_answer_is_that_of_the_generator_whole_and_streamed(setup):
    setup.transform.stop_ids = [*setup.transform.stop_ids, *MORE_STOPS]
    asked = varied(9)
    expected = [alone(setup.model, setup.transform, text, images, **told) for text, images, _, told in asked]
    with serving(setup.model, setup.transform) as running:
        client = running.client()
        for (text, images, said, _), wanted in zip(asked, expected, strict=True):
            whole = ask(client, shown(text, *images), **said)
            (choice,) = whole.choices
            assert (choice.message.content, choice.finish_reason) == (wanted.text, wanted.reason)
            assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (wanted.prompt, wanted.tokens)
            assert streamed(client, shown(text, *images), **said) == (wanted.text, wanted.reason, whole.usage)
    assert {one.reason for one in expected} == {"stop", "length"}
    assert len({one.text for one in expected}) > 6


def test_fifty_at_once_are_answered_as_alone(setup):
    setup.transform.stop_ids = [*setup.transform.stop_ids, *MORE_STOPS]
    asked = varied(50)
    expected = [alone(setup.model, setup.transform, text, images, **told) for text, images, _, told in asked]
    with serving(setup.model, setup.transform, slots=16) as running, ThreadPoolExecutor(50) as threads:
        client = running.client()

        def one(number: int) -> tuple[str, str | None]:
            text, images, said, _ = asked[number]
            if number % 2:
                return streamed(client, shown(text, *images), **said)[:2]
            (choice,) = ask(client, shown(text, *images), **said).choices
            return choice.message.content, choice.finish_reason

        found = list(threads.map(one, range(50)))
        rows = running.metric("medtune_batch_rows_sum") / running.metric("medtune_batch_rows_count")
    assert found == [(one.text, one.reason) for one in expected]
    assert rows > 4, "they are answered together"


def test_a_conversation_with_system_message_and_earlier_answers(setup):
    turns = [("system", "what"), ("user", "cell size"), ("assistant", "big"), ("user", "color")]
    expected = alone(setup.model, setup.transform, [Message(*turn) for turn in turns], [], max_new_tokens=8)
    with serving(setup.model, setup.transform) as running:
        messages = [{"role": role, "content": text} for role, text in turns]
        assert ask(running.client(), messages).choices[0].message.content == expected.text
        messages[0]["role"] = "developer"
        assert ask(running.client(), messages).choices[0].message.content == expected.text


def test_images_stand_where_training_puts_them(setup):
    one, two, _ = IMAGES
    tag = f"<image>{separator_of(setup.transform)}"
    later = [Message("user", f"{tag}cell"), Message("assistant", "big"), Message("user", f"{tag}size")]
    expected_first = alone(setup.model, setup.transform, "cell size", [one], max_new_tokens=8).text
    expected_sent = alone(setup.model, setup.transform, f"cell{tag}size", [one], max_new_tokens=8)
    expected_later = alone(setup.model, setup.transform, later, [one, two], max_new_tokens=8).text
    (picture_part, _) = shown("", one)[0]["content"]
    text_first = [{"role": "user", "content": [{"type": "text", "text": "cell size"}, picture_part]}]
    between = [{"type": "text", "text": "cell"}, picture_part, {"type": "text", "text": "size"}]
    with serving(setup.model, setup.transform) as running:
        client = running.client()
        assert ask(client, text_first).choices[0].message.content == expected_first
        turns = [*shown("cell", one), {"role": "assistant", "content": "big"}, *shown("size", two)]
        assert ask(client, turns).choices[0].message.content == expected_later
    with serving(setup.model, setup.transform, image_place="as_sent") as running:
        found = ask(running.client(), [{"role": "user", "content": between}])
        assert (found.choices[0].message.content, found.usage.prompt_tokens) == (
            expected_sent.text,
            expected_sent.prompt,
        )


def test_the_same_seed_gives_the_same_answer_and_none_gives_another(setup):
    with serving(setup.model, setup.transform) as running:
        client = running.client()

        def draw(**options: Any) -> str:
            return ask(client, shown("cell"), temperature=2.0, max_tokens=8, **options).choices[0].message.content

        assert draw(seed=1) == draw(seed=1) != draw(seed=2)
        assert len({draw() for _ in range(4)}) == 4
        assert draw(extra_body={"top_k": 1}) == draw(extra_body={"top_k": 1})


def test_the_server_s_own_sampling_holds_where_a_request_has_none(setup):
    drawn = Sampling(2.0, top_k=50)
    with serving(setup.model, setup.transform, sampling=drawn) as running:
        client = running.client()
        assert len({ask(client, shown("cell")).choices[0].message.content for _ in range(3)}) == 3
        assert len({ask(client, shown("cell"), temperature=0).choices[0].message.content for _ in range(3)}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_not_sent(setup, stream):
    setup.transform.stop_ids = []
    whole = alone(setup.model, setup.transform, "what", [], max_new_tokens=24)
    stop = whole.text[9:13]
    with serving(setup.model, setup.transform) as running:
        options = {"stop": [stop, "never said"], "max_tokens": 24}
        if stream:
            text, reason, usage = streamed(running.client(), shown("what"), **options)
        else:
            found = ask(running.client(), shown("what"), **options)
            text, reason, usage = found.choices[0].message.content, found.choices[0].finish_reason, found.usage
        assert (text, reason) == (whole.text[: whole.text.index(stop)], "stop")
        assert 0 < usage.completion_tokens < whole.tokens
        assert running.metric("medtune_ends_total", reason="stop") == 1


def test_models_are_listed(setup):
    with serving(setup.model, setup.transform) as running:
        client = running.client()
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "medtune"
