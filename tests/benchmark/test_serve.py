"""The arithmetic of the benchmark of the server, and the server that it compares with."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from medtune.config import instantiate
from medtune.models.mini import mini_llava
from medtune.models.weights import load_weights
from medtune.serving.chat import Defaults, read_call
from medtune.serving.limits import Limits
from tests.benchmark.scripts import script
from tests.serving.running import alone

serve: Any = script("serve")


def answered(text: str, first: float = 1.0) -> Any:
    return serve.Answered(text, first, 2 * first)


def test_ratios_are_those_of_the_rounds_and_nothing_lost_is_hidden() -> None:
    seconds = {"medtune": [1.0, 2.0, 4.0], "transformers": [5.0, 8.0, 40.0]}
    answers = {
        "medtune": [answered("a", 1), answered("b", 3), answered("c", 2), answered("d"), None, answered("x")],
        "transformers": [answered("a"), answered("b"), answered("c"), answered("d"), answered("e"), answered("y")],
    }
    found = serve.summary(seconds, seconds, answers)
    assert found["speedup"] == 5.0
    assert found["answers_per_second"] == {"medtune": 1.0, "transformers": 0.25}
    assert found["lost"] == {"medtune": 1, "transformers": 0}
    assert found["same_answers"] == pytest.approx(4 / 6)
    assert found["first_token_seconds"]["medtune"]["p50"] == 1.0


def test_questions_differ_and_repeat() -> None:
    assert serve.question(1, 4) == serve.question(1, 4) != serve.question(2, 4)
    assert json.loads(serve.question(1, 4))["max_tokens"] == 4


def test_the_random_model_answers_differently_to_different_questions(tmp_path: Path) -> None:
    serve.build(tmp_path)
    transform = instantiate(serve.transform_of(tmp_path))
    transform.stop_ids = []
    model = mini_llava(**serve.SIZES).eval()
    model.load_state_dict(load_weights(str(tmp_path / "hf"), model))
    calls = [read_call(serve.question(number, 4), Limits(), Defaults()) for number in range(6)]
    answers = [alone(model, transform, call.question, call.images, max_new_tokens=6).text for call in calls]
    assert len(set(answers)) >= 5 and all(len(answer) >= 6 for answer in answers)


def test_the_other_server_streams_each_token() -> None:
    class Words:
        def decode(self, ids: list[int]) -> str:
            return "".join("abc"[token] for token in ids)

    async def read() -> list[str]:
        tokens: asyncio.Queue = asyncio.Queue()
        for token in (2, 0, None):
            tokens.put_nowait(token)
        return [piece async for piece in serve.events(tokens, Words())]

    pieces = asyncio.run(read())
    said = [json.loads(piece[6:])["choices"][0]["delta"]["content"] for piece in pieces[:-1]]
    assert said == ["c", "a"] and pieces[-1] == "data: [DONE]\n\n"
