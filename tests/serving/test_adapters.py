"""Mixed tasks from many clients: whoever hangs up or sends nonsense, every good request is answered as alone."""

import json
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from medtune.models.lora.bank import AdapterBank
from medtune.routing.extension import RoutedAdapters
from medtune.routing.tfidf import TfidfRouter
from medtune.serving.adapters import RoutedModels
from tests.routing.conftest import cases
from tests.routing.conftest import tokenizer as tokenizer
from tests.routing.families import KINDS, Case
from tests.routing.routed_questions import QUESTIONS, TASKS, rows
from tests.serving.running import Alone, Running, alone, picture, png, serving, shown

__all__ = ["cases", "tokenizer"]
IMAGES = [png(picture(1)), png(picture(2, (40, 16)))]
NAMES = ("base", "counting", "detection", "all")


@pytest.fixture(scope="module")
def router() -> TfidfRouter:
    texts, tasks = rows()
    return TfidfRouter.fit(texts, tasks, labels=TASKS)


@contextmanager
def routed(case: Case, router: Any = None, **options: Any) -> Iterator[Running]:
    bank = AdapterBank(case.base, case.adapters)
    models = RoutedModels(tuple(case.adapters), router, 0.5, "all")
    try:
        with serving(
            case.base, case.setup.transform, models=models, extension=RoutedAdapters(bank), **options
        ) as found:
            yield found
    finally:
        bank.close()


def by_adapter(case: Case, text: str, images: list[bytes], most: int) -> dict[str, Alone]:
    """What each adapter alone says."""
    return {
        name: alone(
            case.alone(None if name == "base" else name), case.setup.transform, text, images, max_new_tokens=most
        )
        for name in NAMES
    }


@pytest.mark.parametrize(("family", "nf4"), KINDS, ids=lambda one: str(one))
def test_each_family_answers_with_the_adapter_that_is_named(cases: Any, family: str, nf4: bool) -> None:
    case: Case = cases(family, nf4)
    expected = by_adapter(case, "what size", IMAGES[:1], 6)
    assert len({one.text for one in expected.values()}) >= 3
    with routed(case) as running, ThreadPoolExecutor(4) as threads:
        client = running.client()
        assert [model.id for model in client.models.list()] == list(NAMES)

        def ask(name: str) -> Any:
            return client.chat.completions.create(model=name, messages=shown("what size", IMAGES[0]), max_tokens=6)

        for name, found in zip(NAMES * 2, threads.map(ask, NAMES * 2), strict=True):
            assert found.choices[0].message.content == expected[name].text
            assert found.usage.prompt_tokens == expected[name].prompt
            assert found.medtune == {"adapter": name, "task": None, "score": None}
        with pytest.raises(openai.NotFoundError, match="base, counting, detection, all"):
            ask("auto")


def test_a_routed_question_says_its_task_score_and_adapter(cases: Any, router: TfidfRouter) -> None:
    case: Case = cases("llama3_2_vision")
    asked = {"counting": "counting", "detection": "detection", "classification": "all"}  # has no adapter of its own
    expected = {task: by_adapter(case, QUESTIONS[task][0], IMAGES[:1], 4)[name] for task, name in asked.items()}
    with routed(case, router) as running:
        client = running.client()
        assert next(iter(client.models.list())).id == "auto"
        for task, name in asked.items():
            found = client.chat.completions.create(
                model="auto", messages=shown(QUESTIONS[task][0], IMAGES[0]), max_tokens=4
            )
            assert found.choices[0].message.content == expected[task].text
            assert (found.medtune["adapter"], found.medtune["task"]) == (name, task)
            assert 0.5 <= found.medtune["score"] <= 1
            chunks = list(
                client.chat.completions.create(
                    model="auto", messages=shown(QUESTIONS[task][0], IMAGES[0]), max_tokens=4, stream=True
                )
            )
            assert {chunk.medtune["adapter"] for chunk in chunks} == {name}
        assert running.metric("medtune_routed_total", adapter="counting") == 2


def test_two_hundred_requests_of_mixed_tasks_from_fifty_clients(cases: Any, router: TfidfRouter) -> None:
    """A seventh hang up, a seventh are broken, the rest name an adapter or are routed, whole or streamed."""
    case, rng = cases("internvl_qwen2"), random.Random(0)
    texts = [QUESTIONS[task][i][:60] for task in TASKS for i in range(2)]
    expected = {
        (text, count): by_adapter(case, text, IMAGES[:count], 5) for text in texts for count in range(len(IMAGES))
    }
    routes = dict(zip(texts, _routes(router, texts), strict=True))
    jobs = [(rng.choice(texts), rng.randrange(2), rng.choice(["auto", "auto", *NAMES]), i) for i in range(200)]
    with routed(case, router, slots=8) as running, ThreadPoolExecutor(50) as threads:
        clients = threading.local()

        def one(job: tuple[str, int, str, int]) -> str:
            text, count, name, number = job
            if not hasattr(clients, "own"):
                clients.own = running.client()
            if number % 7 == 3:
                return _hang_up(running, text, name, number)
            if number % 7 == 5:
                return _broken(clients.own, text, name, number)
            wanted = expected[text, count][routes[text] if name == "auto" else name]
            messages = shown(text, *IMAGES[:count])
            if number % 2:
                found = clients.own.chat.completions.create(model=name, messages=messages, max_tokens=5)
                said, told = found.choices[0].message.content, found.medtune
                assert found.usage.completion_tokens == wanted.tokens
            else:
                chunks = list(
                    clients.own.chat.completions.create(model=name, messages=messages, max_tokens=5, stream=True)
                )
                said, told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[0].medtune
            assert said == wanted.text, f"request {number} got the answer of another"
            assert told["adapter"] == (routes[text] if name == "auto" else name)
            return "good"

        outcomes = list(threads.map(one, jobs))
    assert [outcomes.count(kind) for kind in ("good", "gone", "broken")] == [143, 29, 28]


def _routes(router: TfidfRouter, texts: list[str]) -> list[str]:
    tasks = [router.labels[int(row.argmax())] for row in router.probabilities(texts)]
    scores = router.probabilities(texts).max(axis=1)
    return [task if task in NAMES and score >= 0.5 else "all" for task, score in zip(tasks, scores, strict=True)]


def _hang_up(running: Running, text: str, name: str, number: int) -> str:
    sent = json.dumps({"model": name, "messages": shown(text, IMAGES[0]), "max_tokens": 90, "stream": number % 2 == 0})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
        client.sendall(f"{head}{len(sent)}\r\n\r\n{sent}"[: None if number % 3 else -5].encode())
        if number % 3 == 1 and number % 2 == 0:
            client.recv(20)
    return "gone"


def _broken(client: openai.OpenAI, text: str, name: str, number: int) -> str:
    wrong: dict[str, Any] = [
        {"messages": shown(text, b"not an image")},
        {"messages": shown(text, IMAGES[0][:60])},
        {"messages": shown("cell " * 400)},
        {"model": "another"},
        {"temperature": -1},
    ][number % 5]
    with pytest.raises(openai.APIStatusError) as told:
        client.chat.completions.create(
            **{"model": name, "messages": shown(text), "stream": number % 2 == 0, "max_tokens": 5, **wrong}
        )
    assert told.value.status_code in (400, 404)
    return "broken"
