"""VITask: tuning a VLM for a task with the help of a task-specific model (exemplar prompting, RDA, CRT; section 4)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtune.data.items import Items, SampleItems
from medtune.data.source import SampleSource
from medtune.errors import DataError, ModelError
from medtune.losses.cross_entropy import IGNORE_INDEX, chunked_cross_entropy
from medtune.losses.vitask import response_rows, vitask_losses
from medtune.models.classifier.tsm import TaskModel, load_tsm
from medtune.models.exemplars import ExemplarRecord, save_exemplars
from medtune.modules.exemplar import EXEMPLARS, ExemplarConnector, TokenRows, exemplar_rows
from medtune.objectives.base import AuxiliaryEncoder, Objective, Stage, StepOutput
from medtune.objectives.companions import Companion
from medtune.objectives.vitask.items import NegativeIndex, VITaskItems
from medtune.objectives.vitask.passes import Pass, Run, joint_states, packed_states, separate_states

NEGATIVES = ("sampled", "roll")
PASSES = ("packed", "joint", "separate")
PLANNED_WIDTH = 768  # of ViT-B's features


class VITask(Objective):
    """``L_Van + L_EP + alpha L_RDA`` in stage ``align``, ``+ beta L_CRT`` with a frozen connector in ``contrast``.

    Without exemplars and without CRT the two stages would be one and the same; there is then one, ``tune``, of the
    run's length, which is plain visual instruction tuning.

    Args:
        tsm: Folder of the task-specific model, as ``recipes/tsm.py`` writes it. Not needed without exemplars.
        exemplar: Features of the image in the task-specific model that enter as tokens: ``cls`` its class token
            (EP_cls), ``all`` its patch tokens (EP_all), ``replace`` its patch tokens instead of the model's own image
            features (EP_rep), ``none``.
        alpha: Weight of response distribution alignment (Eq. 3); 0 leaves it out.
        rda: ``{detach: false}`` is the variant RDA* (Fig. 3), whose gradient reaches the teacher too; the teacher is
            detached otherwise.
        beta: Weight of contrastive response tuning (Eq. 5); 0 leaves its pass out.
        negatives: ``sampled`` draws the negative image from the whole set; ``roll`` takes that of the next row of the
            micro-batch, where it fits, which encodes no further image.
        align_epochs: Epochs of the first stage; 0 leaves it out. The second has the run's length.
        align_steps: Steps of the first stage; wins over ``align_epochs``.
        connector_learning_rate: Rate of the connector; None takes the run's.
        passes: How a step's passes run, with the same numbers. ``packed``: those without and with exemplar in one row,
            where they share what comes before the exemplar, image tokens included; where images are no tokens, or the
            row does not fit into the model, it is ``joint``. ``joint``: as one batch. ``separate``: one by one.
        chunk_tokens: Response tokens whose logits are held at once, those of all passes; 0 holds all.

    Raises:
        ValueError: For an unknown variant, a negative weight, a length below 0, exemplars without ``tsm``, or an
            alpha without exemplars.
    """

    def __init__(
        self,
        tsm: str | None = None,
        exemplar: str = "cls",
        alpha: float = 1.0,
        rda: Mapping[str, bool] | None = None,
        beta: float = 1.0,
        negatives: str = "sampled",
        align_epochs: int = 1,
        align_steps: int | None = None,
        connector_learning_rate: float | None = None,
        passes: str = "packed",
        chunk_tokens: int = 512,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("exemplar", exemplar, EXEMPLARS),
            ("negatives", negatives, NEGATIVES),
            ("passes", passes, PASSES),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
        if alpha < 0 or beta < 0 or align_epochs < 0 or (align_steps or 0) < 0:
            raise ValueError("alpha, beta, align_epochs and align_steps must be at least 0")
        if exemplar == "none" and alpha > 0:
            raise ValueError("exemplar none has no teacher for RDA; set alpha to 0")
        if exemplar != "none" and tsm is None:
            raise ValueError(f"exemplar {exemplar} needs tsm, the folder of a task-specific model")
        self.tsm_path, self.exemplar, self.negatives = tsm, exemplar, negatives
        self.alpha, self.beta = alpha, beta
        self.detach = _detached(rda)
        self.align_epochs, self.align_steps = align_epochs, align_steps
        self.connector_learning_rate = connector_learning_rate
        self.passes, self.chunk_tokens = passes, chunk_tokens
        self.connector: ExemplarConnector | None = None
        self.contrast = False
        self.rows = 1 + self.has_exemplars + (beta > 0)

    @property
    def has_exemplars(self) -> bool:
        """Whether there is a pass with exemplars."""
        return self.exemplar != "none"

    def companions(self) -> dict[str, Companion]:
        """The task-specific model, where exemplars are asked for."""
        if not self.has_exemplars or self.tsm_path is None:
            return {}
        return {"tsm": Companion("the task-specific model", self.tsm_path, load_tsm)}

    @property
    def _tsm(self) -> TaskModel | None:
        return self.beside.get("tsm")

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Make the connector from the task-specific model's features to the word embeddings.

        Where a run is planned and the task-specific model is not here, the connector is as wide as for a ViT-B.
        """
        self._image_id, self._placeholder_id = transform.image_id, transform.placeholder_id
        self._pad_id = transform.pad_id
        if self.has_exemplars:
            width = PLANNED_WIDTH if self._tsm is None else self._tsm.feature_dim(self._tokens)
            self.connector = ExemplarConnector(width, model.embed_dim, seed)

    @property
    def _tokens(self) -> Any:
        return "cls" if self.exemplar == "cls" else "all"

    def parts(self) -> dict[str, list[str]]:
        """The connector is a part of its own; without exemplars it is empty."""
        connector = self.connector
        return {"connector": [] if connector is None else [f"connector.{n}" for n, _ in connector.named_parameters()]}

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        """Stage 1 with the connector, stage 2 without it and with CRT (the paper's framework, Eq. 7)."""
        if not self.has_exemplars and self.beta == 0:
            return [Stage("tune", trainable, epochs, steps)]
        stages = [Stage("contrast", trainable, epochs, steps)]
        if (self.align_epochs if self.align_steps is None else self.align_steps) > 0:
            trained = (*trainable, "connector") if self.has_exemplars else trainable
            set_rate = self.has_exemplars and self.connector_learning_rate is not None
            rates = {"connector": float(self.connector_learning_rate or 0.0)} if set_rate else {}
            stages.insert(0, Stage("align", trained, self.align_epochs, self.align_steps, rates))
        return stages

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> Items:
        """Samples with the task-specific model's pixels and, in stage ``contrast``, their negatives.

        Raises:
            DataError: If the task-specific model was trained for another task, or no sample has a negative; not while
                samples are still being checked.
        """
        if not self.has_exemplars and self.beta == 0:
            return SampleItems(self.sample_transform())
        contrast = self._contrasts(stage)
        if self._tsm is not None and usable is not None and (contrast or self.beta == 0):  # once: align may come before
            check_task(self._tsm, source, usable)
        index = NegativeIndex(source, usable) if contrast else None
        return VITaskItems(
            self.sample_transform(),
            None if self._tsm is None else self._tsm.transform.pixels,
            self.negatives if contrast else None,  # type: ignore[arg-type]
            index if self.negatives == "sampled" else None,
        )

    def _contrasts(self, stage: Stage) -> bool:
        """CRT, and the images that it needs, belong to the second stage."""
        return stage.name == "contrast" and self.beta > 0

    def begin_stage(self, stage: Stage) -> None:
        """Tell the forward pass whether this stage has CRT."""
        self.contrast = self._contrasts(stage)

    def export(self, folder: Path) -> None:
        """Write the connector, with which ``predict`` gives exemplars to the tuned model."""
        if self.connector is not None and self.tsm_path is not None:
            record = ExemplarRecord(self.exemplar, self.tsm_path)  # type: ignore[arg-type]
            save_exemplars(folder / "exemplar", self.connector, record)

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """Eq. 7 on one micro-batch. The weight is the number of response tokens, for all terms.

        ``batch`` may hold ``features`` (of ``vision``, as the model's encoder gives them) and ``exemplar_features`` (as
        the task-specific model gives them); what is there is not computed.
        """
        passes = self._passes(model, batch)
        plain = passes[0]
        if len(passes) == 1:
            hidden = model.hidden(plain.rows.tokens, plain.features, vision_mask=plain.rows.vision_mask)
            loss_sum, count = chunked_cross_entropy(hidden, batch["labels"], model.logits, self.chunk_tokens)
            return StepOutput(loss_sum, count, {})
        states, targets = self._run(model, passes)(model, passes, self._pad_id)
        counted = targets != IGNORE_INDEX
        contrasted = None
        if self.contrast:
            places, _ = response_rows(batch["labels"])
            contrasted = batch["contrasted"][places // batch["labels"].shape[1]]
        loss_sum, metrics = vitask_losses(
            states,
            targets,
            model.logits,
            exemplar=self.has_exemplars,
            contrasted=contrasted,
            alpha=self.alpha,
            beta=self.beta,
            detach=self.detach,
            chunk_tokens=self.chunk_tokens,
        )
        if contrasted is not None:
            metrics["no_negative"] = (counted & ~contrasted).sum()
        return StepOutput(loss_sum, counted.sum(), metrics)

    def _run(self, model: Any, passes: list[Pass]) -> Run:
        """How these passes run: packed where the beginning is shared and both parts fit into the model."""
        if self.passes == "separate":
            return separate_states
        early = passes[0].rows.vision_mask.dim() == 2
        length = sum(one.rows.tokens.shape[1] for one in passes[:2])
        shared = self.passes == "packed" and self.exemplar in ("cls", "all")
        return packed_states if shared and early and length <= model.decoder.max_seq_len else joint_states

    def _passes(self, model: Any, batch: dict[str, Any]) -> list[Pass]:
        """Without exemplar, with it, with the negative image: as many of them as the stage needs."""
        everything = batch["features"] if "features" in batch else model.encode(batch["vision"])
        rows = TokenRows(batch["tokens"], batch["vision_mask"], batch["labels"])
        own = everything[: len(rows.tokens)]
        passes = [Pass(rows, own)]
        if self.connector is not None:
            exemplars = self.exemplar_features(batch)
            passes.append(Pass(self._with_places(rows, exemplars.shape[1]), own, self.connector(exemplars)))
        if self.contrast and "partner" in batch:
            passes.append(Pass(rows, own[batch["partner"]]))
        elif self.contrast:
            text = batch["negative"]
            negative = TokenRows(text["tokens"], text["vision_mask"], text["labels"])
            passes.append(Pass(negative, everything[len(own) :]))
        return passes

    def _with_places(self, rows: TokenRows, count: int) -> TokenRows:
        return exemplar_rows(
            rows,
            self.exemplar,  # type: ignore[arg-type]
            image_id=self._image_id,
            placeholder_id=self._placeholder_id,
            pad_id=self._pad_id,
            count=count,
        )

    def exemplar_features(self, batch: dict[str, Any]) -> Tensor:
        """Features of the frozen task-specific model, [b, k, d_tsm]; one forward pass a batch, without gradients."""
        if "exemplar_features" in batch:
            return batch["exemplar_features"]
        return self._look(batch["exemplar_pixels"])

    @torch.no_grad()
    def _look(self, pixels: Tensor) -> Tensor:
        assert self._tsm is not None
        device = next(self._tsm.parameters()).device
        return self._tsm.features(pixels.to(device), tokens=self._tokens)

    def auxiliary_encoder(self) -> AuxiliaryEncoder | None:
        """The task-specific model; its features are the exemplars before the connector."""
        if self._tsm is None or self.tsm_path is None:
            return None
        transform = self._tsm.transform
        settings = {"tokens": self._tokens, **transform.settings()}
        return AuxiliaryEncoder(self.tsm_path, settings, transform.pixels, self._look)


def check_task(tsm: TaskModel, source: SampleSource, usable: np.ndarray) -> None:
    """Refuse a task-specific model of another task than the samples', as far as they name theirs in ``meta``.

    Raises:
        DataError: Naming the data, and what both know.
    """
    seen = set()
    for index in usable:
        meta = source[int(index)].meta
        name, classes = meta.get("set"), meta.get("classes")
        if not isinstance(name, str) or not isinstance(classes, list):
            continue
        task = (name, tuple(map(str, classes)))
        if task not in seen:
            seen.add(task)
            try:
                tsm.check(*task)
            except ModelError as error:
                raise DataError(f"{source.name}: objective.tsm does not belong to these data: {error}") from error


def _detached(rda: Any) -> bool:
    """Read the key ``rda``: whether the teacher is left out of RDA's gradient."""
    if rda is None:
        return True
    if not isinstance(rda, Mapping) or list(rda) != ["detach"] or not isinstance(rda["detach"], bool):
        raise ValueError(f"rda {rda!r} is not {{detach: true}} or {{detach: false}}")
    return rda["detach"]
