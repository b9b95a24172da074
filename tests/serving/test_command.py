"""``medtune serve`` as a user starts it: its sources, its help, what it refuses, and how it stops."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from medtune.cli import main as cli
from medtune.config import PACKAGE, instantiate
from medtune.errors import ConfigError
from medtune.models.lora.peft import save_peft
from medtune.models.weights import save_hf
from medtune.serving.config import ServeConfig, settings_of
from medtune.serving.loading import source_of
from medtune.serving.memory import dry_run
from medtune.serving.run import opened
from tests.runs import LORA, SFT, launch, tiny
from tests.serving.running import KEY, picture, png, shown, until

RUN = 'import sys; from medtune.cli.main import main; sys.exit(main(["serve", *sys.argv[1:]]))'


def told(*arguments: str) -> tuple[int, str, str]:
    """Status and both outputs of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["serve", *arguments])
    return status, out.getvalue(), err.getvalue()


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    """A server as a process: itself, its address, and what it logs."""
    command = [sys.executable, "-c", RUN, *arguments, "port=0"]
    lines: list[str] = []
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "MEDTUNE_TOKEN": KEY})
    assert running.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(running.stderr.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        until(lambda: running.poll() is not None or any("listening on" in line for line in lines), 60)
        address = re.search(r"listening on (\S+)", "".join(lines))
        assert address, lines
        yield running, address[1], lines
    finally:
        if running.poll() is None:
            running.kill()
        running.wait(30)
        reader.join(10)


def long_stream(url: str) -> Iterator[str]:
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    stream = client.chat.completions.create(
        model="mini", messages=shown("What is the cell size?", png(picture(1))), stream=True, max_tokens=200,
        temperature=5, seed=3,
    )  # fmt: skip
    for chunk in stream:
        yield chunk.choices[0].finish_reason or ""


@pytest.mark.slow
def test_a_signal_lets_running_requests_end_and_refuses_new_ones() -> None:
    with process("serve/mini", "api_key_env=MEDTUNE_TOKEN") as (running, url, lines):
        stream = long_stream(url)
        next(stream)
        running.send_signal(signal.SIGTERM)
        until(lambda: any("stopping" in line for line in lines))
        with pytest.raises((openai.APIConnectionError, openai.InternalServerError)):  # no longer open, or a 503
            list(long_stream(url))
        assert [reason for reason in stream if reason] in (["length"], ["stop"])
        assert running.wait(30) == 0
    said = "".join(lines)
    assert "status=200" in said and "What is" not in said and KEY not in said and "Traceback" not in said


@pytest.mark.slow
def test_what_runs_too_long_after_the_signal_is_ended_with_an_error() -> None:
    with process("serve/mini", "limits.stop_seconds=0", "api_key_env=MEDTUNE_TOKEN") as (running, url, _):
        stream = long_stream(url)
        next(stream)
        running.terminate()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        assert running.wait(30) == 0


def test_the_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["serve", "--help"])
    said = capsys.readouterr().out
    for word in ("OpenAI", "adapters.NAME=FOLDER", "--dry-run", "a run's folder", "SIGTERM"):
        assert word in " ".join(said.split())


def test_a_dry_run_says_what_would_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = told("serve/mini", "--dry-run", "slots=4")
    assert status == 0 and "http://127.0.0.1:8000/v1, no token" in out and "models         mini" in out
    weights = 2 * (PACKAGE / "assets/mini_base/model.safetensors").stat().st_size  # in bf16, and served in fp32
    found = re.search(r"weights +([\d.]+) (MB|GB)", out)
    assert found and float(found[1]) * {"MB": 1e6, "GB": 1e9}[found[2]] == pytest.approx(weights, rel=0.02)
    status, out, _ = told("serve/internvl3_8b", "--dry-run", "adapters.counting=gone", "fallback=counting")
    assert status == 0 and "base, counting" in out and "without tokenizer here" in out
    assert float(re.search(r"weights +([\d.]+) GB", out)[1]) == pytest.approx(15.9, abs=0.4)  # type: ignore[index]
    # Qwen2.5-7B: 28 layers, 4 heads of 128 values, keys and values in two bytes
    longest = float(re.search(r"([\d.]+) GB at most \(32 rows of (\d+)", out)[1])  # type: ignore[index]
    tokens = int(re.search(r"32 rows of (\d+)", out)[1])  # type: ignore[index]
    assert longest == pytest.approx(32 * tokens * 28 * 4 * 128 * 2 * 2 / 1e9, rel=0.01)


def test_what_cannot_be_served_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT", "abc")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/config.yaml").write_text("model: {}\n")
    for arguments, said in (
        (["serve/minn"], "serve/mini"),
        (["serve/mini", "slotts=3"], "did you mean 'slots'"),
        (["serve/mini", "slots=0"], "slots must be at least 1"),
        (["serve/mini", "limits.queue=0"], "limits.queue must be at least"),
        (["serve/mini", "host=0.0.0.0"], "so a token is needed"),
        (["serve/mini", "host=192.168.1.5", "--dry-run"], "so a token is needed"),
        (["serve/mini", "host=0.0.0.0", "api_key_env=NOT_SET_ANYWHERE"], "must hold a token"),
        (["serve/mini", "api_key_env=SHORT"], "at least 8"),
        (["serve/mini", "adapters.base=x"], "cannot be the name of an adapter"),
        (["serve/mini", "router=x"], "a router needs adapters"),
        (["serve/mini", "adapters.a=x", "fallback=b"], "is not among the adapters"),
        (["serve/mini", f"adapters.a={tmp_path}"], "adapter_config.json"),
        (["serve/mini", "checkpoint=gone"], "gone"),
        (["predict/openai_server"], "only medtune's own models"),
        ([str(tmp_path)], "holds neither a run's config.yaml nor an exported model's config.json"),
        ([str(tmp_path / "unfinished")], "has no weights: the run is not finished"),
    ):
        status, out, err = told(*arguments)
        assert (status, out) == (2, "") and said in err and "Traceback" not in err, (arguments, err)


