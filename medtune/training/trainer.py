"""The method-agnostic training loop.

A run is a function of its config, its data and its seed. The number of steps done determines stage, epoch, samples,
learning rate and random numbers of the next step, so a checkpoint needs no state of a loader or a random generator.
"""

import dataclasses
import hashlib
import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from medtune.config import instantiate, save_config
from medtune.data.writing import write_whole
from medtune.errors import MedtuneError, TrainingError
from medtune.models.common.interface import Trainable
from medtune.objectives.base import Objective, Stage
from medtune.training import building, optimization
from medtune.training.adapter import begun, keep_optimizer
from medtune.training.adapter_record import record_later
from medtune.training.beforehand import compute_beforehand
from medtune.training.checkpointer import Checkpointer, identity, put_back
from medtune.training.config import TrainConfig, check_loggers
from medtune.training.data import BatchLoader, on_device
from medtune.training.export import export_weights
from medtune.training.leakage import refuse_same_file
from medtune.training.parts import GradientWatch, TrainedParts
from medtune.training.progress import Progress, rate_factor
from medtune.training.questions import QuestionSet
from medtune.training.run_folder import claim_run_folder
from medtune.training.runtime import Runtime
from medtune.training.telemetry import Stopwatch, Telemetry
from medtune.training.validation import EarlyStopping, Validation

SIGNALS = (signal.SIGTERM, signal.SIGINT)
WATCHED_STEPS = 8


