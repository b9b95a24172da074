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
from medtune.losses.cross_entropy import (
    IGNORE_INDEX,
    chunked_cross_entropy,
    predicting_columns,
    supervised_weight,
)
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
PLANNED_WIDTH = 768  # feature width of a ViT-B


class VITask(Objective):
    """``L_Van + L_EP + alpha L_RDA`` in stage ``align``, ``+ beta L_CRT`` with a frozen connector in ``contrast``.

    Without exemplars and without CRT the two stages would be equal. There is then one stage, ``tune``, of the run's
    length; this is plain visual instruction tuning.

    Args:
        tsm: Folder of the task-specific model, as ``recipes/tsm.py`` writes it. Not needed without exemplars.
        exemplar: Features of the task-specific model that are inserted as tokens: ``cls`` its class token (EP_cls),
            ``all`` its patch tokens (EP_all), ``replace`` its patch tokens in place of the model's own image features
            (EP_rep), or ``none``.
        alpha: Weight of response distribution alignment (Eq. 3); 0 leaves it out.
        rda: ``{detach: false}`` is the variant RDA* (Fig. 3), whose gradient also reaches the teacher; otherwise the
            teacher is detached.
        beta: Weight of contrastive response tuning (Eq. 5); 0 leaves its pass out.
        negatives: ``sampled`` draws the negative image from the whole set; ``roll`` takes the image of the next row of
            the micro-batch if it fits, so that no further image is encoded.
        within_set: Whether a negative must be of the sample's own set (``meta.set``), if several sets have one
            instruction.
        align_epochs: Epochs of the first stage; 0 leaves it out. The second stage has the run's length.
        align_steps: Steps of the first stage; takes precedence over ``align_epochs``.
        connector_learning_rate: Learning rate of the connector; None takes the run's.
        passes: How the passes of a step are run; the results are the same. ``packed``: the passes without and with
            exemplar in one row, where they share the tokens before the exemplar, including image tokens; it falls back
            to ``joint`` if images are not tokens or the row does not fit into the model. ``joint``: as one batch.
            ``separate``: one after the other.
        chunk_tokens: Response tokens, over all passes, whose logits are in memory at once; 0 takes all.

    Raises:
        ValueError: For an unknown variant, a negative weight or length, exemplars without ``tsm``, or an alpha
            without exemplars.
    """

    def __init__(
        self,
        tsm: str | None = None,
        exemplar: str = "cls",
        alpha: float = 1.0,
        rda: Mapping[str, bool] | None = None,
        beta: float = 1.0,
        negatives: str = "sampled",
        within_set: bool = False,
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
        self.tsm_path, self.exemplar, self.negatives, self.within_set = tsm, exemplar, negatives, within_set
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
        """The task-specific model, if exemplars are used."""
        if not self.has_exemplars or self.tsm_path is None:
            return {}
        return {"tsm": Companion("the task-specific model", self.tsm_path, load_tsm)}

    @property
    def _tsm(self) -> TaskModel | None:
        return self.beside.get("tsm")

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Create the connector from the task-specific model's features to the word embeddings.

        If a run is only planned and the task-specific model is absent, the connector has the width for a ViT-B.
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
        """The connector is a separate part; without exemplars the part is empty."""
        connector = self.connector
        return {"connector": [] if connector is None else [f"connector.{n}" for n, _ in connector.named_parameters()]}

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        """Stage 1 trains the connector; stage 2 freezes it and adds CRT (the paper's framework, Eq. 7)."""
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
        """Samples with the pixels for the task-specific model and, in stage ``contrast``, their negatives.

        Raises:
            DataError: If the task-specific model was trained for another task, or no sample has a negative; not during
                the data check.
        """
        if not self.has_exemplars and self.beta == 0:
            return SampleItems(self.sample_transform())
        contrast = self._contrasts(stage)
        # With CRT the task is checked for stage `contrast` only: `align`, which may come first, has the same data.
        if self._tsm is not None and usable is not None and (contrast or self.beta == 0):
            check_task(self._tsm, source, usable)
        index = NegativeIndex(source, usable, self.within_set) if contrast else None
        return VITaskItems(
            self.sample_transform(),
            None if self._tsm is None else self._tsm.transform.pixels,
            self.negatives if contrast else None,  # type: ignore[arg-type]
            index if self.negatives == "sampled" else None,
            self.within_set,
        )

    def _contrasts(self, stage: Stage) -> bool:
        """Whether a stage has CRT and its negative images: only the second one, if ``beta`` is above 0."""
        return stage.name == "contrast" and self.beta > 0

    def begin_stage(self, stage: Stage) -> None:
        """Note whether this stage has CRT, for the forward pass."""
        self.contrast = self._contrasts(stage)

    def export(self, folder: Path) -> None:
        """Write the connector, which ``predict`` needs to give exemplars to the tuned model."""
        if self.connector is not None and self.tsm_path is not None:
            record = ExemplarRecord(self.exemplar, self.tsm_path)  # type: ignore[arg-type]
            save_exemplars(folder / "exemplar", self.connector, record)

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """Eq. 7 on one micro-batch. The weight is the number of response tokens, for all terms.

        A response token counts with the weight of its row.
        If ``batch`` holds ``features`` (the output of the model's encoder for ``vision``) or ``exemplar_features`` (the
        output of the task-specific model), they are used and not computed again.
        """
        passes = self._passes(model, batch)
        plain = passes[0]
        if len(passes) == 1:
            columns = predicting_columns(batch["labels"])
            hidden = model.hidden(plain.rows.tokens, plain.features, vision_mask=plain.rows.vision_mask, keep=columns)
            loss_sum, count = chunked_cross_entropy(
                hidden, batch["labels"], model.logits, self.chunk_tokens, batch.get("weights"), columns
            )
            return StepOutput(loss_sum, count, {})
        states, targets = self._run(model, passes)(model, passes, self._pad_id)
        counted = targets != IGNORE_INDEX
        rows = response_rows(batch["labels"])[0] // batch["labels"].shape[1]
        contrasted = batch["contrasted"][rows] if self.contrast else None
        each = batch["weights"][rows] if "weights" in batch else None
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
            token_weights=each,
        )
        if contrasted is not None:
            alone = counted & ~contrasted
            metrics["no_negative"] = alone.sum() if each is None else (alone * each).sum()
        return StepOutput(loss_sum, supervised_weight(batch["labels"], batch.get("weights")), metrics)

    def _run(self, model: Any, passes: list[Pass]) -> Run:
        """The function that runs these passes: packed if they share a beginning and both fit into the model."""
        if self.passes == "separate":
            return separate_states
        early = passes[0].rows.vision_mask.dim() == 2
        length = sum(single.rows.tokens.shape[1] for single in passes[:2])
        shared = self.passes == "packed" and self.exemplar in ("cls", "all")
        return packed_states if shared and early and length <= model.decoder.max_seq_len else joint_states

    def _passes(self, model: Any, batch: dict[str, Any]) -> list[Pass]:
        """The passes that the stage needs: without exemplar, with exemplar, with the negative image."""
        features = batch["features"] if "features" in batch else model.encode(batch["vision"])
        rows = TokenRows(batch["tokens"], batch["vision_mask"], batch["labels"])
        own = features[: len(rows.tokens)]  # sampled negatives are in the rows after these
        passes = [Pass(rows, own)]
        if self.connector is not None:
            exemplars = self.exemplar_features(batch)
            passes.append(Pass(self._with_places(rows, exemplars.shape[1]), own, self.connector(exemplars)))
        if self.contrast and "partner" in batch:
            passes.append(Pass(rows, own[batch["partner"]]))
        elif self.contrast:
            text = batch["negative"]
            negative = TokenRows(text["tokens"], text["vision_mask"], text["labels"])
            passes.append(Pass(negative, features[len(own) :]))
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
        """Features of the frozen task-specific model, [b, k, d_tsm]; one forward pass per batch, without gradients."""
        if "exemplar_features" in batch:
            return batch["exemplar_features"]
        return self._tsm_features(batch["exemplar_pixels"])

    @torch.no_grad()
    def _tsm_features(self, pixels: Tensor) -> Tensor:
        assert self._tsm is not None
        device = next(self._tsm.parameters()).device
        return self._tsm.features(pixels.to(device), tokens=self._tokens)

    def auxiliary_encoder(self) -> AuxiliaryEncoder | None:
        """The task-specific model; its features are the exemplars before the connector."""
        if self._tsm is None or self.tsm_path is None:
            return None
        transform = self._tsm.transform
        settings = {"tokens": self._tokens, **transform.settings()}
        return AuxiliaryEncoder(self.tsm_path, settings, transform.pixels, self._tsm_features)


def check_task(tsm: TaskModel, source: SampleSource, usable: np.ndarray) -> None:
    """Refuse a task-specific model of another task than that of the samples. Samples name their task in ``meta``.

    Samples that name no task are accepted.

    Raises:
        DataError: Naming the data, and the classes of both.
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
    """Read the key ``rda``: whether the teacher is detached, so that RDA's gradient does not reach it."""
    if rda is None:
        return True
    if not isinstance(rda, Mapping) or list(rda) != ["detach"] or not isinstance(rda["detach"], bool):
        raise ValueError(f"rda {rda!r} is not {{detach: true}} or {{detach: false}}")
    return rda["detach"]
