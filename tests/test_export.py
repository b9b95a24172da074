"""``medtune export`` on real tiny runs: what it writes is what was trained, and it refuses what would not be."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medtune.cli.main import main
from medtune.config import instantiate, save_config
from medtune.data.writing import file_sha256
from medtune.errors import ModelError
from medtune.models.common.names import is_adapter_key, state_dict_names
from medtune.models.common.parts import names_of
from medtune.models.lora.peft import load_peft
from medtune.models.mini import mini_gemma3, mini_internvl, mini_vlm
from medtune.models.weights import save_hf
from medtune.routing.adapters import AdapterFolder
from medtune.training.building import DTYPES, build_model
from medtune.training.checkpoints import TrainingState, save_checkpoint
from medtune.training.export import export_weights
from medtune.training.runtime import Runtime
from tests.runs import TINY, launch, tiny

SIZES = {key: value for key, value in TINY["model"].items() if key != "_component_"}
LORA = {
    "_component_": "medtune.models.mini.lora_mini_vlm",
    **SIZES,
    "lora_attn_modules": ["q_proj", "k_proj", "v_proj"],
    "apply_lora_to_mlp": True,
    "apply_lora_to_output": True,
    "lora_rank": 2,
    "lora_alpha": 8,
}
OBJECTIVE = {"warmup_steps": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base weights in the published layout, with a tokenizer beside them."""
    torch.manual_seed(3)
    model = mini_vlm(**SIZES)
    folder = save_hf(model.state_dict(), model.family, tmp_path_factory.mktemp("weights") / "base")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def train(folder: Path, base: Path, **changes: object) -> Path:
    values = {"checkpoint": str(base), "objective": OBJECTIVE, "max_steps": 2, "export": "hf", **changes}
    assert launch(tiny(folder, keep_checkpoints=9, **values)) == [0]
    return folder


