"""``medtune export``: writes a run's weights, merged or as an adapter, from its checkpoint and its base weights."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchtune.training import set_default_dtype

from medtune.config import Component, build, instantiate, saved_keys
from medtune.conversion import is_plain, read_plain, writer
from medtune.errors import CheckpointError, ConfigError, ModelError
from medtune.models.common.family import ModelFamily, StateDict
from medtune.models.common.names import expected_shapes, is_adapter_key, state_dict_names
from medtune.models.lora.merge import Adapter, Strength, adapted_layers, merge_adapters, round_to_nf4
from medtune.models.lora.peft import WEIGHTS_NAME, peft_files, write_peft
from medtune.models.lora.peft_config import CONFIG_NAME
from medtune.models.weights import INDEX_NAME, SINGLE_NAME, load_weights, save_hf, save_tensors
from medtune.training import checkpoints
from medtune.training.adapter_record import RECORD_NAME, record_of_checkpoint, write_record
from medtune.training.building import DTYPES, adapter_start, base_fingerprint
from medtune.trust import trusting
from medtune.verification import Verified, compare, open_in_transformers, run_model

FORMS = ("hf", "peft", "torchtune")


@dataclass
class RunConfig:
    """The keys of a run's ``config.yaml`` that an export needs; the method and its data may no longer exist."""

    model: Component
    checkpoint: str | None = None
    dtype: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0


@dataclass
class VerifyConfig:
    """What a verification needs in addition."""

    transform: Component


@dataclass(frozen=True)
class Trained:
    """The checkpoint and config of a run.

    Attributes:
        checkpoint: the checkpoint's folder.
        config: the run's config.
        model: the model on the meta device: names, shapes, family and the scales of adapters.
        state: the trained tensors by state-dict key, from disk.
        values: the checkpoint's plain values.
    """

    checkpoint: Path
    config: RunConfig
    model: Any
    state: StateDict
    values: dict[str, Any]

    @property
    def family(self) -> ModelFamily:
        """The model's family."""
        return self.model.family


