"""Visual instruction tuning: cross-entropy on the assistant's words."""

from typing import Any

from medtune.losses.cross_entropy import chunked_cross_entropy
from medtune.objectives.base import Objective, StepOutput, image_features


class SFT(Objective):
    """Supervised fine-tuning on conversations, one or many turns, with or without images.

    Args:
        chunk_tokens: Supervised tokens whose logits are in memory at once; 0 takes all.
    """

    def __init__(self, chunk_tokens: int = 512) -> None:
        super().__init__()
        self.chunk_tokens = chunk_tokens

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """``-sum log f(y_i | X_v, X_p, y_<i)`` over supervised tokens (InstFree Eq. 1), each times its row's weight."""
        features = image_features(model, batch)
        hidden = model.hidden(batch["tokens"], features, vision_mask=batch["vision_mask"])
        loss_sum, count = chunked_cross_entropy(
            hidden, batch["labels"], model.logits, self.chunk_tokens, batch.get("weights")
        )
        return StepOutput(loss_sum, count, {})
