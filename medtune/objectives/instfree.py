"""InstFree: tuning on image-report pairs without instructions (Kang et al., Algorithm 1).

The user turn holds N placeholders whose embeddings are replaced by the proxy instruction. A first stage trains the
proxy alone; a second trains the model's vision side, with the proxy moving as an exponential average.
"""

import random
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal

import torch
from torch import Tensor

from medtune.data.reports import shuffle_response, shuffle_sections, shuffle_sentences
from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.losses.cross_entropy import chunked_cross_entropy, predicting_columns
from medtune.modules.proxy_instruction import ProxyInstruction, placeholder_mask
from medtune.objectives.base import Objective, SampleTransform, Stage, StepOutput, image_features

Mode = Literal["momentum", "update", "fixed", "text", "random_text"]
MODES = ("momentum", "update", "fixed", "text", "random_text")
UNITS = ("separator", "sentence", "section")


@dataclass(frozen=True)
class ReportPrompt:
    """Turns an image-report pair into a conversation: a user turn before the report, the report's segments shuffled.

    Attributes:
        instructions: The user turn is drawn from these.
        separator: Text at which the response is split for shuffling (Eq. 4); None keeps its order.
        unit: The segments that are shuffled: the texts between separators, sentences, or ``meta["sections"]``.
    """

    instructions: tuple[str, ...]
    separator: str | None = None
    unit: str = "separator"

    def __call__(self, sample: Sample, rng: random.Random) -> Sample:
        """A new sample: the system messages, the instruction, the report. All randomness comes from ``rng``.

        The instruction takes the place of a written one, if the sample has one.

        Raises:
            DataError: If the sample has several turns or does not end with the assistant's, or if sections are to be
                shuffled and the sample has none, or they do not make up its report.
        """
        *before, last = sample.messages
        system = [message for message in before if message.role == "system"]
        others = [message.role for message in before if message.role != "system"]
        if last.role != "assistant" or others not in ([], ["user"]):
            raise DataError(
                f"sample {sample.id}: InstFree trains on image-report pairs: one assistant message, after at most one "
                "instruction, which the method replaces; write this conversation as a report, or train with sft."
            )
        report = self._shuffled(sample, rng)
        instruction = rng.choice(self.instructions) if len(self.instructions) > 1 else self.instructions[0]
        turns = (*system, Message("user", instruction), Message("assistant", report))
        return replace(sample, messages=turns)

    def _shuffled(self, sample: Sample, rng: random.Random) -> str:
        report = sample.messages[-1].content
        if self.unit == "sentence":
            return shuffle_sentences(report, rng)
        if self.unit == "section":
            return shuffle_sections(_sections(sample), rng)
        return report if self.separator is None else shuffle_response(report, self.separator, rng)


def _sections(sample: Sample) -> list[str]:
    """The sections of a report; together they must be the whole report."""
    sections = sample.meta.get("sections")
    if not isinstance(sections, list) or not all(isinstance(section, str) for section in sections):
        raise DataError(
            f"sample {sample.id}: shuffle_unit=section needs meta.sections, a list of texts, as the MIMIC-CXR "
            "converter writes it; shuffle by sentence or by separator instead."
        )
    if " ".join(sections).split() != sample.messages[-1].content.split():
        raise DataError(f"sample {sample.id}: the texts of meta.sections, one after the other, are not its report.")
    return sections