def export(
    source: str | Path,
    form: str,
    out: str | Path,
    *,
    base: str | None = None,
    force: bool = False,
    dtype: str | None = None,
    model: str | None = None,
    verify: bool = False,
    trust: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Write a run's weights for other programs to load; ``out`` is written completely or not at all.

    Args:
        source: a run's folder, whose newest complete checkpoint is used, or one ``checkpoints/step_N`` in it; or a
            plain model, whose layout is changed.
        form: ``hf`` (published layout, adapters merged), ``peft`` (only the adapter) or ``torchtune`` (one file with
            torchtune's names, adapters merged).
        out: a folder that does not exist, is empty, or holds an earlier export (with ``force``).
        base: the weights that the run started from, if the config's ``checkpoint`` is no longer valid; for ``peft``
            also a hub name, which is only written to the adapter's config.
        force: replace an earlier export.
        dtype: ``fp32`` or ``bf16`` for the written tensors; None keeps the run's dtype.
        model: the builder of a plain model; see :func:`medtune.conversion.read_plain`.
        verify: open the written folder in transformers and compare its answers with the run's model.
        trust: modules whose components the run's config may name, in addition to :data:`medtune.trust.TRUSTED`.
        say: function that prints which checkpoint is used.

    Returns:
        ``out``.

    Raises:
        MedtuneError: if the source is not a run, no part of the model was trained, the base is absent or a different
            one, the form cannot represent the trained tensors, or ``out`` is in use.
    """
    if form not in FORMS:
        raise ConfigError(f"--to {form}: the forms are {', '.join(FORMS)}")
    out = Path(out).resolve()
    if is_plain(Path(source)):
        if verify:
            raise ConfigError("--verify needs a run, whose transform makes the prompts; leave it out")
        return _convert(Path(source), form, out, model, force, dtype, trust, say)
    checkpoint = _checkpoint(Path(source), say)
    _refuse_used(out, force)
    with trusting(trust):
        trained = _read(checkpoint)
    if verify:
        _refuse_unverifiable(form, base or trained.config.checkpoint)
    _refuse_harm(out, trained.family, checkpoint.parent.parent, base or trained.config.checkpoint)
    _check_base(trained, base or trained.config.checkpoint)
    _write(out, _writer(trained, form, base, DTYPES[dtype] if dtype else None))
    say(f"{form} weights of {checkpoint} (step {trained.values.get('step')}): {out}")
    if verify:
        say(str(_verified(trained, form, out, base or trained.config.checkpoint, trust)))
    return out


def trained_adapter(source: str | Path, say: Callable[[str], None] = print) -> tuple[Adapter, Trained]:
    """Read the adapter of a run's newest complete checkpoint, without its base weights.

    Args:
        source: a run's folder, or one ``checkpoints/step_N`` in it.
        say: function that prints which checkpoints are damaged.

    Returns:
        The adapter, in the run's dtype, and the checkpoint.

    Raises:
        MedtuneError: if the source is not a run, or its run trained no adapters.
    """
    trained = _read(_checkpoint(Path(source), say))
    adapters, whole = _adapters(trained)
    strengths = {
        prefix: Strength(layer.rank, float(layer.alpha)) for prefix, layer in adapted_layers(trained.model).items()
    }
    return Adapter(adapters, strengths, whole), trained


def _refuse_unverifiable(form: str, base: str | None) -> None:
    if form == "torchtune":
        raise ConfigError("--verify opens the folder in transformers, which does not read torchtune's names")
    if form == "peft" and not (base and Path(base).is_dir()):
        raise ModelError("--verify needs the base weights; give their folder as --base")


def _verified(trained: Trained, form: str, out: Path, base: str | None, trust: Sequence[str]) -> Verified:
    """Compare the written folder with the run's model, put together from checkpoint and base."""
    with trusting(trust):
        transform = instantiate(build(VerifyConfig, _content(trained, VerifyConfig), "config.yaml").transform)
        # an adapter is used on the exact base, and merged weights hold the rounded one of a QLoRA run
        whole = _whole(trained, base, rounded=form == "hf")
        merged = merge_adapters(_cast(whole, torch.float32 if form == "peft" else None), trained.model)
        ours = run_model(trained.config.model, merged)
    theirs = open_in_transformers(out) if form == "hf" else open_in_transformers(Path(str(base)), out)
    return compare(ours, transform, theirs, str(out))


def _convert(
    source: Path,
    form: str,
    out: Path,
    model: str | None,
    force: bool,
    dtype: str | None,
    trust: Sequence[str],
    say: Callable[[str], None],
) -> Path:
    """Write a plain model in another layout or type."""
    _refuse_used(out, force)
    with trusting(trust):
        state, built = read_plain(source, model)
    _refuse_harm(out, built.family, source, None)
    _write(out, writer(_cast(state, DTYPES[dtype] if dtype else None), built, form, source))
    say(f"{form} weights of {source} ({built.family.name}): {out}")
    return out


# -- reading the run --------------------------------------------------------------------------------------------------


def _checkpoint(source: Path, say: Callable[[str], None]) -> Path:
    if source.name.startswith("step_") and source.is_dir():
        problem = checkpoints.torn(source)
        if problem:
            raise CheckpointError(f"checkpoint {source} is torn ({problem}); name another, or the run's folder")
        return source.resolve()
    if not (source / "config.yaml").is_file():
        raise ConfigError(f"{source} is not a run: it holds no config.yaml; give the output_dir of a training run")
    newest = checkpoints.newest_checkpoint(source / "checkpoints", say)
    if newest is None:
        raise CheckpointError(f"{source} holds no whole checkpoint (looked in {source / 'checkpoints'})")
    return newest.resolve()


def _read(checkpoint: Path) -> Trained:
    config = _config(checkpoint.parent.parent / "config.yaml")
    with set_default_dtype(DTYPES[config.dtype]), torch.device("meta"):
        model = instantiate(config.model)
    try:
        saved = load_file(checkpoint / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {checkpoint / 'model.safetensors'}: {error}") from error
    if not saved:
        raise CheckpointError(
            f"{checkpoint} was written before anything of the model was trained (a warm-up); take a later checkpoint"
        )
    keys, shapes = state_dict_names(model), expected_shapes(model)
    for name, value in saved.items():
        if name not in keys or shapes[keys[name]] != value.shape:
            raise CheckpointError(f"{checkpoint}: the model has no parameter {name} of shape {list(value.shape)}")
    state = {keys[name]: value for name, value in saved.items()}
    return Trained(checkpoint, config, model, state, checkpoints.load_values(checkpoint))


def _config(file: Path) -> RunConfig:
    if not file.is_file():
        raise ConfigError(f"{file} is missing: a checkpoint is exported with the config of its run beside it")
    return build(RunConfig, saved_keys(file, RunConfig), str(file))


def _content(trained: Trained, kind: type) -> dict[str, Any]:
    return saved_keys(trained.checkpoint.parent.parent / "config.yaml", kind)


def _check_base(trained: Trained, base: str | None) -> None:
    """Check that the base is the one that the run started from, if it is a path on this machine."""
    wanted = trained.values.get("identity", {}).get("weights")
    if base is None or wanted is None or not Path(base).exists():
        return
    if base_fingerprint(base) != wanted:
        raise ModelError(f"{base} does not hold the weights that {trained.checkpoint} was trained from; give --base")


# -- collecting the tensors -------------------------------------------------------------------------------------------


def _writer(trained: Trained, form: str, base: str | None, dtype: torch.dtype | None) -> Callable[[Path], object]:
    """Return the function that fills a folder; every error is raised before it is called."""
    if form == "peft":
        adapters, beside = (_cast(state, dtype) for state in _adapters(trained))
        files = peft_files(adapters, trained.model, _named(base, trained), whole=beside)
        record = record_of_checkpoint(trained.checkpoint.parent.parent, trained.values)

        def write(folder: Path) -> None:
            write_peft(files, folder)
            write_record(record, folder)

        return write
    base = base or trained.config.checkpoint
    whole = _cast(merge_adapters(_whole(trained, base), trained.model), dtype)
    if form == "torchtune":
        return lambda folder: save_tensors(whole, folder / SINGLE_NAME)
    source = Path(base) if base and Path(base).is_dir() else None
    return lambda folder: save_hf(whole, trained.family, folder, source)


def _cast(state: StateDict, dtype: torch.dtype | None) -> StateDict:
    return state if dtype is None else {key: tensor.to(dtype) for key, tensor in state.items()}


def _adapters(trained: Trained) -> tuple[StateDict, StateDict]:
    """Return every adapter of the model, and the fully trained tensors."""
    adapters = {key: tensor for key, tensor in trained.state.items() if is_adapter_key(key)}
    whole = {key: tensor for key, tensor in trained.state.items() if key not in adapters}
    if not adapters:
        raise ModelError(f"{trained.checkpoint} holds no adapters: its run trained the weights themselves; use --to hf")
    return {**_untrained_adapters(trained), **adapters}, whole


def _untrained_adapters(trained: Trained) -> StateDict:
    """Return the adapters of untrained parts with their initial values; they do not change the output."""
    return {
        key: adapter_start(key, torch.empty(size, device="meta"), trained.config.seed).to(DTYPES[trained.config.dtype])
        for key, size in expected_shapes(trained.model).items()
        if is_adapter_key(key) and key not in trained.state
    }


def _named(given: str | None, trained: Trained) -> str:
    """Return the base's name for the adapter's config: a name as given, a folder as its full path."""
    base = given or trained.config.checkpoint
    if base is None:
        raise ModelError(f"{trained.checkpoint} was trained from random weights; an adapter needs a base: give --base")
    if Path(base).exists():
        return str(Path(base).resolve())  # a relative path would be read as a hub name
    if given is None:
        raise ModelError(f"{base} is not here; give the base weights' folder or their hub name as --base")
    return given


def _whole(trained: Trained, base: str | None, rounded: bool = True) -> StateDict:
    """Return every tensor of the model in the run's dtype: trained tensors, and the others from the base."""
    given = {**_untrained_adapters(trained), **trained.state}
    needed = [key for key in expected_shapes(trained.model) if key not in given]
    frozen: StateDict = {}
    if needed:
        if base is None:
            raise ModelError(
                f"{trained.checkpoint} was trained from random weights, of which {len(needed)} frozen tensors are not "
                "on disk; take what the run itself wrote at its end (weights)"
            )
        if not Path(base).exists():
            raise ModelError(f"{base} is not here; give the folder of the run's base weights as --base")
        frozen = load_weights(base, trained.model)
        frozen = _base_of_the_run(trained, frozen) if rounded else frozen
    missing = [key for key in needed if key not in frozen]
    if missing:
        raise ModelError(f"neither {trained.checkpoint} nor {base} holds {missing[0]} ({len(missing)} tensors missing)")
    return {**given, **frozen, **trained.state}


def _base_of_the_run(trained: Trained, base: StateDict) -> StateDict:
    """The base weights as the run had them: in its dtype, and in 4 bits where it quantised them."""
    dtype = DTYPES[trained.config.dtype]
    if trained.values.get("world", 1) > 1:  # sharded loading casts before it quantises
        base = {key: tensor.to(dtype) for key, tensor in base.items()}
    rounded = round_to_nf4(base, trained.model, dtype)
    return {key: tensor.to(dtype) for key, tensor in rounded.items()}


# -- writing ----------------------------------------------------------------------------------------------------------


def _refuse_used(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise ConfigError(f"--out {out} is not empty; name another folder, or --force to replace an earlier export")


def _refuse_harm(out: Path, family: ModelFamily, run: Path, base: str | None) -> None:
    """Refuse to replace anything but an export: ``--force`` must not delete the run, its base or other files."""
    for needed in [run.resolve(), *([Path(base).resolve()] if base and Path(base).exists() else [])]:
        if out == needed or out in needed.parents:
            raise ConfigError(f"--out {out} would replace {needed}; name another folder")
    known = {CONFIG_NAME, WEIGHTS_NAME, RECORD_NAME, INDEX_NAME, "config.json", *family.tokenizer_files}
    for file in out.rglob("*") if out.is_dir() else ():
        name = str(file.relative_to(out))
        shard = file.parent == out and file.name.startswith("model") and file.suffix == ".safetensors"
        if file.is_file() and name not in known and not shard:
            raise ConfigError(f"--out {out} holds {name}, which is no part of an export; name another folder")


def _write(out: Path, write: Callable[[Path], object]) -> None:
    def fill(folder: Path) -> None:
        write(folder)

    aside = out.with_name(f".{out.name}.writing")
    try:
        checkpoints.write_folder(aside, out, fill)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {out}: {error}; free space, or name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
