"""``medtune ask``: a run's folder, a predict config and a server answer as they do in ``predict``."""

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from medtune.cli import main
from medtune.cli.ask import Conversation, Opened, converse, split
from medtune.config import PACKAGE, instantiate
from medtune.config.composition import compose
from medtune.data.images import ImageRoot
from medtune.data.sample import Message, Sample
from medtune.data.writing import jsonl_bytes
from medtune.generation.requests import Generation
from medtune.models.lora.merged import without_adapters
from tests.data.test_dicom import packaged
from tests.generation.chat_server import MODEL, serve
from tests.runs import LORA, SFT, launch, tiny


def adapted() -> dict[str, dict]:
    """The model of one packaged config for each builder with adapters; one from a folder needs the folder."""
    found: dict[str, dict] = {}
    for name in ("instfree", "sft", "vitask"):
        for path in sorted((PACKAGE / "configs" / name).glob("[!_]*.yaml")):
            model = compose(path).tree["model"]
            if "checkpoint" in model or "qlora_llama3_2_vision_90b" in model["_component_"]:
                continue
            if "lora_" in model["_component_"]:
                found.setdefault(model["_component_"].rpartition(".")[2], model)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny finished LoRA run; it was trained on the middle of its images."""
    folder = tmp_path_factory.mktemp("ask") / "run"
    config = tiny(folder, **SFT, model=LORA, trainable=["adapter"], max_steps=2, export="hf")
    assert launch(config) == [0]
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image of noise."""
    path = tmp_path / "new image.png"
    Image.effect_noise((40, 30), 90).convert("RGB").save(path)
    return path


