"""A served model as the judge (STLLaVA-Med, Sec. 3.3 and Fig. 3): it scores both answers in one reply.

The answers are shown in both orders and the scores averaged, because models prefer an answer for its place. The paper
asks once, in the given order (``orders: given``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from medtune.clients.errors import RequestRefusedError
from medtune.clients.messages import ChatRequest, SamplingAt, content
from medtune.clients.served import RecordedClient
from medtune.judges.base import Judgement, OpenImages
from medtune.judges.candidates import Candidate
from medtune.judges.parsing import ReadScores, read_scores
from medtune.judges.prompts import JudgePrompt, read_prompt


@dataclass(frozen=True)
class ModelJudge:
    """A judge that asks a served model.

    Attributes:
        prompt: Name of a packaged prompt (``pair-v1`` with images, ``pair_text-v1`` without), or path of a ``.txt``
            file.
        orders: ``both`` shows the answers in both orders and averages the scores; ``given`` asks once.
        temperature: Sampling temperature; 0 is greedy. The official code uses 0.2.
        top_p: Least sum of the probabilities of the kept tokens.
        seed: Seed of the sampling.
        max_tokens: Maximum number of tokens of a reply; null leaves it to the server, or to
            ``server.options.max_completion_tokens`` where a server wants this name.

    Raises:
        ConfigError: There is no such prompt.
        ValueError: A number is out of range.
    """

    remote: ClassVar[bool] = True
    prompt: str = "pair-v1"
    orders: Literal["both", "given"] = "both"
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int | None = 300

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or (self.max_tokens is not None and self.max_tokens < 1):
            raise ValueError(
                "temperature must not be negative, top_p must be above 0 and at most 1, max_tokens positive"
            )
        if self.orders not in ("both", "given"):
            raise ValueError("orders must be both or given")
        assert self._read

    @cached_property
    def _read(self) -> JudgePrompt:
        return read_prompt(self.prompt)

    @property
    def looks(self) -> bool:
        """Whether its prompt shows the images."""
        return self._read.images

    def identity(self) -> dict[str, Any]:
        """Return prompt version, orders and sampling."""
        return {
            "name": "model",
            "prompt": self._read.version,
            "orders": self.orders,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
        }

    def versions(self) -> Sequence[str]:
        """Return name and version of its prompt."""
        return [self._read.version]

    def requests(self, candidate: Candidate, open_images: OpenImages) -> list[ChatRequest]:
        """Return one request for each order."""
        images = open_images() if self.looks else []
        sampling = SamplingAt(self.temperature, self.top_p, seed=self.seed) if self.temperature else None
        found = []
        for order in ((0, 1), (1, 0))[: 2 if self.orders == "both" else 1]:
            first, second = (candidate.answers[place].strip() for place in order)
            text = self._read.filled({"question": candidate.question, "answer_1": first, "answer_2": second})
            turns = [{"role": "user", "content": content([*images, text])}]
            found.append(ChatRequest(candidate.id, turns, sampling, self.max_tokens))
        return found

    def judge(self, candidate: Candidate, open_images: OpenImages, client: RecordedClient | None) -> Judgement:
        """Ask in each order and average. If one reply cannot be read, the candidate has no scores."""
        assert client is not None
        read, asked, cached = [], 0, 0
        for request in self.requests(candidate, open_images):
            try:
                reply = client.ask(request, self._read.version)
            except RequestRefusedError:
                read.append(ReadScores(None, "rejected"))
                continue
            asked, cached = asked + reply.asked, cached + (not reply.asked)
            read.append(read_scores(reply.text, 2, self._read.low, self._read.high, reply.finish_reason))
        shown = tuple(None if one.scores is None else (one.scores[0], one.scores[1]) for one in read)
        reason = next((one.reason for one in read if one.reason), "")
        known = [scores for scores in shown if scores is not None]
        if reason:
            return Judgement(candidate.id, None, reason, shown, asked, cached)
        # In the second order the first answer is the one that is shown second.
        own = [scores if place == 0 else scores[::-1] for place, scores in enumerate(known)]
        first, second = (sum(scores[answer] for scores in own) / len(own) for answer in (0, 1))
        return Judgement(candidate.id, (first, second), "", shown, asked, cached)