@pytest.fixture(scope="module")
def lora_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One step of warm-up and two of LoRA."""
    return train(tmp_path_factory.mktemp("lora") / "run", base, model=LORA, trainable=["adapter"])


@pytest.fixture(scope="module")
def full_run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without adapters."""
    return train(tmp_path_factory.mktemp("full") / "run", base)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def steps(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*"))


def test_the_type_can_be_chosen(full_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(full_run), "--to", "hf", "--dtype", "bf16", "--out", str(tmp_path / "out")]) == 0
    half, whole = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(full_run / "weights" / "model.safetensors"),
    )
    assert same(half, {key: tensor.bfloat16() for key, tensor in whole.items()})


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error's one line."""
    assert main(["export", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("kind", ["lora_run", "full_run"])
def test_hf_is_what_the_run_itself_wrote(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json"}
    mine = load_file(tmp_path / "out" / "model.safetensors")
    assert same(mine, load_file(run / "weights" / "model.safetensors"))


def test_training_has_moved_the_weights(base: Path, lora_run: Path) -> None:
    """Else the equalities here would hold for an export of the base."""
    assert not same(load_file(base / "model.safetensors"), load_file(lora_run / "weights" / "model.safetensors"))


QLORA = {
    "mini_vlm": (mini_vlm, {**SIZES, "embed_dim": 128, "vocab_size": 300}),
    "mini_gemma3": (mini_gemma3, {"vocab_size": 300, "image_size": 16, "vision_layers": 1, "decoder_layers": 2}),
    "mini_internvl": (mini_internvl, {"vocab_size": 300, "image_size": 16, "vision_layers": 1, "decoder_layers": 1}),
}


@pytest.mark.parametrize("family", QLORA)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_qlora_is_merged_into_the_rounded_weights_as_the_run_rounded_them(
    family: str, dtype: str, kept: torch.dtype, tmp_path: Path
) -> None:
    """Without training, which is slow with NF4 on a CPU: the trainer's own export of the model stands beside ours."""
    build, sizes = QLORA[family]
    plain = build(**sizes)
    save_hf({key: tensor.to(kept) for key, tensor in plain.state_dict().items()}, plain.family, tmp_path / "base")
    options = {**LORA, **sizes} if family == "mini_vlm" else sizes
    builder = {**options, "_component_": f"medtune.models.mini.qlora_{family}"}
    run = {"model": builder, "checkpoint": str(tmp_path / "base"), "dtype": dtype, "trainable": ["adapter"]}
    config = tiny(tmp_path / "run", **run, export="hf")
    model, members = build_model(config, Runtime(torch.device("cpu")))
    live = {name: p for name, p in model.named_parameters() if name in names_of("adapter", members)}
    with torch.no_grad():
        for parameter in live.values():
            parameter.normal_(std=0.1)
    saved = {name: p.detach().clone() for name, p in live.items()}
    save_checkpoint(tmp_path / "run" / "checkpoints", TrainingState(model=saved, values={"step": 1}), keep=1)
    save_config(config, tmp_path / "run" / "config.yaml")
    export_weights(model, config, Runtime(torch.device("cpu")), tmp_path / "theirs")
    assert main(["export", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "ours")]) == 0
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert {tensor.dtype for tensor in ours.values()} == {DTYPES[dtype]}
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["torch_dtype"] == str(DTYPES[dtype])[6:]
    assert same(ours, load_file(tmp_path / "theirs" / "model.safetensors"))


def test_torchtune_names_load_into_the_plain_model(lora_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(lora_run), "--to", "torchtune", "--out", str(tmp_path / "out")]) == 0
    model = mini_vlm(**SIZES)
    state = load_file(tmp_path / "out" / "model.safetensors")
    model.load_state_dict(state, strict=True)
    published = load_file(lora_run / "weights" / "model.safetensors")
    assert torch.equal(published["language_model.lm_head.weight"], state["decoder.output.weight"])


def test_the_adapter_is_the_checkpoints(lora_run: Path, base: Path, tmp_path: Path) -> None:
    assert main(["export", str(lora_run), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    model = instantiate(LORA)
    keys = state_dict_names(model)
    trained = {keys[name]: value for name, value in load_file(steps(lora_run)[-1] / "model.safetensors").items()}
    assert all(is_adapter_key(key) for key in trained)
    assert same(load_peft(tmp_path / "out", model), trained)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 8, str(base.resolve()))


def test_in_transformers_base_and_adapter_are_the_merged_weights(
    lora_run: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft.tuners.lora.torchao
    from transformers import MllamaForConditionalGeneration

    # PEFT refuses the torchao that torchtune needs; the path it guards is not taken here
    monkeypatch.setattr(peft.tuners.lora.torchao, "is_torchao_available", lambda: False)
    for form in ("hf", "peft"):
        assert main(["export", str(lora_run), "--to", form, "--out", str(tmp_path / form)]) == 0
    merged, info = MllamaForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    plain = MllamaForConditionalGeneration.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # how PEFT reports missing keys
        adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "peft")
    inputs = {
        "input_ids": torch.tensor([[SIZES["vocab_size"], *range(3, 20)]]),
        "attention_mask": torch.ones(1, 18, dtype=torch.long),
        "pixel_values": torch.randn(1, 1, 1, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, 18, 1, 1, dtype=torch.long),
    }
    with torch.no_grad():
        difference = (merged.eval()(**inputs).logits - adapted.eval()(**inputs).logits).abs().max()
        with adapted.disable_adapter():
            without = (merged(**inputs).logits - adapted(**inputs).logits).abs().max()
    assert difference < 1e-5 < 1e-4 < without


def test_one_checkpoint_can_be_named_and_a_warm_up_is_not_one(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warmup, last = steps(lora_run)
    assert main(["export", str(last), "--to", "peft", "--out", str(tmp_path / "out")]) == 0
    assert "step_00000003 (step 3)" in capsys.readouterr().out
    assert "warm-up" in refused(capsys, warmup, "--to", "hf", "--out", tmp_path / "b")


def test_a_torn_newest_checkpoint_is_passed_over_or_named(
    full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(full_run, tmp_path / "run")
    torn = shutil.copytree(steps(run)[-1], run / "checkpoints" / "step_00000009")
    (torn / "model.safetensors").write_bytes(b"torn")
    assert main(["export", str(run), "--to", "hf", "--out", str(tmp_path / "out")]) == 0
    assert "step_00000009 is torn" in capsys.readouterr().out
    assert "is torn" in refused(capsys, torn, "--to", "hf", "--out", tmp_path / "b")


def test_an_adapter_is_refused_where_it_would_not_be_what_was_trained(
    full_run: Path, lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert "holds no adapters" in refused(capsys, full_run, "--to", "peft", "--out", out)
    run = shutil.copytree(lora_run, tmp_path / "run")
    trained = load_file(steps(run)[-1] / "model.safetensors")
    base = {"decoder.layers.0.attn.q_proj.weight": torch.ones(16, 16)}
    save_file({**trained, **base}, steps(run)[-1] / "model.safetensors")
    _sign(steps(run)[-1])
    assert "carries an adapter and was trained whole too" in refused(capsys, run, "--to", "peft", "--out", out)
    assert not out.exists()


def test_another_base_is_refused_and_a_moved_one_can_be_named(
    lora_run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, moved = shutil.copytree(lora_run, tmp_path / "run"), shutil.copytree(base, tmp_path / "moved")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(base), "models/gone"))
    out = tmp_path / "out"
    for form in ("hf", "peft"):
        assert "models/gone is not here" in refused(capsys, run, "--to", form, "--out", out)
    assert main(["export", str(run), "--to", "hf", "--out", str(out), "--base", str(moved)]) == 0
    assert same(load_file(out / "model.safetensors"), load_file(lora_run / "weights" / "model.safetensors"))
    hub = ["export", str(run), "--to", "peft", "--out", str(tmp_path / "adapter"), "--base", "meta-llama/Some-Model"]
    assert main(hub) == 0
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == "meta-llama/Some-Model"
    other = lora_run / "weights"
    for form in ("hf", "peft"):
        error = refused(capsys, run, "--to", form, "--out", tmp_path / "c", "--base", other)
        assert "does not hold the weights" in error


def test_frozen_random_weights_are_nowhere_to_be_found(
    full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(full_run, tmp_path / "run")
    lines = (run / "config.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("checkpoint:")]
    (run / "config.yaml").write_text("\n".join(kept))
    assert "trained from random weights" in refused(capsys, run, "--to", "hf", "--out", tmp_path / "out")


def test_nothing_but_an_earlier_export_is_ever_replaced(
    lora_run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    call = ["export", str(lora_run), "--to", "hf", "--out", str(out)]
    assert main(call) == 0
    (out / "config.json").write_text("edited")
    assert "--force" in refused(capsys, *call[1:])
    assert (out / "config.json").read_text() == "edited"
    assert main([*call, "--force"]) == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "mllama"
    (out / "thesis.tex").write_text("years of work")
    assert "holds thesis.tex" in refused(capsys, *call[1:], "--force")
    for place in (lora_run, lora_run.parent, base, lora_run / "checkpoints"):
        before = sorted(place.rglob("*"))
        assert "name another folder" in refused(capsys, lora_run, "--to", "peft", "--force", "--out", place)
        assert sorted(place.rglob("*")) == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medtune.models.weights.save_file", full)
    assert "No space left" in refused(capsys, lora_run, "--to", "peft", "--out", tmp_path / "a" / "out")
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("missing", ["config.yaml", "checkpoints"])
def test_what_is_no_run_is_said(
    missing: str, full_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(full_run, tmp_path / "run")
    assert "is not a run" in refused(capsys, tmp_path / "nowhere", "--to", "hf", "--out", tmp_path / "out")
    (run / "weights" / "config.json").unlink()  # a folder that says its model itself needs no builder
    assert "is not a run, and no builder" in refused(capsys, run / "weights", "--to", "hf", "--out", tmp_path / "out")
    if missing == "checkpoints":
        shutil.rmtree(run / missing)
        assert "no whole checkpoint" in refused(capsys, run, "--to", "hf", "--out", tmp_path / "out")
    else:
        last = steps(run)[-1]
        (run / missing).unlink()
        assert "config.yaml is missing" in refused(capsys, last, "--to", "hf", "--out", tmp_path / "out")


def test_a_config_of_another_model_is_said(lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("lora_rank: 2", "lora_rank: 4"))
    assert "the model has no parameter" in refused(capsys, run, "--to", "peft", "--out", tmp_path / "out")


def test_a_method_that_is_gone_is_not_needed(lora_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lora_run, tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("medtune.objectives.InstFree", "their.own.Method"))
    assert main(["export", str(run), "--to", "peft", "--out", str(tmp_path / "out")]) == 0


def _sign(checkpoint: Path) -> None:
    """Make a changed checkpoint whole again."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    file = checkpoint / "model.safetensors"
    manifest[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_a_routing_backend_reads_a_run_as_its_exported_adapter(lora_run: Path, base: Path, tmp_path: Path) -> None:
    assert main(["export", str(lora_run), "--to", "peft", "--base", str(base), "--out", str(tmp_path / "peft")]) == 0
    family = mini_vlm(**SIZES).family
    run, peft = (AdapterFolder(name, folder) for name, folder in (("run", lora_run), ("peft", tmp_path / "peft")))
    ours, theirs = (folder.read(family, str(base)) for folder in (run, peft))
    assert ours.strengths == theirs.strengths and same(ours.state, theirs.state) and not ours.whole
    assert run.identity() != peft.identity() and run.identity()["model"]["lora_rank"] == 2
    assert AdapterFolder("step", steps(lora_run)[-1]).identity() == run.identity()
    torch.manual_seed(8)
    other = mini_vlm(**SIZES)
    save_hf(other.state_dict(), other.family, tmp_path / "other")
    for folder in (run, peft):
        with pytest.raises(ModelError, match=rf"adapter '{folder.name}' .*was trained on other base weights .*other"):
            folder.read(family, str(tmp_path / "other"))


def test_an_adapter_of_another_family_or_of_a_run_without_one_is_refused(
    lora_run: Path, full_run: Path, base: Path
) -> None:
    with pytest.raises(ModelError, match=r"adapter 'x' .* is of a mini_vlm, the base is a mini_internvl"):
        AdapterFolder("x", lora_run).read(mini_internvl(300).family, str(base))
    with pytest.raises(ModelError, match="holds no adapters"):
        AdapterFolder("x", full_run).read(mini_vlm(**SIZES).family, str(base))