def ask(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(["ask", *map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def test_a_lora_run_answers_as_predict_does(run: Path, image: Path, tmp_path: Path) -> None:
    status, answer, said = ask(run, image, "What is the cell size?", "--max-new-tokens", "12", "--device", "cpu")
    assert status == 0 and said.startswith(f"{run}, 1 image(s)")
    rows = tmp_path / "rows.jsonl"
    meta = {"attribute": "cell size", "options": ["big", "small"], "answer": "big"}
    turns = (Message("user", "What is the cell size?"), Message("assistant", "big"))
    rows.write_bytes(jsonl_bytes([Sample("one", (image.name,), turns, meta)]))
    saved = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"), resolve=True)
    plain = without_adapters(saved["model"])
    assert plain["_component_"].endswith(".mini_vlm") and "lora_rank" not in plain
    config = {
        "output_dir": str(tmp_path / "predicted"),
        "model": plain,
        "transform": saved["transform"],
        "checkpoint": str(run / "weights"),
        "questions": {
            "_component_": "medtune.datasets.jsonl_dataset",
            "source": str(rows),
            "image_root": str(image.parent),
        },
        "protocols": ["open"],
        "max_new_tokens": 12,
        "dtype": "fp32",
        "device": "cpu",
    }
    OmegaConf.save(OmegaConf.create(config), tmp_path / "predict.yaml")
    from medtune.recipes import predict

    assert predict.main(["--config", str(tmp_path / "predict.yaml")]) == 0
    (line,) = (tmp_path / "predicted" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["prediction"] == answer.removesuffix("\n")


@pytest.mark.parametrize("builder", adapted())
def test_each_builder_with_adapters_has_one_without_them(builder: str) -> None:
    model = adapted()[builder]
    with torch.device("meta"):
        tuned, plain = instantiate(model), instantiate(without_adapters(model))
    names = {name for name, _ in tuned.named_parameters() if "lora_" not in name}
    assert names == {name for name, _ in plain.named_parameters()}


class Echo:
    """Answers with the roles and texts it was shown."""

    images_encoded = 0

    def __init__(self) -> None:
        self.asked: list[Sample] = []

    def batches(self, requests: list, done: object = frozenset()) -> Iterator[list[Generation]]:
        """One answer a request."""
        for request in requests:
            request.source.open_images(request.sample)
            self.asked.append(request.sample)
            yield [Generation(request.id, f"answer {len(self.asked)}", 2, len(self.asked) != 2)]


def talk(*lines: str, images: list[Path]) -> tuple[Echo, str, str]:
    """The model that was asked, and both outputs of a conversation."""
    echo, given = Echo(), iter(lines)
    out, err = io.StringIO(), io.StringIO()

    def read() -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert converse(Conversation(Opened(echo, "echo"), images, "Be brief."), read) == 0
    return echo, out.getvalue(), err.getvalue()


def test_a_conversation_shows_the_model_what_was_said_before(image: Path) -> None:
    echo, out, err = talk("What is it?", "", "Sure?", "/new", "What is it?", images=[image])
    assert out == "answer 1\nanswer 2\nanswer 3\n"
    assert [[m.role for m in sample.messages] for sample in echo.asked] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert [m.content for m in echo.asked[1].messages] == ["Be brief.", "What is it?", "answer 1", "Sure?"]
    assert err.count("the answer was cut at --max-new-tokens") == 1


def test_an_error_does_not_end_a_conversation(image: Path) -> None:
    broken = image.with_name("broken.png")
    broken.write_bytes(b"no image")
    lines = (f"/image {broken}", "What is it?", "/image gone.png", "/images", "/new", "Hello?")
    echo, out, err = talk(*lines, images=[image])
    assert out == "" and not echo.asked, "both questions show the broken image"
    assert "broken.png" in err and "gone.png is not a file" in err and "/images is not a command" in err


def test_the_last_argument_is_the_question_unless_it_is_a_file(image: Path) -> None:
    assert split([str(image), "What is it?"]) == ([image], "What is it?")
    assert split([str(image), str(image)]) == ([image, image], None)
    assert split(["word " * 1000]) == ([], "word " * 1000)
    assert split([]) == ([], None)


def test_a_server_is_asked(image: Path) -> None:
    with serve(say="It is a cell.") as server:
        status, out, said = ask(server.url, image, "What is it?", "--model-name", MODEL)
        assert (status, out) == (0, "It is a cell.\n") and MODEL in said
        assert ask(server.url, image, "What is it?")[2].startswith("error: a server needs --model-name")


def test_a_predict_config_answers(image: Path) -> None:
    status, out, said = ask("predict/mini", image, "What is the cell size?", "--device", "cpu")
    assert status == 0 and out.endswith(".\n") and said.startswith("predict/mini")


def test_what_cannot_answer_is_named(run: Path, image: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    for arguments, message in (
        ((tmp_path, image, "Hi"), "holds neither a run's config.yaml nor an exported model's config.json"),
        ((unfinished, image, "Hi"), "has no weights: the run is not finished"),
        ((run, "gone.png", "Hi"), "The image gone.png is not a file"),
        ((run, image, "Hi", "--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("predict/minn", image, "Hi"), "predict/mini"),
        (
            ("runs/nope", image, "Hi"),
            "runs/nope is no run's folder (the output_dir of a training), no folder of an exp",
        ),
    ):
        status, out, said = ask(*arguments)
        assert (status, out) == (2, "") and "error: " in said and message in said


def test_a_mini_export_says_that_it_has_no_tokenizer_and_what_to_name(run: Path, image: Path, tmp_path: Path) -> None:
    lacks = "has no tokenizer (tokenizer.json)"
    status, out, said = ask(run / "weights", image, "Hi")
    assert (status, out) == (2, "") and f"{lacks} and no image processor (preprocessor_config.json): " in said
    assert "Name the run that it was exported from" in said and "huggingface.co" not in said
    served = io.StringIO()
    with contextlib.redirect_stderr(served):
        assert main.main(["serve", str(run / "weights"), "--dry-run"]) == 2
    assert f"{lacks}: " in served.getvalue() and "Name the run that it was exported from" in served.getvalue()


def test_a_dicom_file_is_asked_about(run: Path, tmp_path: Path) -> None:
    shutil.copy(packaged("CT_small.dcm"), tmp_path / "scan.dcm")
    ImageRoot(tmp_path).load("scan.dcm", "scan").save(tmp_path / "scan.png")
    question = ("What is the cell size?", "--max-new-tokens", "12", "--device", "cpu")
    status, answer, _ = ask(run, tmp_path / "scan.dcm", *question)
    assert status == 0 and answer == ask(run, tmp_path / "scan.png", *question)[1] != ""