class Trainer:
    """Trains a model with an objective, in one process or several.

    Args:
        config: The config of the run.
        runtime: Device and process group; None creates them from the environment.
    """

    model: Trainable

    def __init__(self, config: TrainConfig, runtime: Runtime | None = None) -> None:
        self.config = config
        self.runtime = runtime or Runtime.start(config.device)
        self.folder = Path(config.output_dir)
        self.step, self.tokens = 0, 0
        self.best = EarlyStopping()
        self.skipped: dict[str, str] = {}
        self.stop_signal = 0
        self.stopwatch = Stopwatch()

    def setup(self) -> None:
        """Build everything and, if there is a checkpoint, continue from it.

        Raises:
            MedtuneError: For every error that can be detected before the first step.
        """
        config, runtime = self.config, self.runtime
        check_loggers(config)
        runtime.on_rank0(self._claim_folder)
        self.transform = instantiate(config.transform)
        self.transform.dtype = building.DTYPES[config.dtype]
        self.objective: Objective = instantiate(config.objective)
        self.model, members = building.build_model(config, runtime)
        self.objective.attach(building.build_companions(self.objective, config, runtime))
        self.objective.bind(self.model, self.transform, config.seed)
        self.objective.to(runtime.device)
        self.parts = TrainedParts(self.model, self.objective, {**members, **self.objective.parts()})
        self.begun = begun(config, self.parts)
        stages = tuple(self.objective.stages(tuple(config.trainable), config.epochs, config.max_steps))
        optimization.check_rates(config.learning_rates, stages, self.parts, self.objective.parts())
        self.feed = self._feed(config.dataset, stages)
        self.held_out = self._feed(config.dataset_val, stages, shuffle=False) if config.dataset_val else None
        refuse_same_file(self.feed.source, self.held_out.source if self.held_out else None, config.allow_leakage)
        questions = QuestionSet(config, self.transform, runtime) if config.questions else None
        self.validation = Validation(config, self.held_out, questions)
        self.progress = Progress(stages, self.feed.steps_per_epoch)
        building.finish(self.model, config, runtime)
        self.offload = building.offloading(self.model, config, runtime)
        feeds = {"train": self.feed, "validation": self.held_out}
        compute_beforehand({k: v for k, v in feeds.items() if v}, self.parts, stages, runtime, self._say)
        self.checkpointer = Checkpointer(config, runtime, identity(config, self.feed, self.held_out))
        self._resume()
        self.telemetry = Telemetry(
            self.folder, config.loggers, config, self.progress.total, self.step, active=runtime.is_main
        )
        if runtime.is_main:
            save_config(config, self.folder / "config.yaml")
            write_whole(self.folder / "panels.json", json.dumps(dict(self.objective.panels), indent=1) + "\n")

    def _feed(self, component: Any, stages: tuple[Stage, ...], shuffle: bool = True) -> BatchLoader:
        return BatchLoader(component, self.objective, self.transform, self.config, self.runtime, stages, shuffle)

    def _claim_folder(self) -> None:
        self.lock = claim_run_folder(self.config)

    def _resume(self) -> None:
        found = self.checkpointer.newest(self._say)
        if found is None:
            self._enter_stage(0)
            return keep_optimizer(self.config, self.optimizer, self.trained)
        path, state = found
        values = state.values
        self.step, self.tokens, self.best = values["step"], values["tokens"], EarlyStopping.of(values["best"])
        self.skipped = values["skipped"]
        self.stopwatch.go_on(values.get("seconds", 0.0), finished=self.step == self.progress.total)
        put_back(path, state.model, self.parts.named(), self.runtime.device)
        self.objective.load_state_dict(state.objective)
        self._enter_stage(values["stage"])
        names = {id(parameter): name for name, parameter in self.trained.items()}
        optimization.restore_optimizer(self.optimizer, names, state.optimizer, values["optimizer_numbers"])
        self._say(f"continuing {path.name} of {self.progress.total} steps")

    def _say(self, message: str) -> None:
        if self.runtime.is_main:
            print(message, flush=True)

    # -- stages -------------------------------------------------------------------------------------------------------

    def _enter_stage(self, index: int) -> None:
        """Freeze and unfreeze parts, create a new optimizer and print the table of parts."""
        self.stage_index = index
        stage = self.stage
        self.parts.train_only(stage.trainable)
        self.objective.begin_stage(stage)
        for feed in filter(None, (self.feed, self.held_out)):
            feed.begin_stage(stage)
        self.trained = self.parts.select(stage.trainable)
        self.own = {name for name, _ in self.objective.named_parameters()}
        rates = {**self.config.learning_rates, **stage.learning_rates}
        self.optimizer = optimization.make_optimizer(self.config.optimizer, self.parts, list(stage.trainable), rates)
        # If some samples have no image, a part may get its first gradient late, but within one epoch.
        patience = WATCHED_STEPS if self.feed.checked.tiles.all() else max(WATCHED_STEPS, self.feed.steps_per_epoch)
        self.watch = GradientWatch({part: self.parts.names_of(part) for part in stage.trainable}, patience)
        self._say(f"stage {stage.name}: {self.progress.length(index)} steps\n{self.parts.table(stage.trainable)}")

    @property
    def stage(self) -> Stage:
        """The stage of the next step."""
        return self.progress.stages[self.stage_index]

    @property
    def stage_over(self) -> bool:
        """Whether all steps of the stage are done."""
        return self.step == self.progress.first_step(self.stage_index) + self.progress.length(self.stage_index)

    # -- training -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end, or until a signal arrives.

        Returns:
            0, or 128 + the signal's number if SIGTERM or SIGINT ended the run (after a checkpoint). A signal during the
            last step or later is ignored, because the run ends anyway.
        """
        try:
            with self.runtime.explained():
                self.setup()
            self.runtime.settle()
            with self._noted_signals(), self.runtime.explained():
                status = self._train()
                if status == 0:
                    self._finish()
        except MedtuneError:  # raised on all processes
            self.runtime.stop()
            raise
        finally:
            self._close()
        self.runtime.stop()
        return status

    @contextmanager
    def _noted_signals(self) -> Iterator[None]:
        """Record signals, so that the loop can react to them between two steps."""

        def note(number: int, frame: Any) -> None:
            self.stop_signal = number

        handlers = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _close(self) -> None:
        for name in ("telemetry", "lock"):
            if hasattr(self, name):
                getattr(self, name).close()

    def _train(self) -> int:
        self._validate_if_due()  # a validation that a signal prevented
        while self.step < self.progress.total and not self._gave_up:
            position = self.progress.position(self.step)
            if position.stage_index != self.stage_index:
                self._enter_stage(position.stage_index)
            for batches in self.feed.epoch(position.epoch, position.epoch_step):
                signal_number = self._optimizer_step(batches)
                if signal_number and self.step < self.progress.total:
                    self._save()
                    return 128 + signal_number
                self._validate_if_due()
                every = self.config.save_every_steps
                if self.stage_over or self._gave_up or (every and self.step % every == 0):
                    self._save()
                if self.stage_over or self._gave_up:
                    break
        return 0

    def _optimizer_step(self, batches: list[dict[str, Any]]) -> int:
        """One update over the micro-batches of this process; returns a signal's number if any process received one.

        The weight of the step is counted on the host, before the forward pass. All results of the device (loss,
        metrics, gradient norm, which parts got a gradient) are copied in one transfer. This is the only point where the
        loop waits for the device. A loss or gradient that is not finite is detected there, before the weights change.
        """
        weight, tokens = self.runtime.sum_on_host(self._counts(batches))
        scale = 1.0 / (weight or 1.0)
        sums = self._forward_backward(batches)
        reached = self.watch.reached(self.trained, sums.device)
        sums = self.runtime.sum(torch.cat([sums, reached]))
        optimization.scale_gradients(self.trained, self.own, scale, self.runtime.world)
        parameters = list(self.trained.values())
        norm = optimization.gradient_norm(parameters).double().reshape(1).to(sums.device)
        *found, gradient_norm = torch.cat([sums, norm]).tolist()
        loss_sum, counted, *noted = found[: 2 + len(SIGNALS)]
        values = found[2 + len(SIGNALS) : len(found) - len(reached)]
        shown = {name: value * scale for name, value in zip(self.metric_names, values, strict=True)}
        loss = loss_sum * scale
        self._guard(loss, gradient_norm, batches)
        if not math.isclose(counted, weight, rel_tol=1e-9):  # sums of row weights round by the order of their terms
            raise TrainingError(
                f"step {self.step}: {type(self.objective).__name__}.weight counted {weight:g}, but its forward pass "
                f"{counted:g}; the two must agree, since the gradients are divided by the first"
            )
        self.watch.note(found[len(found) - len(reached) :])
        if self.config.clip_grad_norm is not None:
            optimization.clip_gradients(parameters, gradient_norm, self.config.clip_grad_norm)
        stage_step = self.progress.position(self.step).stage_step
        factor = rate_factor(self.config.schedule, stage_step, self.progress.length(self.stage_index))
        optimization.set_rates(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.after_step()
        self.step += 1
        self.tokens += int(tokens)
        self._report_step({"loss": loss, "grad_norm": gradient_norm, **shown}, int(tokens), weight)
        return next((int(number) for number, count in zip(SIGNALS, noted, strict=True) if count), 0)

    def _counts(self, batches: list[dict[str, Any]]) -> list[float]:
        """Weight and tokens of this process's micro-batches, read while they lie in host memory."""
        weight = sum(self.objective.weight(batch) for batch in batches)
        return [weight, sum(float(batch["padding"].sum()) for batch in batches)]

    def _forward_backward(self, batches: list[dict[str, Any]]) -> torch.Tensor:
        """Compute the gradients of this process's share; returns loss, weight, flags of received signals, metrics."""
        device = self.runtime.device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        metrics: dict[str, torch.Tensor] = {}
        for number, batch in enumerate(batches):
            self._collect_skips(batch)
            torch.manual_seed(self._draw(number))
            batch = on_device(batch, device)
            with self.offload:
                output = self.model.compute(self.objective, batch)
            output.loss_sum.backward()
            sums += torch.stack([output.loss_sum.detach().double(), output.weight.double()])
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value.detach().double()
        self.metric_names = list(metrics)
        noted = torch.tensor([float(self.stop_signal == number) for number in SIGNALS], dtype=torch.float64)
        return torch.cat([sums, noted.to(device), *(value.reshape(1) for value in metrics.values())])

    def _draw(self, micro_batch: int) -> int:
        """Seed of one forward pass (for dropout); it is the same each time this step is run."""
        text = f"{self.config.seed}|{self.step}|{micro_batch}|{self.runtime.rank}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _guard(self, loss: float, norm: float, batches: list[dict[str, Any]]) -> None:
        """Stop before the weights change if the loss or a gradient is not finite, and write the ids of the batch."""
        if math.isfinite(loss) and math.isfinite(norm):
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
        for name, reason in batch["skipped"]:
            if reason not in self.skipped:  # reasons repeat in every epoch; two data sets may use the same id
                self.skipped[reason] = name
                self.telemetry.say(f"skipped {name}: {reason}")

    def _report_step(self, shown: dict[str, float], tokens: int, weight: float) -> None:
        rate = tokens / max(self.telemetry.elapsed(), 1e-9)
        self.telemetry.step(self.stage.name, {**shown, "tok/s": rate})
        if self.step % self.config.log_every_steps and self.step != self.progress.total:
            return
        values = {
            "stage": self.stage.name,
            "epoch": self.progress.position(self.step - 1).epoch,
            **shown,
            "weight": int(weight) if weight == int(weight) else weight,
            "tokens_per_second": round(rate, 1),
            **{f"lr/{group['part']}": group["lr"] for group in self.optimizer.param_groups},
        }
        if self.runtime.device.type == "cuda":
            values["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        self.telemetry.log(self.step, values)

    # -- validation, saving -------------------------------------------------------------------------------------------

    @property
    def _gave_up(self) -> bool:
        """Whether early stopping ends the run."""
        return self.best.exhausted(self.config.early_stopping_patience)

    def _validate_if_due(self) -> None:
        """Validate if it is due; in the last stage also save the best weights and check for early stopping."""
        every = self.config.validate_every_steps
        due = self.stage_over or (every and self.step and self.step % every == 0)
        if not self.validation.possible or not due or self.best.checked == self.step:
            return
        result = self.validation.measure(self.model, self.objective, self.runtime, self._collect_skips)
        self.best.checked = self.step
        self.telemetry.log(self.step, {**result.row(), "stage": self.stage.name})
        value, higher = result.monitored(self.config, self.objective)
        better = False
        if self.stage_index == len(self.progress.stages) - 1:
            better = self.best.update(self.step, value, higher)
            if better and self.config.export != "none":
                self._export("best")
        shown = self.config.monitor.replace("_", " ")
        said = "has no value" if value is None else f"{value:.4f}"
        self.telemetry.say(f"step {self.step}: {shown} {said}{' (best)' if better else ''}")
        if self._gave_up:
            self.telemetry.say(f"no better {shown} for {self.best.worse} validations: stopping early")
        self.telemetry.elapsed()

    def _save(self) -> None:
        """Write a checkpoint of everything that may have changed since the start. A collective."""
        for skipped in self.runtime.gather(self.skipped):
            self.skipped |= skipped
        values = {
            "step": self.step,
            "stage": self.stage_index,
            "tokens": self.tokens,
            "seconds": self.stopwatch.seconds,
            "best": dataclasses.asdict(self.best),
            "skipped": self.skipped,
        }
        model = {name: parameter for name, parameter in self._live().items() if name not in self.own}
        self.checkpointer.save(model, self.optimizer, self.objective, values)
        self.telemetry.elapsed()

    def _live(self) -> dict[str, torch.nn.Parameter]:
        return {**self.begun, **self.parts.trained_in(self.progress.stages[: self.stage_index + 1])}

    def _export(self, name: str) -> None:
        about = record_later(self.config, self.feed.source, self.step, self.folder / "metrics.jsonl")
        export_weights(self.model, self.config, self.runtime, self.folder / name, self._live().keys() - self.own, about)

    def _finish(self) -> None:
        if self.config.export != "none":
            self._export("weights")
            self.runtime.on_rank0(lambda: self.objective.export(self.folder))
        for skipped in self.runtime.gather(self.skipped):
            self.skipped |= skipped
        feeds = [self.feed] + ([self.held_out] if self.held_out else [])
        found = [(problem.reason, problem.id) for feed in feeds for problem in feed.checked.problems]
        listed = [{"id": name, "reason": reason} for reason, name in [*found, *self.skipped.items()]]
        if self.runtime.is_main:
            summary = {
                "steps": self.step,
                "tokens": self.tokens,
                "seconds": round(self.stopwatch.seconds, 1),
                "samples": len(self.feed.checked.lengths),
                "best_validation": {"monitor": self.config.monitor, **dataclasses.asdict(self.best)},
                "skipped": listed,
            }
            write_whole(self.folder / "summary.json", json.dumps(summary, indent=1))
            self._say(f"{self.step} steps, {self.tokens:,} tokens, {len(listed)} samples skipped: {self.folder}")
