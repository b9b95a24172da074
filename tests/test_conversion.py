"""`medtune export` of a plain model changes its layout and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medtune.cli.main import main
from medtune.models.mini import mini_internvl, mini_llava
from medtune.models.weights import load_weights, save_hf
from tests.models.folders import FOLDERS

SMALL = {"image_size": 16, "vision_layers": 2, "decoder_layers": 2, "embed_dim": 32, "heads": 2}
TEXT = ", ".join(f"{key}: {value}" for key, value in SMALL.items())
HF = f"{{_component_: medtune.models.mini.mini_internvl, vocab_size: 300, layout: hf, {TEXT}}}"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in the authors' layout, in fp16, with its tokenizer."""
    torch.manual_seed(2)
    model = mini_internvl(300, layout="original", **SMALL)
    state = {key: tensor.half() for key, tensor in model.state_dict().items()}
    folder = save_hf(state, model.family, tmp_path_factory.mktemp("models") / "base")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def exported(source: Path, out: Path, *more: str) -> int:
    return main(["export", str(source), "--out", str(out), *more])


def test_the_authors_layout_becomes_that_of_transformers(original: Path, tmp_path: Path) -> None:
    from transformers import InternVLForConditionalGeneration

    assert exported(original, tmp_path / "hf", "--to", "hf", "--model", HF) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "internvl"
    assert (tmp_path / "hf" / "tokenizer.json").is_file()
    model = mini_internvl(300, **SMALL)
    before, after = load_weights(original, model), load_weights(tmp_path / "hf", model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and after[key].dtype == torch.float16 for key in before)
    theirs, info = InternVLForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.dtype == torch.float16


def test_a_model_of_any_size_needs_no_builder_by_name(tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    source = FOLDERS["LLaVA, authors' Mistral"](tmp_path / "base")
    assert exported(source, tmp_path / "hf", "--to", "hf") == 0
    theirs, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert theirs.config.text_config.model_type == "mistral"


def test_the_type_can_be_chosen(original: Path, tmp_path: Path) -> None:
    assert exported(original, tmp_path / "hf", "--to", "hf", "--model", HF, "--dtype", "bf16") == 0
    assert {t.dtype for t in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_one_file_in_torchtunes_names_and_back(original: Path, tmp_path: Path) -> None:
    assert exported(original, tmp_path / "tune", "--to", "torchtune", "--model", HF) == 0
    file = tmp_path / "tune" / "model.safetensors"
    mini_internvl(300, **SMALL).load_state_dict(load_file(file), strict=True)
    assert exported(file, tmp_path / "hf", "--to", "hf", "--model", HF) == 0
    assert load_file(tmp_path / "hf" / "model.safetensors").keys()


def test_the_builder_is_found_by_config_json(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model stands for a published one: its builder is known, as those of the packages are."""
    import medtune.models.mini as package

    family = mini_internvl(300, layout="original", **SMALL).family
    monkeypatch.setattr("medtune.models.published_config._families", lambda: (("tests.test_conversion.small", family),))
    assert package.mini_internvl is mini_internvl
    arguments = ["--to", "hf", "--trust", "tests.test_conversion"]
    assert exported(original, tmp_path / "hf", *arguments) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "internvl"


def small(layout: str = "original") -> torch.nn.Module:
    """A builder of one size."""
    return mini_internvl(300, layout=layout, **SMALL)


REFUSED = {
    "peft": (["--to", "peft", "--model", HF], "a plain model without an adapter"),
    "another family": (["--model", "medtune.models.mini.mini_llava"], "but mini_llava needs 'llava'"),
    "no component": (["--model", "{layout: hf}"], "a mapping needs _component_"),
    "no YAML": (["--model", "{layout: [hf}"], "--model"),
    "an argument that the builder lacks": (["--model", HF.replace("layout", "lay_out")], "takes no 'lay_out'"),
    "a program": (["--model", "os.getcwd"], "os.getcwd is not called"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_one_sentence(
    case: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = REFUSED[case]
    assert exported(original, tmp_path / "out", "--to", "hf", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_type_that_nothing_builds_needs_a_name(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(original, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert exported(tmp_path / "other", tmp_path / "out", "--to", "hf") == 2
    assert "no builder is known for this model; name it: --model" in capsys.readouterr().err


def test_the_source_is_never_replaced(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in original.iterdir()}
    for out in (original, original.parent):
        assert exported(original, out, "--to", "hf", "--model", HF, "--force") == 2
        assert "name another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in original.iterdir()} == before


def test_another_model_of_the_family_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = mini_llava(300, **SMALL)
    base = save_hf(model.state_dict(), model.family, tmp_path / "base")
    assert exported(base, tmp_path / "out", "--to", "hf", "--model", HF) == 2
    assert "holds a model of type 'llava'" in capsys.readouterr().err
