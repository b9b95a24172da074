"""``medtune ask``: one question about one or several images, or a conversation about them on the terminal."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from medtune.config import load_config
from medtune.data.crops import changed_images
from medtune.data.images import ImageRoot
from medtune.data.sample import Message, Sample
from medtune.data.source import SampleSource
from medtune.errors import ConfigError, DataError, MedtuneError
from medtune.generation.answering import DTYPES, MedtuneModel, device_of
from medtune.generation.backends.base import Answerer, AnswerSettings, Backend
from medtune.generation.backends.openai_api import OpenAIServer
from medtune.generation.backends.transformers_local import TransformersCheckpoint
from medtune.generation.engine.sampling import Sampling
from medtune.generation.named_model import check_exported, kind_of
from medtune.generation.requests import Request
from medtune.generation.run_model import read_run

HELP = """commands of a conversation:
  /image FILE..   show these images and begin anew
  /new            begin anew with the same images
  /quit           end (or Ctrl-D)"""
ASKS = "question> "


class NamedImages:
    """The images that a user names on the command line, as a source: any path, and no sample of its own.

    Args:
        paths: Image files: whatever :class:`medtune.data.images.ImageRoot` reads.

    Raises:
        DataError: If a file does not exist.
    """

    name = "command line"

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            if not path.is_file():
                raise DataError(f"The image {path} is not a file; correct its path.")
        self.paths = list(paths)

    def __len__(self) -> int:
        """No sample is stored."""
        return 0

    def __getitem__(self, index: int) -> Sample:
        """No sample is stored."""
        raise IndexError(index)

    def open_images(self, sample: Sample) -> list[Image.Image]:
        """Decode the images of a sample, whose ``images`` are positions in ``paths``."""
        chosen = [self.paths[int(place)] for place in sample.images]
        return [ImageRoot(path.parent).load(path.name, str(path)) for path in chosen]

    def image_sizes(self, sample: Sample) -> list[tuple[int, int]]:
        """Return the sizes of the images of a sample."""
        return [image.size for image in self.open_images(sample)]

    def fingerprint(self) -> str:
        """Nothing is trained on these images."""
        return ""


@dataclass(frozen=True)
class Opened:
    """A model that answers.

    Attributes:
        answerer: The loaded model.
        name: What it is, in a few words.
        center_crop: The share of an image's sides that was kept in training.
        pad_to_square: The side of the square that images were padded to in training, or None.
    """

    answerer: Answerer
    name: str
    center_crop: float = 1.0
    pad_to_square: int | None = None

    def source(self, paths: Sequence[Path]) -> SampleSource:
        """Return the images, changed as in training."""
        return changed_images(NamedImages(paths), self.center_crop, self.pad_to_square)


@dataclass
class Conversation:
    """A conversation about images.

    Attributes:
        opened: The model.
        paths: The images.
        system: The system prompt, or empty.
        messages: The turns so far.
        last_stopped: Whether the last answer ended by itself.
    """

    opened: Opened
    paths: Sequence[Path]
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    last_stopped: bool = True

    def ask(self, question: str) -> str:
        """Return the answer to a question, and add both to the conversation.

        Raises:
            DataError: If an image or the prompt cannot be used; the conversation stays as it was.
        """
        turns = [*self.messages, Message("user", question)]
        start = [Message("system", self.system)] if self.system else []
        name = f"turn {len(turns)}"  # sampling draws by the name
        sample = Sample(name, tuple(map(str, range(len(self.paths)))), (*start, *turns))
        request = Request(name, sample, self.opened.source(self.paths))
        ((answer,),) = self.opened.answerer.batches([request])
        self.messages = [*turns, Message("assistant", answer.text)]
        self.last_stopped = answer.stopped
        return answer.text


def run(arguments: argparse.Namespace) -> int:
    """Answer one question, or hold a conversation; the answers alone go to standard output."""
    images, question = split(arguments.rest)
    NamedImages(images)
    opened = open_model(arguments)
    print(f"{opened.name}, {len(images)} image(s)", file=sys.stderr)
    conversation = Conversation(opened, images, arguments.system)
    if question is None:
        return converse(conversation)
    print(conversation.ask(question))
    _warn_if_cut(conversation)
    return 0


def split(rest: Sequence[str]) -> tuple[list[Path], str | None]:
    """Divide the arguments into images and the question, which is the last one unless it names a file."""
    if not rest or os.path.isfile(rest[-1]):
        return [Path(item) for item in rest], None
    return [Path(item) for item in rest[:-1]], rest[-1]


def converse(conversation: Conversation, read: Callable[[], str] | None = None) -> int:
    """Read questions and print answers until the input ends; an error does not end the conversation."""
    read = read or (lambda: input(ASKS if sys.stdin.isatty() else ""))
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            return 0
        if line == "/quit":
            return 0
        try:
            if line.startswith("/"):
                _command(conversation, line)
            elif line:
                print(conversation.ask(line), flush=True)
                _warn_if_cut(conversation)
        except MedtuneError as error:
            print(f"error: {error}", file=sys.stderr)


def _command(conversation: Conversation, line: str) -> None:
    name, *given = line.split()
    if name == "/image" and given:
        paths = [Path(item) for item in given]
        NamedImages(paths)
        conversation.paths, conversation.messages = paths, []
    elif name == "/new" and not given:
        conversation.messages = []
    else:
        raise ConfigError(f"{name} is not a command like this\n{HELP}")


def _warn_if_cut(conversation: Conversation) -> None:
    if not conversation.last_stopped:
        print("the answer was cut at --max-new-tokens", file=sys.stderr)


def open_model(arguments: argparse.Namespace) -> Opened:
    """Load the model that the arguments name.

    Raises:
        ConfigError: If it is none of the four kinds.
        ModelError: If its weights do not fit.
    """
    name, folder = arguments.model, Path(arguments.model).expanduser()
    if name.startswith(("http://", "https://")):
        if not arguments.model_name:
            raise ConfigError("a server needs --model-name, the name under which it offers the model")
        server = OpenAIServer(name, arguments.model_name, arguments.api_key_env)
        return Opened(_opened(server, arguments, "fp32"), f"{arguments.model_name} at {name}")
    kind = kind_of(name)
    if kind == "run":
        return _run(folder, arguments)
    if kind == "exported":
        check_exported(folder, processor=True)
        return Opened(_opened(TransformersCheckpoint(str(folder)), arguments, "bf16"), f"{name} in transformers")
    return _config(name, arguments)


def _run(folder: Path, arguments: argparse.Namespace) -> Opened:
    """The model of a training run, with images changed as in training."""
    run = read_run(folder)
    own = MedtuneModel(run.model, run.transform, run.checkpoint, batch_size=1, window=1)
    return Opened(_opened(own, arguments, run.dtype), str(folder), run.center_crop, run.pad_to_square)


def _config(name: str, arguments: argparse.Namespace) -> Opened:
    """The model of a predict config, such as the untuned base of ``predict/mini``."""
    from medtune.recipes.predict import PredictConfig, chosen_backend

    config = load_config(name, PredictConfig)
    questions = config.questions
    crop, side = questions.get("center_crop", 1.0), questions.get("pad_to_square")
    return Opened(_opened(chosen_backend(config), arguments, config.dtype), name, crop, side)


def _opened(backend: Backend, arguments: argparse.Namespace, dtype: str) -> Answerer:
    if arguments.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens must be at least 1, not {arguments.max_new_tokens}")
    sampling = Sampling(temperature=arguments.temperature, seed=arguments.seed) if arguments.temperature else None
    device = device_of(backend, arguments.device)
    return backend.open(AnswerSettings(arguments.max_new_tokens, device, DTYPES[dtype], None, sampling))
