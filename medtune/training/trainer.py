"""The trainer: order and progress, nothing of any method.

A run is a function of its config, its data and its seed. The number of steps done fixes the stage, the epoch, the
samples, the learning rate and the random numbers of the next step, so a checkpoint needs no loader or generator state.
"""

import contextlib
import fcntl
import hashlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torchtune import training
from torchtune.utils import batch_to_device

from medtune.config import instantiate, save_config, to_plain
from medtune.errors import CheckpointError, TrainingError
from medtune.objectives.base import Objective, Stage
from medtune.training import building, checkpoints, optimization
from medtune.training.clock import Clock, rate_factor
from medtune.training.config import TrainConfig
from medtune.training.data import DataFeed
from medtune.training.export import export_weights
from medtune.training.parts import GradientWatch, TrainedParts
from medtune.training.runtime import Runtime
from medtune.training.telemetry import Telemetry


class Trainer:
    """Trains a model with an objective, on one process or many.

    Args:
        config: The run.
        runtime: Where it happens; started from the environment when absent.
    """

    def __init__(self, config: TrainConfig, runtime: Runtime | None = None) -> None:
        self.config = config
        self.runtime = runtime or Runtime.start(config.device)
        self.folder = Path(config.output_dir)
        self.step = 0
        self.tokens = 0
        self.best: dict[str, Any] = {"loss": None, "step": None, "worse": 0}
        self.skipped: dict[str, str] = {}
        self.stop_signal = 0

    # -- setting up ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Build everything and, where there is a checkpoint, continue it.

        Raises:
            MedtuneError: Whatever can be known to be wrong before the first step.
        """
        config, runtime = self.config, self.runtime
        self._claim_folder()
        self.transform = instantiate(config.transform)
        self.transform.dtype = building.DTYPES[config.dtype]
        self.objective: Objective = instantiate(config.objective)
        self.model, members = building.build_model(config, runtime)
        self.objective.bind(self.model, self.transform, config.seed)
        self.objective.to(runtime.device)
        self.parts = TrainedParts(self.model, self.objective, {**members, **self.objective.parts()})
        self.feed = self._feed(config.dataset)
        self.validation = self._feed(config.dataset_val, shuffle=False) if config.dataset_val else None
        stages = self.objective.stages(tuple(config.trainable), config.epochs, config.max_steps)
        for stage in stages:
            self.parts.known(stage.trainable)
        self.clock = Clock(tuple(stages), self.feed.steps_per_epoch)
        building.finish(self.model, config, runtime)
        self.offload = contextlib.nullcontext()
        if config.activation_checkpointing and runtime.device.type == "cuda":
            self.offload = training.get_act_offloading_ctx_manager(self.model, config.activation_offloading)
        self._resume()
        self.telemetry = Telemetry(
            self.folder, config.loggers, config, self.clock.total, self.step, active=runtime.is_main
        )
        if runtime.is_main:
            save_config(config, self.folder / "config.yaml")

    def _feed(self, component: Any, shuffle: bool = True) -> DataFeed:
        return DataFeed(
            component, self.objective.sample_transform(), self.transform, self.config, self.runtime, shuffle
        )

    def _claim_folder(self) -> None:
        """One run per folder; the lock dies with the process."""
        if not self.runtime.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(f"{self.folder} is in use by another run; set another output_dir") from error

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued."""
        config = self.config
        return {
            "model": to_plain(config.model),
            "base": building.base_fingerprint(config.checkpoint),
            "objective": to_plain(config.objective),
            "data": self.feed.source.fingerprint(),
            "trainable": config.trainable,
            "optimizer": config.optimizer.path,
            "seed": config.seed,
            "dtype": config.dtype,
            "global_batch": self.feed.plan.global_batch,
        }

    def _resume(self) -> None:
        folder = self.folder / "checkpoints"
        path = checkpoints.newest_checkpoint(folder, self._warn)
        if path is None:
            if self.config.resume == "must":
                raise CheckpointError(f"resume=must, but {folder} holds no whole checkpoint")
            return self._enter_stage(0)
        if self.config.resume == "never":
            raise CheckpointError(
                f"{self.folder} already holds a run ({path.name}); set another output_dir or resume=auto"
            )
        state = checkpoints.load_checkpoint(path)
        values = state.values
        checkpoints.check_identity(path, values["identity"], self._identity())
        self.step, self.tokens, self.best = values["step"], values["tokens"], values["best"]
        self.skipped = values["skipped"]
        self._load_parameters(path, state.model)
        self.objective.load_state_dict(state.objective)
        self._enter_stage(values["stage"])
        optimization.restore_optimizer(
            self.optimizer, self._names_by_id(), state.optimizer, values["optimizer_numbers"]
        )
        self._warn(f"continuing {path.name} of {self.clock.total} steps")

    def _load_parameters(self, path: Path, saved: dict[str, torch.Tensor]) -> None:
        named = self.parts.named()
        for name, value in saved.items():
            if name not in named or named[name].shape != value.shape:
                raise CheckpointError(
                    f"checkpoint {path}: the model has no parameter {name} of shape {tuple(value.shape)}"
                )
            with torch.no_grad():
                named[name].copy_(optimization.like(value.to(self.runtime.device), named[name]))

    def _warn(self, message: str) -> None:
        if self.runtime.is_main:
            print(message, flush=True)

    # -- stages -------------------------------------------------------------------------------------------------------

    def _enter_stage(self, index: int) -> None:
        """Freeze, thaw, make the optimizer afresh and print the table of parts."""
        self.stage_index = index
        stage = self.stage
        self.parts.train_only(stage.trainable)
        self.objective.begin_stage(stage)
        self.trained = self.parts.select(stage.trainable)
        rates = {**self.config.learning_rates, **stage.learning_rates}
        self.optimizer = optimization.make_optimizer(self.config.optimizer, self.parts, list(stage.trainable), rates)
        self.watch = GradientWatch({part: self.parts.members[part] for part in stage.trainable})
        self._warn(f"stage {stage.name}: {self.clock.length(index)} steps\n{self.parts.table(stage.trainable)}")

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        return self.clock.stages[self.stage_index]

    def _names_by_id(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.trained.items()}

    # -- training -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, or to a signal.

        Returns:
            0, or 128 + the signal's number when SIGTERM or SIGINT ended the run (after a checkpoint).
        """
        self.setup()
        handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        started = time.perf_counter()
        try:
            status = self._train()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self.telemetry.close()
        if status == 0:
            self._finish(time.perf_counter() - started)
        return status

    def _on_signal(self, number: int, frame: Any) -> None:
        self.stop_signal = number

    def _train(self) -> int:
        while self.step < self.clock.total:
            position = self.clock.position(self.step)
            if position.stage_index != self.stage_index:
                self._enter_stage(position.stage_index)
            for batches in self.feed.epoch(position.epoch, position.epoch_step):
                signal_number = self._optimizer_step(batches)
                stage_over = self.step == self.clock.first_step(self.stage_index) + self.clock.length(self.stage_index)
                if signal_number:
                    self._save()
                    return 128 + signal_number
                if self._validate_if_due(stage_over):
                    return 0
                if stage_over or (self.config.save_every_steps and self.step % self.config.save_every_steps == 0):
                    self._save()
                if stage_over:
                    break
        return 0

    def _optimizer_step(self, batches: list[dict[str, Any]]) -> int:
        """One update over the micro-batches of this process; returns a signal's number when one arrived anywhere."""
        self.model.train()
        sums = self._forward_backward(batches)
        loss_sum, weight, tokens, signal_number = self.runtime.sum(sums).tolist()
        loss = loss_sum / weight if weight else 0.0
        names = list(self.trained)
        optimization.scale_gradients(self.parts, names, 1.0 / max(weight, 1.0), self.runtime.world)
        parameters = list(self.trained.values())
        norm = optimization.gradient_norm(parameters)
        self._guard(loss, float(norm), batches)
        self.watch.look(self.trained, lambda seen: self.runtime.sum(seen.to(self.runtime.device)).cpu())
        if self.config.clip_grad_norm is not None:
            optimization.clip_gradients(parameters, norm, self.config.clip_grad_norm)
        stage_step = self.clock.position(self.step).stage_step
        factor = rate_factor(self.config.schedule, stage_step, self.clock.length(self.stage_index))
        optimization.set_rates(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        self.step += 1
        self.tokens += int(tokens)
        self._report_step(loss, float(norm), int(tokens), int(weight))
        return int(signal_number)

    def _forward_backward(self, batches: list[dict[str, Any]]) -> torch.Tensor:
        device = self.runtime.device
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        for number, batch in enumerate(batches):
            self._collect_skips(batch)
            torch.manual_seed(self._draw(number))
            batch = on_device(batch, device)
            with self.offload:
                output = self.model.compute(self.objective, batch)
            output.loss_sum.backward()
            tokens = batch["padding"].sum()
            sums[:3] += torch.stack([output.loss_sum.detach().double(), output.weight.double(), tokens.double()])
        sums[3] = float(self.stop_signal)
        return sums

    def _draw(self, micro_batch: int) -> int:
        """Seed of one forward pass (dropout), the same whenever this step is run."""
        text = f"{self.config.seed}|{self.step}|{micro_batch}|{self.runtime.rank}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _guard(self, loss: float, norm: float, batches: list[dict[str, Any]]) -> None:
        """Stop before the weights change when the loss or a gradient is not finite, and write the batch's ids."""
        if torch.isfinite(torch.tensor([loss, norm])).all():
            return
        ids = [sample for batch in batches for sample in batch["ids"]]
        path = self.folder / f"nonfinite_step_{self.step}.json"
        every = self.runtime.gather(ids)
        if self.runtime.is_main:
            path.write_text(json.dumps({"step": self.step, "loss": str(loss), "grad_norm": str(norm), "ids": every}))
        raise TrainingError(
            f"step {self.step}: loss {loss}, gradient norm {norm}. The weights were not changed; the ids of the batch "
            f"are in {path}. Look at those samples, or lower the learning rate, and resume."
        )

    def _collect_skips(self, batch: dict[str, Any]) -> None:
        for name, reason in batch.get("skipped", []):
            if name not in self.skipped:
                self.skipped[name] = reason
                self.telemetry.say(f"skipped {name}: {reason}")

    def _report_step(self, loss: float, norm: float, tokens: int, supervised: int) -> None:
        seconds = self.telemetry.elapsed()
        rate = tokens / seconds if seconds else 0.0
        self.telemetry.step(self.stage.name, {"loss": loss, "grad_norm": norm, "tok/s": rate})
        if self.step % self.config.log_every_steps and self.step != self.clock.total:
            return
        position = self.clock.position(self.step - 1)
        values = {
            "stage": self.stage.name,
            "epoch": position.epoch,
            "loss": loss,
            "grad_norm": norm,
            "supervised_tokens": supervised,
            "tokens_per_second": round(rate, 1),
            **{f"lr/{group['part']}": group["lr"] for group in self.optimizer.param_groups},
        }
        if self.runtime.device.type == "cuda":
            values["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        self.telemetry.log(self.step, values)

    # -- validation, saving -------------------------------------------------------------------------------------------

    def _validate_if_due(self, stage_over: bool) -> bool:
        """Validate when due; True when early stopping ends the run."""
        every = self.config.validate_every_steps
        if self.validation is None or not (stage_over or (every and self.step % every == 0)):
            return False
        loss = self.validation_loss()
        better = self.best["loss"] is None or loss < self.best["loss"]
        self.best = {
            "loss": loss if better else self.best["loss"],
            "step": self.step if better else self.best["step"],
            "worse": 0 if better else self.best["worse"] + 1,
        }
        self.telemetry.log(self.step, {"validation_loss": loss, "stage": self.stage.name})
        self.telemetry.say(f"step {self.step}: validation loss {loss:.4f}{' (best)' if better else ''}")
        last_stage = self.stage_index == len(self.clock.stages) - 1
        if better and last_stage and self.config.export != "none":
            export_weights(self.model, self.config, self.runtime, self.folder / "best")
        patience = self.config.early_stopping_patience
        if last_stage and patience is not None and self.best["worse"] >= patience:
            self.telemetry.say(f"no better validation loss for {patience} validations: stopping early")
            self._save()
            return True
        return False

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean cross-entropy per supervised token over the validation set."""
        assert self.validation is not None
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.runtime.device)
        for batches in self.validation.epoch(0):
            for batch in batches:
                output = self.model.compute(self.objective, on_device(batch, self.runtime.device))
                sums += torch.stack([output.loss_sum.double(), output.weight.double()])
        loss_sum, weight = self.runtime.sum(sums).tolist()
        return loss_sum / max(weight, 1.0)

    def _save(self) -> None:
        """Write a checkpoint of everything that may have changed so far. A collective."""
        changed = {part for stage in self.clock.stages[: self.stage_index + 1] for part in stage.trainable}
        own = dict(self.objective.named_parameters())
        live = {
            n: p for n, p in self.parts.select(p for p in self.parts.members if p in changed).items() if n not in own
        }
        model = {name: optimization.whole_cpu(parameter) for name, parameter in live.items()}
        tensors, numbers = optimization.optimizer_tensors(self.optimizer, self._names_by_id())
        if self.runtime.is_main:
            values = {
                "step": self.step,
                "stage": self.stage_index,
                "tokens": self.tokens,
                "best": self.best,
                "skipped": self.skipped,
                "optimizer_numbers": numbers,
                "identity": self._identity(),
                "world": self.runtime.world,
            }
            objective = {name: optimization.whole_cpu(value) for name, value in self.objective.state_dict().items()}
            state = checkpoints.TrainingState(model, tensors, objective, values)
            checkpoints.save_checkpoint(self.folder / "checkpoints", state, self.config.keep_checkpoints)
        self.runtime.barrier()

    def _finish(self, seconds: float) -> None:
        if self.config.export != "none":
            export_weights(self.model, self.config, self.runtime, self.folder / "weights")
        skipped = {k: v for some in self.runtime.gather(self.skipped) for k, v in some.items()}
        skipped.update({problem.id: problem.reason for problem in self.feed.checked.problems})
        if self.runtime.is_main:
            summary = {
                "steps": self.step,
                "tokens": self.tokens,
                "seconds": round(seconds, 1),
                "samples": len(self.feed.checked.lengths),
                "best_validation": self.best,
                "skipped": skipped,
            }
            (self.folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
            self._warn(f"{self.step} steps, {self.tokens:,} tokens, {len(skipped)} samples skipped: {self.folder}")
        self.runtime.stop()


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors moved; lists (ids) stay."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor | dict)}
    batch_to_device(tensors, device)
    return {**batch, **tensors}