def test_a_port_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = told("serve/mini", f"port={taken.getsockname()[1]}")
    assert status == 2 and "is the port in use?" in err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("medtune.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, err = told("serve/mini")
    assert status == 2 and "pip install 'medtune[serve]'" in err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run of two steps, whose images were cropped."""
    folder = tmp_path_factory.mktemp("serve") / "lora"
    config = tiny(folder, **SFT, model=LORA, trainable=["adapter"], max_steps=2, export="hf")
    assert launch(config) == [0]
    return folder


@contextmanager
def in_thread(config: ServeConfig) -> Iterator[str]:
    """The server of a config; its address."""
    import asyncio

    with opened(config) as server:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield server.url
        finally:
            server.handle_exit(0, None)
            thread.join(30)


def answer(url: str, model: str, image: bytes) -> str:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        found = client.chat.completions.create(
            model=model, messages=shown("What is the cell size?", image), max_tokens=12
        )
    return found.choices[0].message.content or ""


def test_a_run_and_its_adapter_answer_as_medtune_ask(run: Path, tmp_path: Path) -> None:
    image = tmp_path / "cell.png"
    picture(3, (40, 30)).save(image)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        words = ["ask", str(run), str(image), "What is the cell size?", "--max-new-tokens", "12", "--device", "cpu"]
        assert cli.main(words) == 0
    expected = out.getvalue().removesuffix("\n")
    with in_thread(settings_of(str(run), ["port=0", "device=cpu"])) as url:
        assert answer(url, "lora", image.read_bytes()) == expected


FAMILIES = {"mini_vlm": "mini_transform", "mini_internvl": "mini_internvl_transform"}


@pytest.mark.parametrize("builder", ["mini_vlm", "mini_internvl", "mini_llava", "mini_sq_llava"])
def test_adapters_of_a_folder_are_served_beside_their_base(builder: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 1024, "image_size": 32, "embed_dim": 32, "vision_layers": 2, "decoder_layers": 2}
    torch.manual_seed(0)
    lora: Any = instantiate(
        {"_component_": f"medtune.models.mini.lora_{builder}", "lora_attn_modules": ["q_proj", "v_proj"], **sizes}
    )
    for parameter in lora.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = lora.state_dict()
    save_hf({name: value for name, value in state.items() if ".lora_" not in name}, lora.family, tmp_path / "base")
    save_peft({n: v for n, v in state.items() if ".lora_" in n}, lora, tmp_path / "counting", None)
    config = {
        "base": "_shared/mini_llava",
        "model": {"_component_": f"medtune.models.mini.{builder}", **sizes},
        "transform": {
            "_component_": f"medtune.models.mini.{FAMILIES.get(builder, 'mini_llava_transform')}",
            "path": "${asset:mini_tokenizer}",
            "image_size": 32,
        },
        "checkpoint": str(tmp_path / "base"),
        "adapters": {"counting": str(tmp_path / "counting")},
        "dtype": "fp32",
        "port": 0,
    }
    (tmp_path / "serve.yaml").write_text(json.dumps(config))
    settings = settings_of(str(tmp_path / "serve.yaml"), ["device=cpu", "fallback=counting"])
    with in_thread(settings) as url:
        listed = json.loads(urllib.request.urlopen(f"{url}/models").read())
        assert [model["id"] for model in listed["data"]] == ["base", "counting"]
        image = png(picture(2))
        assert answer(url, "base", image) != answer(url, "counting", image)
    alone = settings_of(str(tmp_path / "serve.yaml"), ["device=cpu", "~adapters", "name=mine"])
    with in_thread(alone) as url:
        assert answer(url, "mine", image)


def test_a_published_folder_finds_its_builder_and_transform(tmp_path: Path) -> None:
    from medtune.models.internvl import internvl2_2b

    with torch.device("meta"):
        family = internvl2_2b().family
    (tmp_path / "config.json").write_text(json.dumps(family.hf_config()))
    with pytest.raises(ConfigError, match="has no tokenizer .* copy these files from the folder of the base weights"):
        source_of(settings_of(str(tmp_path)))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    found = source_of(settings_of(str(tmp_path)))
    assert found.model == {"_component_": "medtune.models.internvl.internvl2_2b", "layout": "hf"}
    assert found.transform["_component_"] == "medtune.models.internvl.internvl2_transform"
    family = {**family.hf_config(), "vision_config": {**family.hf_config()["vision_config"], "num_hidden_layers": 2}}
    (tmp_path / "config.json").write_text(json.dumps(family))
    found = source_of(settings_of(str(tmp_path)))  # a size that no builder has
    assert found.model == {"_component_": "medtune.models.from_checkpoint", "checkpoint": str(tmp_path), "layout": "hf"}
    assert found.transform == {"_component_": "medtune.models.from_checkpoint_transform", "path": str(tmp_path)}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no builder is known"):
        source_of(settings_of(str(tmp_path)))


def test_a_predict_config_is_served_with_its_crop() -> None:
    config = settings_of("predict/mini", ["slots=2", "center_crop=1.0"])
    assert (source_of(settings_of("predict/mini")).center_crop, source_of(config).center_crop) == (0.5625, 1.0)
    assert config.slots == 2 and "models         mini" in dry_run(config)