def random_instructions() -> tuple[str, ...]:
    """The written instructions of the baseline FT w/ Rand (58 requests to describe a medical image)."""
    text = files("medtune.objectives").joinpath("instructions.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)


class InstFree(Objective):
    """Momentum proxy instruction (3.3) and response shuffling (3.4), with the paper's baselines as modes.

    Args:
        mode: ``momentum`` is the paper's method. ``update`` trains the proxy by gradient descent, ``fixed`` keeps the
            warmed-up proxy; ``text`` and ``random_text`` use written instructions and no proxy (FT, FT w/ Rand).
        vectors: N, the number of proxy vectors.
        alpha: Momentum of Eq. 3, between 0 (``update``) and 1 (``fixed``). The paper's 0.999 is for about 15,000
            steps; for a short run keep ``(1 - alpha) * steps`` near 15.
        sigma: Standard deviation of the proxy's initial values.
        warmup_epochs: Epochs of the first stage, with the whole model frozen.
        warmup_steps: Steps of the first stage; takes precedence over ``warmup_epochs``. 0 leaves the stage out.
        warmup_learning_rate: Learning rate of the proxy in the first stage; None takes the run's.
        shuffle_separator: Text at which responses are split for shuffling, e.g. ``","``; None shuffles nothing.
        shuffle_unit: The segments that are shuffled: ``separator`` takes the texts between separators, ``sentence`` the
            sentences (:func:`medtune.data.sentences.sentence_spans`), ``section`` the sample's ``meta.sections``. The
            last two need no separator.
        instruction: The user turn of mode ``text``.
        chunk_tokens: Supervised tokens whose logits are in memory at once; 0 takes all.

    Raises:
        ValueError: For an unknown mode or unit, an alpha outside [0, 1], or a separator with a unit that needs none.
    """

    def __init__(
        self,
        mode: str = "momentum",
        vectors: int = 8,
        alpha: float = 0.999,
        sigma: float = 0.02,
        warmup_epochs: int = 1,
        warmup_steps: int | None = None,
        warmup_learning_rate: float | None = None,
        shuffle_separator: str | None = None,
        shuffle_unit: str = "separator",
        instruction: str = "Describe this medical scan.",
        chunk_tokens: int = 512,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        if vectors < 1 or sigma < 0 or warmup_epochs < 0 or (warmup_steps or 0) < 0:
            raise ValueError("vectors must be at least 1; sigma, warmup_epochs and warmup_steps at least 0")
        if shuffle_separator == "":
            raise ValueError("shuffle_separator must not be empty; null shuffles nothing")
        if shuffle_unit not in UNITS:
            raise ValueError(f"shuffle_unit {shuffle_unit!r} is not one of {', '.join(UNITS)}")
        if shuffle_unit != "separator" and shuffle_separator is not None:
            raise ValueError(f"shuffle_unit {shuffle_unit!r} splits at no separator; set shuffle_separator to null")
        self.mode, self.vectors, self.alpha, self.sigma = mode, vectors, alpha, sigma
        self.warmup_epochs, self.warmup_steps = warmup_epochs, warmup_steps
        self.warmup_learning_rate = warmup_learning_rate
        self.shuffle_separator, self.shuffle_unit, self.instruction = shuffle_separator, shuffle_unit, instruction
        self.chunk_tokens = chunk_tokens
        self.proxy: ProxyInstruction | None = None
        self.averaging = False
        self.last_t: Tensor
        self.average: Tensor

    @property
    def has_proxy(self) -> bool:
        """Whether this mode replaces the instruction by continuous vectors."""
        return self.mode in ("momentum", "update", "fixed")

    def bind(self, model: Any, transform: Any, seed: int) -> None:
        """Create the proxy. Its width is that of the model's word embeddings."""
        self._placeholder_text, self._placeholder_id = transform.placeholder_text, transform.placeholder_id
        if self.has_proxy:
            self.proxy = ProxyInstruction(self.vectors, model.embed_dim, self.sigma, seed)
            # Between steps `weight` is what the next forward pass uses: in momentum mode, the average. `last_t` is t of
            # Algorithm 1 after the last step. `average` is the value that `weight` had before that step.
            self.register_buffer("last_t", self.proxy.weight.detach().clone())
            self.register_buffer("average", self.proxy.weight.detach().clone())

    def parts(self) -> dict[str, list[str]]:
        """The proxy is a separate part, with its own learning rate; in a mode without proxy the part is empty."""
        return {"proxy": ["proxy.weight"] if self.has_proxy else []}

    def stages(self, trainable: tuple[str, ...], epochs: int, steps: int | None) -> list[Stage]:
        """Warm-up of t with g frozen (lines 3-7 of Algorithm 1), then the joint stage (lines 9-14)."""
        if not self.has_proxy:
            return [Stage("tune", trainable, epochs, steps)]
        tuned = trainable if self.mode == "fixed" else (*trainable, "proxy")
        stages = [Stage("tune", tuned, epochs, steps)]
        warmup = self.warmup_epochs if self.warmup_steps is None else self.warmup_steps
        if warmup > 0:
            rates = {} if self.warmup_learning_rate is None else {"proxy": self.warmup_learning_rate}
            stages.insert(0, Stage("warmup", ("proxy",), self.warmup_epochs, self.warmup_steps, rates))
        return stages

    def sample_transform(self) -> SampleTransform:
        """The user turn is N placeholders, one instruction, or a random one of many."""
        if self.has_proxy:
            instructions: tuple[str, ...] = (self._placeholder_text * self.vectors,)
        else:
            instructions = (self.instruction,) if self.mode == "text" else random_instructions()
        return ReportPrompt(instructions, self.shuffle_separator, self.shuffle_unit)

    def begin_stage(self, stage: Stage) -> None:
        """Turn averaging on in the joint stage of momentum mode, and off otherwise."""
        self.averaging = self.mode == "momentum" and stage.name == "tune"
        if self.averaging and self.proxy is not None:
            self.average.copy_(self.proxy.weight.detach())

    def forward(self, model: Any, batch: dict[str, Any]) -> StepOutput:
        """Eq. 2: cross-entropy of the report, with the proxy in place of the instruction."""
        features = image_features(model, batch)
        columns = predicting_columns(batch["labels"])
        hidden = model.hidden(
            batch["tokens"],
            features,
            vision_mask=batch["vision_mask"],
            replace=self._replacement(batch["tokens"]),
            keep=columns,
        )
        loss_sum, count = chunked_cross_entropy(
            hidden, batch["labels"], model.logits, self.chunk_tokens, batch.get("weights"), columns
        )
        return StepOutput(loss_sum, count, {})

    def _replacement(self, tokens: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.proxy is None:
            return None
        return placeholder_mask(tokens, self._placeholder_id, self.vectors), self.proxy(len(tokens))

    @torch.no_grad()
    def after_step(self) -> None:
        """Eq. 3, once per optimizer step: the weight becomes ``alpha * average + (1 - alpha) * t``.

        The optimizer step started from the average. The weight therefore holds ``t`` now, and the buffer holds the
        value that the weight had before the step.
        """
        if self.proxy is None:
            return
        weight = self.proxy.weight
        self.last_t.copy_(weight)
        if self.averaging:
            weight.copy_(torch.lerp(self.average, self.last_t, 1.0 - self.alpha))
            self.average.copy_(weight)
