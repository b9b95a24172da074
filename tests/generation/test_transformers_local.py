"""Answers of a checkpoint folder that transformers runs: greedy, by its own processor, from the folder alone."""

import builtins
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from medtune.data.randomness import sample_rng
from medtune.errors import ConfigError, DataError, ModelError
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.backends.transformers_local import TransformersCheckpoint, why_not
from medtune.generation.engine.sampling import Sampling, draw
from tests.generation.test_server import Pixels, request
from tests.generation.tiny_comparators import save_tiny_blip2, save_tiny_qwen
from tests.generation.tiny_llava import TEMPLATE, save_tiny_llava

SETTINGS = AnswerSettings(max_new_tokens=8, device=torch.device("cpu"), dtype=torch.float32)
QUESTIONS = ["What is the cell size ?", "Is the nucleus round ? Answer yes", "What does this image show"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def answers(folder):
    return TransformersCheckpoint(str(folder)).open(SETTINGS)


def ask(answers, requests, done=frozenset()):
    return [generation for batch in answers.batches(requests, done) for generation in batch]


@torch.inference_mode()
def by_hand(folder, text: str, image: str | None, choose=torch.argmax) -> list[int]:
    """Tokens of a prompt written out by hand, greedy ones unless said otherwise: no cache, no `generate`."""
    processor = AutoProcessor.from_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    pictures = Pixels().open_images(request("x", "", image).sample) if image else None
    prompt = f"<s> USER: {'<image> ' if image else ''}{text} ASSISTANT:"
    inputs = processor(images=pictures, text=prompt, return_tensors="pt", add_special_tokens=False)
    tokens, start = inputs["input_ids"], inputs["input_ids"].shape[1]
    for _ in range(8):
        logits = model(input_ids=tokens, pixel_values=inputs.get("pixel_values")).logits[0, -1]
        tokens = torch.cat([tokens, choose(logits).reshape(1, 1)], dim=1)
        if tokens[0, -1] == 2:
            break
    return tokens[0, start:].tolist()


def test_answers_are_greedy_whatever_the_checkpoint_would_like(folder, answers):
    decode = AutoProcessor.from_pretrained(folder).tokenizer.decode
    seen = set()
    for i, (text, image) in enumerate((text, image) for text in QUESTIONS for image in ("1", "2", None)):
        (answer,) = ask(answers, [request(f"q{i}", text, *([image] if image else []))])
        wanted = by_hand(folder, text, image)
        assert answer.text == decode(wanted, skip_special_tokens=True)
        assert answer.stopped == (wanted[-1] == 2) and answer.tokens == len(wanted) - answer.stopped
        seen.add(answer.text)
    assert len(seen) > 3, "the model answers all alike"


def test_tokens_are_drawn_as_medtunes_own_generator_draws_them(folder, answers):
    sampling = Sampling(temperature=1.3, top_p=0.95, top_k=30, seed=5)
    asked = [request(f"q{i}", QUESTIONS[0], "1", sampling=sampling) for i in range(4)]
    found = ask(answers, asked)
    assert ask(answers, asked[::-1])[::-1] == found, "a request is drawn alike whatever comes before it"
    assert len({answer.text for answer in found}) > 1
    assert (
        ask(
            TransformersCheckpoint(str(folder)).open(replace(SETTINGS, sampling=sampling)),
            [request("q0", QUESTIONS[0], "1")],
        )
        == found[:1]
    )
    decode = AutoProcessor.from_pretrained(folder).tokenizer.decode
    for one, answer in zip(asked, found, strict=True):
        stream = sample_rng(5, 0, 0, stream=one.id)
        wanted = by_hand(folder, QUESTIONS[0], "1", lambda logits, stream=stream: drawn(logits, stream, sampling))
        assert answer.text == decode(wanted, skip_special_tokens=True)


def drawn(logits, stream, sampling):
    return draw(logits[None], torch.tensor([stream.random()], dtype=torch.float32), sampling)


def test_the_picture_is_used(answers):
    texts = {ask(answers, [request("q", QUESTIONS[0], str(i))])[0].text for i in range(6)}
    assert len(texts) > 1


def test_order_bound_and_done(answers):
    requests = [request("a", QUESTIONS[0], "1"), request("b", QUESTIONS[1], "1", max_new_tokens=2), request("c")]
    found = ask(answers, requests, done={"c"})
    assert [answer.id for answer in found] == ["a", "b"]
    assert found[1].tokens <= 2


def test_a_broken_picture_is_left_out_if_allowed(folder):
    left_out = []
    settings = replace(SETTINGS, on_error=lambda request, error: left_out.append(request.id))
    requests = [request("a", QUESTIONS[0], "broken"), request("b", QUESTIONS[0], "1")]
    assert [a.id for a in ask(TransformersCheckpoint(str(folder)).open(settings), requests)] == ["b"]
    assert left_out == ["a"]


def test_a_model_without_chat_template_needs_one(tmp_path, folder):
    plain = save_tiny_llava(tmp_path / "plain", chat=False)
    with pytest.raises(ConfigError, match="no chat template"):
        TransformersCheckpoint(str(plain)).open(SETTINGS)
    written = TransformersCheckpoint(str(plain), template="<s> USER: <image> {prompt} ASSISTANT:").open(SETTINGS)
    chat = TransformersCheckpoint(str(folder)).open(SETTINGS)
    one = request("q", QUESTIONS[0], "1")
    assert ask(written, [one]) == ask(chat, [one])
    for template in ("no place", "{prompt} {prompt}"):
        with pytest.raises(ConfigError, match="must hold {prompt} once"):
            TransformersCheckpoint(str(plain), template=template)


def _template_beside_the_tokenizer(folder, template):
    """As many repositories have it: nothing but an entry of tokenizer_config.json."""
    save_tiny_llava(folder, chat=False)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return str(folder)


def test_a_chat_template_of_tokenizer_config_json_alone_is_used(folder, tmp_path):
    theirs = _template_beside_the_tokenizer(tmp_path / "theirs", TEMPLATE)
    given, expected = (TransformersCheckpoint(str(path)).open(SETTINGS) for path in (theirs, folder))
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this"}]}]
    written = [one.processor.apply_chat_template(chat, tokenize=False) for one in (given, expected)]
    assert written[0] == written[1] and "<image> What is this" in written[0]


def test_of_several_templates_the_one_named_default_is_used(folder, tmp_path):
    named = [{"name": "tool_use", "template": "no images"}, {"name": "default", "template": TEMPLATE}]
    given = TransformersCheckpoint(_template_beside_the_tokenizer(tmp_path, named)).open(SETTINGS)
    one = request("q", QUESTIONS[0], "1")
    assert ask(given, [one]) == ask(TransformersCheckpoint(str(folder)).open(SETTINGS), [one])


TEXT_TEMPLATES = {
    "the list is written": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}",
    "the list is joined to a text": "{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
    "images are left out": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("case", TEXT_TEMPLATES)
def test_a_chat_template_for_text_only_is_refused(case, tmp_path):
    with pytest.raises(ConfigError, match=r"chat template of .* give backend.template"):
        TransformersCheckpoint(_template_beside_the_tokenizer(tmp_path, TEXT_TEMPLATES[case])).open(SETTINGS)


def test_a_template_writes_one_turn(tmp_path):
    plain = TransformersCheckpoint(str(save_tiny_llava(tmp_path, chat=False)), template="{prompt}").open(SETTINGS)
    two = request("q", "What")
    two = replace(two, sample=replace(two.sample, messages=two.sample.messages * 2))
    with pytest.raises(DataError, match="2 turns"):
        ask(plain, [two])


def test_identity_follows_every_file_that_matters_and_not_the_place(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert TransformersCheckpoint(str(copy)).identity() == TransformersCheckpoint(str(folder)).identity()
    for name in ("tokenizer.json", "model.safetensors", "chat_template.jinja"):
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (copy / name).write_bytes((copy / name).read_bytes() + b" ")
        assert TransformersCheckpoint(str(copy)).identity() != TransformersCheckpoint(str(folder)).identity(), name


def test_folders_that_are_none_and_weights_that_run_code_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"not a folder with a config\.json"):
        TransformersCheckpoint("someone/model")
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot open .*pickled weights \(.bin, .pth\) can execute code"):
        TransformersCheckpoint(str(pickled)).open(SETTINGS)
    with pytest.raises(ConfigError, match="neither a .safetensors"):
        TransformersCheckpoint(str(pickled)).identity()


def test_code_of_the_folder_is_not_run(folder, tmp_path):
    coded, mark = tmp_path / "coded", tmp_path / "mark"
    shutil.copytree(folder, coded)
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text(f"open({str(mark)!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ModelError, match="'own' needs the Python files of the folder, which are not run"):
        TransformersCheckpoint(str(coded)).open(SETTINGS)
    assert not mark.exists()


WHY = {
    "InternVL's own layout": ({"model_type": "internvl_chat"}, (), "InternVL in OpenGVLab's layout.*predict/auto"),
    "LLaVA-Med's layout": ({"model_type": "llava_mistral"}, (), "LLaVA in its authors' layout.*predict/auto"),
    "LLaVA-1.5's own layout": ({"architectures": ["LlavaLlamaForCausalLM"]}, (), "LLaVA in its authors' layout"),
    "a model of text": ({"model_type": "bert"}, (), "no model of type 'bert' that reads images"),
    "no type": ({"model_type": None}, (), "names no model_type"),
    "no processor": ({}, ("processor_config.json", "preprocessor_config.json"), "no image processor"),
    "no tokenizer": ({}, ("tokenizer.json",), "no tokenizer"),
}


@pytest.mark.parametrize("case", WHY)
def test_a_folder_that_cannot_be_opened_is_told_by_its_files(case, folder, tmp_path):
    changes, removed, sentence = WHY[case]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert why_not(copy) is None
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, **changes}))
    for name in removed:
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=f"cannot open .*{sentence}") as error:
        TransformersCheckpoint(str(copy)).open(SETTINGS)
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_model(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "adapter_config.json").write_text("{}")
    assert "PEFT adapter; merge it" in why_not(tmp_path / "copy")


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    plain = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"medtune\[transformers\]"):
        TransformersCheckpoint(str(folder)).open(SETTINGS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("save", "template"), [(save_tiny_qwen, None), (save_tiny_blip2, "Question: {prompt} Answer:")]
)
def test_the_families_of_table_1_answer_by_picture_and_question(tmp_path, save, template, dtype):
    comparator = TransformersCheckpoint(str(save(tmp_path)), template).open(replace(SETTINGS, dtype=dtype))
    requests = [request(f"{i}{text}", text, str(i)) for i in range(3) for text in QUESTIONS]
    found = ask(comparator, requests)
    assert [answer.id for answer in found] == [request.id for request in requests]
    assert all(answer.tokens == 8 or answer.stopped for answer in found), "the prompt is no part of the answer"
    texts = [answer.text for answer in found]
    assert len(set(texts[::3])) > 1 and len(set(texts[:3])) > 1
    assert comparator.images_encoded == 9
