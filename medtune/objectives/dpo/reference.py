"""Where DPO's reference log-probabilities come from."""

from typing import Any, Protocol

import torch
from torch import Tensor

from medtune.errors import ConfigError
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.merge import adapters_are_zero
from medtune.objectives.base import image_features
from medtune.objectives.companions import Companion
from medtune.objectives.dpo.forms import Form


class Reference(Protocol):
    """A frozen model whose log-probabilities the policy's are compared with."""

    def companions(self) -> dict[str, Companion]:
        """The model that is needed beside the policy, if any."""
        ...

    def check(self, trainable: tuple[str, ...]) -> None:
        """Refuse a run whose training would change the reference.

        Raises:
            ConfigError: naming what is trained.
        """
        ...

    def check_start(self, model: Any) -> None:
        """Refuse a model that is not its own reference before the first step.

        Raises:
            ConfigError: naming what may be done.
        """
        ...

    def log_probs(
        self, form: Form, model: Any, companion: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int
    ) -> Tensor:
        """[b, 2] without gradient.

        Args:
            form: runs a model.
            model: the policy.
            companion: the model of :meth:`companions`.
            batch: the pairs.
            features: the policy's image features; used if the reference has the same.
            chunk_tokens: as for the policy.
        """
        ...


class AdaptersOff:
    """The policy without its adapters: no second model, but nothing else may be trained."""

    def companions(self) -> dict[str, Companion]:
        """None."""
        return {}

    def check(self, trainable: tuple[str, ...]) -> None:
        """Refuse parts that are not adapters."""
        others = [part for part in trainable if part.partition(".")[0] != "adapter"]
        if others:
            raise ConfigError(
                f"objective.reference: adapters_off is the run's base only while nothing but adapters is trained, and "
                f"`trainable` names {', '.join(others)}; take reference=companion or reference=precomputed, or leave "
                f"{', '.join(others)} out of `trainable`"
            )

    def check_start(self, model: Any) -> None:
        """Refuse adapters that already add something: without them the model is not what the run starts from."""
        if not adapters_are_zero(model):
            raise ConfigError(
                "objective.reference: the run starts from trained adapters, so that the model without them is not what "
                "it starts from; merge them into the weights first (medtune export), or take reference=companion or "
                "reference=precomputed"
            )

    def log_probs(
        self, form: Form, model: Any, companion: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int
    ) -> Tensor:
        """One pass through the policy's own weights; images are encoded again only if the encoder has adapters."""
        with model.adapters_off():
            own = features.detach() if encoder_is_fixed(model) else image_features(model, batch)
            return form.log_probs(model, batch, own, chunk_tokens)


class CompanionReference:
    """A second model with a tower and a projection of its own: for any trained parts.

    Args:
        weights: folder of its weights; None takes the run's base weights.
    """

    def __init__(self, weights: str | None = None) -> None:
        self.weights = weights

    def companions(self) -> dict[str, Companion]:
        """A model like the policy."""
        return {"reference": Companion("the reference model", self.weights)}

    def check(self, trainable: tuple[str, ...]) -> None:
        """Every part may be trained."""

    def check_start(self, model: Any) -> None:
        """Every start is one."""

    def log_probs(
        self, form: Form, model: Any, companion: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int
    ) -> Tensor:
        """One pass through the companion, which encodes the images itself if its encoder may differ."""
        if self.weights is not None and "features" in batch:
            raise ConfigError(
                "feature_cache: the features are the policy's, and the reference has weights of its own "
                "(objective.reference_weights); set feature_cache=null"
            )
        shared = features.detach() if self.weights is None and encoder_is_fixed(model) else None

        def run(net: Any) -> Tensor:
            return form.log_probs(net, batch, image_features(net, batch) if shared is None else shared, chunk_tokens)

        with torch.no_grad():
            return companion.compute(run)


class Precomputed:
    """Log-probabilities that were computed once before training: no second model and no second pass."""

    def companions(self) -> dict[str, Companion]:
        """None."""
        return {}

    def check(self, trainable: tuple[str, ...]) -> None:
        """Every part may be trained."""

    def check_start(self, model: Any) -> None:
        """Every start is one."""

    def log_probs(
        self, form: Form, model: Any, companion: Any, batch: dict[str, Any], features: Tensor, chunk_tokens: int
    ) -> Tensor:
        """The numbers in the batch."""
        return batch["precomputed"]["log_probs"]


def encoder_is_fixed(model: Any) -> bool:
    """Whether the image encoder computes what it computed before the first step: nothing trained, no adapters."""
    return not any(p.requires_grad or is_adapter_key(name) for name, p in model.encoder.named_parameters())
