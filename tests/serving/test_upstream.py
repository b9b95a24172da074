"""Our router before another server: checked and routed here, answered there, and nothing of ours given away."""

import asyncio
import copy
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from medtune.cli import main as cli
from medtune.errors import ConfigError
from medtune.routing.tfidf import TfidfRouter
from medtune.serving.config import ServeConfig, settings_of
from medtune.serving.run import Server, opened
from tests.routing.conftest import cases, tokenizer
from tests.routing.families import Case
from tests.routing.routed_questions import QUESTIONS, TASKS, rows
from tests.serving.running import KEY, picture, png, serving, shown, until
from tests.serving.test_adapters import by_adapter, routed
from tests.serving.test_bad_clients import Slow

__all__ = ["cases", "tokenizer"]
THERE = {"counting": "counting", "detection": "detection", "multi": "all"}


@contextmanager
def front(url: str, **options: Any) -> Iterator[tuple[str, Server]]:
    """A server whose answers come from another one."""
    config = ServeConfig(**{"upstream": url, "name": "base", "adapters": THERE, "port": 0, **options})
    with opened(config) as server:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield server.url, server
        finally:
            server.handle_exit(0, None)
            thread.join(30)


def test_questions_are_answered_by_the_adapter_of_the_other_server(cases: Any, tmp_path: Any) -> None:
    case: Case = cases("llama3_2_vision")
    texts, tasks = rows()
    TfidfRouter.fit(texts, tasks, labels=TASKS).save(tmp_path / "router")
    image = png(picture(1))
    asked = {"counting": "counting", "detection": "detection", "classification": "all"}
    expected = {task: by_adapter(case, QUESTIONS[task][0], [image], 4)[name] for task, name in asked.items()}
    with (
        routed(case) as behind,
        front(behind.url, router=str(tmp_path / "router"), fallback="multi") as (url, _),
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        assert [model.id for model in client.models.list()] == ["auto", "base", *THERE]
        for task, name in asked.items():
            messages = shown(QUESTIONS[task][0], image)
            found = client.chat.completions.create(model="auto", messages=messages, max_tokens=4)
            assert found.choices[0].message.content == expected[task].text
            chosen = next(here for here, there in THERE.items() if there == name)
            assert (found.medtune["adapter"], found.medtune["task"]) == (chosen, task)
            with client.chat.completions.with_streaming_response.create(
                model=chosen, messages=messages, max_tokens=4, stream=True
            ) as reply:
                assert reply.headers["x-medtune-adapter"] == chosen
                chunks = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: {")]
            said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
            assert said == expected[task].text
        for wrong, status in (
            ({"model": "all"}, 404),
            ({"n": 2}, 400),
            ({"messages": shown("cell " * 400)}, 400),
            ({"messages": shown("x", b"broken")}, 400),
        ):
            with pytest.raises(openai.APIStatusError) as told:
                client.chat.completions.create(**{"model": "base", "messages": shown("cell"), **wrong})  # type: ignore[call-overload]
            assert told.value.status_code == status and told.value.code


def test_a_client_that_hangs_up_ends_the_other_answer_too(cases: Any) -> None:
    case: Case = cases("llama3_2_vision")
    transform = copy.copy(case.setup.transform)
    transform.stop_ids = []
    with (
        serving(case.base, transform, slots=1, extension=Slow(0.02)) as behind,
        front(behind.url, name="tiny", adapters={}) as (url, _),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2].removesuffix("/v1")))
        body = json.dumps({"model": "base", "messages": shown("cell"), "max_tokens": 150, "stream": True})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        assert reply.status == 200 and reply.read(10)
        connection.close()
        reply.close()
        until(lambda: behind.metric("medtune_ends_total", reason="gone") == 1)


def test_a_server_that_is_not_there_or_wants_another_key(cases: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = cases("llama3_2_vision")
    monkeypatch.setenv("OTHER_KEY", "not-the-key-of-it")

    def ask(url: str) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            client.chat.completions.create(model="base", messages=shown("secret cell"))

    with front("http://127.0.0.1:9/v1") as (url, _), pytest.raises(openai.APIStatusError) as told:
        ask(url)
    assert (told.value.status_code, told.value.code) == (502, "bad_gateway") and "secret" not in str(told.value)
    with (
        serving(case.base, case.setup.transform, token=KEY) as behind,
        front(behind.url, upstream_key_env="OTHER_KEY") as (url, _),
        pytest.raises(openai.APIStatusError) as told,
    ):
        ask(url)
    assert told.value.status_code == 502 and "not-the-key" not in str(told.value)


def test_what_cannot_be_passed_on_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "serve/vllm", "--dry-run"]) == 0
    assert "upstream       http://127.0.0.1:8001/v1" in capsys.readouterr().out
    assert cli.main(["serve", "serve/mini", "--upstream", "http://127.0.0.1:9/v1", "--dry-run"]) == 0
    for options, said in (
        (["name=null"], "needs name"),
        (["upstream=nonsense"], "must be the address of a server"),
        (["upstream_key_env=NOT_SET_ANYWHERE"], "holds no key"),
    ):
        with pytest.raises(ConfigError, match=said), opened(settings_of("serve/vllm", ["port=0", *options])):
            pass
