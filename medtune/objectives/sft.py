"""Visual instruction tuning: cross-entropy on the assistant's words, and on a virtual user's questions."""

from typing import Any, Literal

import numpy as np
import torch

from medtune.data.items import Items, SampleItems, SampleTransform
from medtune.data.source import SampleSource
from medtune.errors import ConfigError
from medtune.losses.cross_entropy import chunked_cross_entropy, predicting_columns
from medtune.losses.visual_questioning import asking_and_answering
from medtune.objectives.base import Objective, Stage, StepOutput, image_features, keep_sample
from medtune.objectives.sft_virtual_user import VirtualUserItems, VirtualUserTurns, require_questions


class SFT(Objective):
    """Supervised fine-tuning on conversations, one or many turns, with or without images.

    With ``virtual_user`` the model also learns to ask (stage 1 of STLLaVA-Med, after SQ-LLaVA): later human turns
    become turns of a virtual user, whose words are supervised like those of the assistant.

    Args:
        chunk_tokens: Supervised tokens whose logits are in memory at once; 0 takes all.
        virtual_user: ``sum`` for L_vq + L_qa of the paper, with a virtual user in every later human turn; ``sampled``
            for SQ-LLaVA's code, with one in each later turn with probability ``sq_r``; null for none.
        sq_r: Probability of ``sampled``; the published script has 0.5.

    Raises:
        ConfigError: For a probability outside of (0, 1].
    """

    def __init__(
        self, chunk_tokens: int = 512, virtual_user: Literal["sum", "sampled"] | None = None, sq_r: float = 0.5
    ) -> None:
        super().__init__()
        if not 0 < sq_r <= 1:
            raise ConfigError(f"objective.sq_r is {sq_r}, but a probability in (0, 1] is needed")
        self.chunk_tokens, self.virtual_user, self.sq_r = chunk_tokens, virtual_user, sq_r
        self._questions_seen = False

    def sample_transform(self) -> SampleTransform:
        """Return the function that lets a virtual user speak; without one, samples stay as they are."""
        if self.virtual_user is None:
            return keep_sample
        return VirtualUserTurns(1.0 if self.virtual_user == "sum" else self.sq_r)

    def items(self, source: SampleSource, usable: np.ndarray | None, stage: Stage) -> Items:
        """Return items of single samples.

        Raises:
            ConfigError: If there is a virtual user, but no conversation of the training data has a later question.
        """
        if self.virtual_user is None:
            return SampleItems(self.sample_transform())
        if usable is not None and not self._questions_seen:
            require_questions(source, usable)
            self._questions_seen = True  # the training data come first; validation data may be single questions
        return VirtualUserItems(self.sample_transform())

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """``-sum log f(y_i | X_v, X_p, y_<i)`` over supervised tokens (InstFree Eq. 1), each times its row's weight.

        With a virtual user this is L_vq + L_qa; the metrics ``asking_loss`` and ``answering_loss`` add up to the loss,
        and ``asked_share`` is the share of questions among the supervised tokens.
        """
        features = image_features(model, batch)
        columns = predicting_columns(batch["labels"])
        hidden = model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"], keep=columns)
        weights = batch.get("weights")
        if self.virtual_user is None:
            loss_sum, count = chunked_cross_entropy(
                hidden, batch["labels"], model.logits, self.chunk_tokens, weights, columns
            )
            return StepOutput(loss_sum, count, {})
        asked = batch["asked"] if "asked" in batch else torch.zeros_like(batch["labels"], dtype=torch.bool)
        loss_sum, count, asking, share = asking_and_answering(
            hidden, batch["labels"], asked, model.logits, self.chunk_tokens, weights, columns
        )
        metrics = {"asking_loss": asking, "answering_loss": loss_sum.detach() - asking, "asked_share": share}
        return StepOutput(loss_sum, count, metrics)
