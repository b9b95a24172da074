"""Answers of a checkpoint folder that transformers can run; needs the extra ``transformers``.

Only the folder is read: nothing is downloaded, no code in the folder is run, and only safetensors files are loaded.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from medtune.data.randomness import sample_rng
from medtune.errors import ConfigError, DataError, ModelError
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.chat import Part, Turn, chat_turns
from medtune.generation.engine.sampling import Sampling, draw
from medtune.generation.identity import weights_identity
from medtune.generation.requests import Generation, Request
from medtune.models.common.folder_tokenizer import chat_template_of
from medtune.models.weight_files import read_json

_PROBE = "what is shown"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_AUTHORS = ("LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwen2ForCausalLM")
# Layouts that medtune reads and transformers does not.
_OWN_LAYOUTS = {
    "internvl_chat": "it is an InternVL in OpenGVLab's layout",
    **dict.fromkeys(("llava_llama", "llava_mistral", "llava_qwen2", *_AUTHORS), "it is a LLaVA in its authors' layout"),
}
# Files other than the weights on which the tokens and pixels of a prompt depend.
READ_BESIDE = ("*.json", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class TransformersCheckpoint:
    """A model and processor in transformers' layout, which answers one request after another.

    Attributes:
        path: The folder.
        template: Format of a question for models without a chat template, for example
            ``"Question: {prompt} Answer:"`` (BLIP-2); null uses the checkpoint's own chat template.
    """

    remote: ClassVar[bool] = False
    scores: ClassVar[bool] = False
    path: str
    template: str | None = None

    def __post_init__(self) -> None:
        if not (Path(self.path) / "config.json").is_file():
            raise ConfigError(f"backend.path {self.path} is not a folder with a config.json; download the model first")
        if self.template is not None and self.template.count("{prompt}") != 1:
            raise ConfigError("backend.template must hold {prompt} once, where the question stands")

    def identity(self) -> dict[str, Any]:
        """Return the checksums of all files on which the answers depend, and the template."""
        return {"files": weights_identity(self.path, beside=READ_BESIDE), "template": self.template}

    def open(self, settings: AnswerSettings) -> "LocalAnswers":
        """Load the processor and the model.

        Raises:
            ConfigError: If transformers is not installed, or if there is neither a chat template nor a ``template``.
            ModelError: If transformers cannot load the folder without running code in it.
        """
        try:
            import transformers
        except ImportError:
            raise ConfigError("a local checkpoint needs transformers: pip install 'medtune[transformers]'") from None
        if obstacle := why_not(Path(self.path)):
            raise ModelError(f"transformers cannot open {self.path}: {obstacle}")
        where = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = transformers.AutoProcessor.from_pretrained(self.path, **where)
            model = transformers.AutoModelForImageTextToText.from_pretrained(
                self.path, dtype=settings.dtype, use_safetensors=True, **where
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()
            raise ModelError(f"transformers cannot load {self.path}: {reason[0] if reason else error!r}") from error
        if self.template is None:
            _give_chat_template(processor, self.path)
        return LocalAnswers(model.to(settings.device).eval(), processor, settings, self.template)


def why_not(folder: Path) -> str | None:
    """Why transformers cannot open a folder, judged by its files, and what to do; None if nothing speaks against it.

    Args:
        folder: holds a ``config.json``.
    """
    config = read_json(folder / "config.json")
    model_type = config.get("model_type")
    if isinstance(config.get("architectures"), list) and model_type == "llava":
        named = [name for name in config["architectures"] if name in _AUTHORS]
        model_type = named[0] if named else model_type
    if (folder / "adapter_config.json").is_file():
        return "it is a PEFT adapter; merge it into its base model first (medtune export, or PEFT's merge_and_unload)"
    if not any(folder.glob("*.safetensors")):
        return (
            "it has no safetensors files, and pickled weights (.bin, .pth) can execute code; take another version of it"
        )
    if model_type in _OWN_LAYOUTS:
        return f"{_OWN_LAYOUTS[model_type]}, which transformers does not read; ask it through predict/auto"
    if not isinstance(model_type, str):
        return "its config.json names no model_type; download it again"
    if "auto_map" in config and not _known(model_type):
        return (
            f"a model of type {model_type!r} needs the Python files of the folder, which are not run; take a version "
            "that transformers has a class for, or serve it with its own program (predict/openai_server)"
        )
    if not _known(model_type):
        return f"this version of transformers has no model of type {model_type!r} that reads images and writes text"
    if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
        return f"it has no image processor ({' or '.join(_PROCESSOR_FILES)}); download the whole folder"
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return f"it has no tokenizer ({', '.join(_TOKENIZER_FILES)}); download the whole folder"
    return None


def _known(model_type: str) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def _give_chat_template(processor: Any, path: str) -> None:
    """Give a processor without a chat template the one of ``tokenizer_config.json``, if that one places images.

    Of several named templates the one named ``default`` is taken.

    Raises:
        ConfigError: If there is no template, or only one for text.
    """
    if getattr(processor, "chat_template", None):
        return
    found = getattr(getattr(processor, "tokenizer", None), "chat_template", None) or chat_template_of(Path(path))
    processor.chat_template = found.get("default") if isinstance(found, dict) else found
    remedy = "give backend.template='Question: {prompt} Answer:'"
    if not processor.chat_template:
        raise ConfigError(f"{path} has no chat template; {remedy}")
    turns = [[{"type": "image"}, {"type": "text", "text": _PROBE}], [{"type": "text", "text": _PROBE}]]
    try:
        with_image, without = (
            processor.apply_chat_template([{"role": "user", "content": turn}], tokenize=False) for turn in turns
        )
    except Exception as error:  # of Jinja, or what a template for text makes of a list
        raise ConfigError(f"the chat template of {path} cannot write images ({error}); {remedy}") from error
    # A template for text writes the list itself, with its braces and quotes.
    if with_image == without or any("'type'" in text or _PROBE not in text for text in (with_image, without)):
        raise ConfigError(f"the chat template of {path} (tokenizer_config.json) is for text only; {remedy}")


class LocalAnswers:
    """Answers of one loaded model.

    Args:
        model: A model made by ``AutoModelForImageTextToText``, on its device.
        processor: A processor made by ``AutoProcessor``.
        settings: How to answer.
        template: See :class:`TransformersCheckpoint`.
    """

    def __init__(self, model: Any, processor: Any, settings: AnswerSettings, template: str | None) -> None:
        self.model, self.processor, self.settings, self.template = model, processor, settings, template
        self.images_encoded = 0
        ends = model.generation_config.eos_token_id
        self._stops = frozenset(ends if isinstance(ends, list) else [ends])

    def batches(self, requests: Iterable[Request], done: Container[str] = frozenset()) -> Iterator[list[Generation]]:
        """Yield one answer at a time.

        Raises:
            DataError: If a request cannot be used and the settings do not skip such requests.
        """
        for request in requests:
            if request.id in done:
                continue
            try:
                answer = self._answer(request)
            except DataError as error:
                self.settings.refuse(request, error)
                continue
            self.images_encoded += len(request.sample.images)
            yield [answer]

    @torch.inference_mode()
    def _answer(self, request: Request) -> Generation:
        turns = chat_turns(request.sample, request.source.open_images(request.sample))
        inputs = self._inputs(turns, request).to(self.settings.device, self.settings.dtype)
        # The checkpoint's generation config may set sampling or a repetition penalty; all models use these settings.
        written = self.model.generate(
            **inputs,
            max_new_tokens=self.settings.bound(request),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            logits_processor=self._processors(request),
        )
        tokens = _new_tokens(written[0], inputs["input_ids"][0])
        stopped = bool(tokens) and tokens[-1] in self._stops
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return Generation(request.id, text, len(tokens) - stopped, stopped)

    def _processors(self, request: Request) -> list[Any]:
        sampling = self.settings.sampling_of(request)
        return [] if sampling is None else [_DrawnToken(request.id, sampling)]

    def _inputs(self, turns: list[Turn], request: Request) -> Any:
        if self.template is None:
            chat = [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in turns]
            return self.processor.apply_chat_template(
                chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
        if len(turns) != 1:
            raise DataError(f"request {request.id!r} has {len(turns)} turns, of which backend.template can write one")
        images = [part for part in turns[0].parts if isinstance(part, Image.Image)]
        question = "\n".join(part for part in turns[0].parts if isinstance(part, str))
        text = self.template.replace("{prompt}", question)
        return self.processor(images=images or None, text=text, return_tensors="pt")


class _DrawnToken:
    """Logits processor that allows only the token that medtune's own generator would sample from these logits."""

    def __init__(self, request_id: str, sampling: Sampling) -> None:
        self.sampling, self._stream = sampling, sample_rng(sampling.seed, 0, 0, stream=request_id)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform = torch.tensor([self._stream.random()], dtype=torch.float32, device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, draw(scores, uniform, self.sampling)[:, None], 0.0)


def _content(part: Part) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}


def _new_tokens(written: Tensor, prompt: Tensor) -> list[int]:
    """Return the generated tokens. Some models return prompt and answer, others only the answer."""
    same = len(written) >= len(prompt) and torch.equal(written[: len(prompt)], prompt)
    return written[len(prompt) :].tolist() if same else written.tolist()
