"""DPO: preferring the chosen of two answers more than a frozen reference does (Rafailov et al. 2023)."""

from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtune.data.items import Items
from medtune.data.source import SampleSource
from medtune.losses.chosen_likelihood import chosen_likelihood
from medtune.losses.dpo import dpo, preference_metrics
from medtune.losses.ipo import ipo
from medtune.objectives.base import Objective, Precompute, Stage, StepOutput, image_features
from medtune.objectives.companions import Companion
from medtune.objectives.dpo.forms import FORMS
from medtune.objectives.dpo.items import PairItems
from medtune.objectives.dpo.reference import AdaptersOff, CompanionReference, Precomputed, Reference

LOSSES = ("sigmoid", "ipo")
REFERENCES = ("adapters_off", "companion", "precomputed")


class DPO(Objective):
    """``-log sigmoid(beta [(log p(c) - log p_ref(c)) - (log p(r) - log p_ref(r))])`` for each pair; variants beside it.

    The image is encoded once for both answers, and the prompt is read once. No tensor holds the logits of all tokens.

    Args:
        reference: Source of the reference's log-probabilities. ``adapters_off``: the policy with its adapters switched
            off; only adapters may be trained. ``companion``: a second model of the same architecture. ``precomputed``:
            computed once before training and kept in ``reference_cache``.
        reference_weights: Weights of the companion; None takes the run's base weights.
        reference_cache: Folder of the precomputed log-probabilities.
        loss: ``sigmoid`` (DPO) or ``ipo``.
        beta: Strength of the implicit KL penalty; for IPO the paper's tau.
        label_smoothing: Assumed probability that a preference is wrong (cDPO), for ``sigmoid`` only.
        mean_log_probs: Let IPO compare means over tokens in place of sums, as its authors advise.
        sft_weight: Weight of the mean negative log-likelihood of the chosen answer, which is added to the loss.
        form: ``shared`` runs both answers in one row with one prompt; ``plain`` runs two rows. The results are equal.
        chunk_tokens: Tokens of answers whose logits are in memory at once; 0 takes all.

    Raises:
        ValueError: For an unknown variant, or values that contradict each other.
    """

    higher_is_better = MappingProxyType(
        {"rewards/accuracies": True, "rewards/margins": True, "rewards/chosen": True, "logps/chosen": True}
    )
    panels = MappingProxyType(
        {
            "reward margin, chosen minus rejected": ("rewards/margins",),
            "share of pairs with a margin above 0": ("rewards/accuracies",),
            "implicit rewards": ("rewards/chosen", "rewards/rejected"),
            "log-probabilities of the answers": ("logps/chosen", "logps/rejected"),
            "negative log-likelihood of chosen answers, per token": ("sft",),
        }
    )

    def __init__(
        self,
        reference: str = "adapters_off",
        reference_weights: str | None = None,
        reference_cache: str | None = None,
        loss: str = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        mean_log_probs: bool = False,
        sft_weight: float = 0.0,
        form: str = "shared",
        chunk_tokens: int = 512,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("reference", reference, REFERENCES),
            ("loss", loss, LOSSES),
            ("form", form, FORMS),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")
        if beta <= 0 or sft_weight < 0 or not 0 <= label_smoothing < 0.5:
            raise ValueError("beta must be above 0, sft_weight at least 0, and label_smoothing in [0, 0.5)")
        if loss != "sigmoid" and label_smoothing:
            raise ValueError("label_smoothing belongs to loss sigmoid; set it to 0")
        if loss != "ipo" and mean_log_probs:
            raise ValueError("mean_log_probs belongs to loss ipo; set it to false")
        if reference_weights is not None and reference != "companion":
            raise ValueError("reference_weights belongs to reference companion; leave it out")
        if (reference_cache is None) == (reference == "precomputed"):
            raise ValueError("reference precomputed, and no other, needs reference_cache, the folder of its results")
        self.loss, self.beta, self.label_smoothing = loss, beta, label_smoothing
        self.mean_log_probs, self.sft_weight = mean_log_probs, sft_weight
        self.reference_cache, self.chunk_tokens = reference_cache, chunk_tokens
        self.form = FORMS[form]
        self.rows = self.form.rows
        kinds: dict[str, Reference] = {
            "adapters_off": AdaptersOff(),
            "companion": CompanionReference(reference_weights),
            "precomputed": Precomputed(),
        }
        self.reference = kinds[reference]

    def companions(self) -> dict[str, Companion]:
        """The reference model, if it is a second one."""
        return self.reference.companions()

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Check that the reference is what the run starts from.

        Raises:
            ConfigError: If it is not.
        """
        self.reference.check_start(model)

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        """One stage.

        Raises:
            ConfigError: If training these parts would change the reference.
        """
        self.reference.check(trainable)
        return super().stages(trainable, epochs, steps)

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> Items:
        """Pairs."""
        return PairItems(self.form)

    def precompute(self) -> Precompute | None:
        """The reference's log-probabilities of both answers, if they are computed before training."""
        if self.reference_cache is None:
            return None
        return Precompute(
            self.reference_cache,
            "objective.reference_cache",
            "reference log-probabilities",
            item_bytes=2 * torch.float64.itemsize,
            settings={},
            compute=self._reference_outputs,
        )

    def _reference_outputs(self, model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"log_probs": self.form.log_probs(model, batch, image_features(model, batch), self.chunk_tokens)}

    def weight(self, batch: dict[str, Any]) -> float:
        """The number of pairs, each with the weight of its sample."""
        return float(batch["pairs"].sum())

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """The loss and the metrics, summed over pairs."""
        features = image_features(model, batch)
        reference = self.reference.log_probs(
            self.form, model, self.beside.get("reference"), batch, features, self.chunk_tokens
        )
        policy = self.form.log_probs(model, batch, features, self.chunk_tokens)
        pairs = batch["pairs"]
        losses = self._losses(policy, reference, batch["lengths"])
        (chosen, rejected), (reference_chosen, reference_rejected) = policy.unbind(1), reference.unbind(1)
        metrics = preference_metrics(chosen, rejected, reference_chosen, reference_rejected, self.beta)
        if self.sft_weight:
            likelihood = chosen_likelihood(chosen, batch["lengths"][:, 0])
            losses = losses + self.sft_weight * likelihood
            metrics["sft"] = likelihood.detach()
        return StepOutput(losses @ pairs, pairs.sum(), {name: values @ pairs for name, values in metrics.items()})

    def _losses(self, policy: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
        if self.mean_log_probs:
            policy, reference = (sums / lengths.clamp(min=1) for sums in (policy, reference))
        (chosen, rejected), (reference_chosen, reference_rejected) = policy.unbind(1), reference.unbind(1)
        if self.loss == "ipo":
            return ipo(chosen, rejected, reference_chosen, reference_rejected, self.beta)
        return dpo(chosen, rejected, reference_chosen, reference_rejected, self.beta, self.label_smoothing)
