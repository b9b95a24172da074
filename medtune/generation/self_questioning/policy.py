"""Medtune's own model as a policy: the engine answers, because the lengths of sampled answers vary."""

from dataclasses import dataclass

from medtune.config import instantiate
from medtune.generation.answering import MedtuneModel, load_model
from medtune.generation.backends.base import AnswerSettings
from medtune.generation.engine.answers import EngineAnswers
from medtune.generation.engine.continuous import Engine


@dataclass(frozen=True)
class Policy(MedtuneModel):
    """Backend for a model of :mod:`medtune.models`; ``batch_size`` is the number of texts that are written at once."""

    def open(self, settings: AnswerSettings) -> EngineAnswers:  # type: ignore[override]
        """Load the model.

        Raises:
            ModelError: If the weights do not fit.
        """
        transform = instantiate(self.transform)
        engine = Engine(
            load_model(self.model, self.checkpoint, device=settings.device, dtype=settings.dtype),
            transform,
            slots=self.batch_size,
            max_new_tokens=settings.max_new_tokens,
            device=settings.device,
            dtype=settings.dtype,
            sampling=settings.sampling,
            share_prefix=self.share_prefix,
        )
        return EngineAnswers(engine, settings.on_error)
