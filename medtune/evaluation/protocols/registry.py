"""The protocols by name, and the queries that a question file gives: predict asks them, evaluate expects them."""

from collections.abc import Callable, Sequence

from medtune.data.sample import Sample
from medtune.errors import ConfigError, DataError
from medtune.evaluation.protocols.base import EvaluationProtocol, Query
from medtune.evaluation.protocols.classification import Classification
from medtune.evaluation.protocols.description import Description
from medtune.evaluation.protocols.multiple_choice import LetterLikelihood, MultipleChoice
from medtune.evaluation.protocols.open_question import OpenQuestion
from medtune.evaluation.protocols.response_likelihood import ResponseLikelihood
from medtune.evaluation.protocols.yes_no import YesNo
from medtune.evaluation.swapped import contrast_images, swap_images

_MAKERS: dict[str, Callable[[int], EvaluationProtocol]] = {
    "multiple_choice": lambda seed: MultipleChoice(),
    "letter_likelihood": lambda seed: LetterLikelihood(),
    "open": lambda seed: OpenQuestion(),
    "yes_no": YesNo,
    "description": lambda seed: Description(),
}
PROTOCOLS = tuple(_MAKERS)
"""Names of the protocols for questions about an attribute, which are asked unless a config says otherwise."""
_MAKERS["classification"] = lambda seed: Classification()
_MAKERS[ResponseLikelihood.name] = lambda seed: ResponseLikelihood()


def build_protocol(name: str, seed: int = 0) -> EvaluationProtocol:
    """Return the protocol of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in _MAKERS:
        raise ConfigError(f"unknown protocol {name!r}; choose from {', '.join(_MAKERS)}.")
    return _MAKERS[name](seed)


def plan_queries(
    samples: Sequence[Sample], protocols: Sequence[str] = PROTOCOLS, *, swapped: Sequence[str] = (), seed: int = 0
) -> list[Query]:
    """Return every query of a question file once, in a fixed order: per protocol the true images, then the swapped.

    Args:
        samples: The questions.
        protocols: Names of the protocols to ask.
        swapped: Names of the protocols to ask on swapped images too.
        seed: Seed of the yes/no coins and of the swap.

    Raises:
        ConfigError: An unknown protocol, one in ``swapped`` that is not in ``protocols``, or ``response_likelihood``
            without its other image.
        DataError: Two different queries have one id, which two questions of one id make.
    """
    stray = [name for name in swapped if name not in protocols]
    if stray:
        raise ConfigError(f"protocol {stray[0]!r} is listed under 'swapped' but not under 'protocols'; add it there.")
    if ResponseLikelihood.name in protocols and ResponseLikelihood.name not in swapped:
        raise ConfigError(f"protocol {ResponseLikelihood.name!r} compares two images; list it under 'swapped' as well.")
    dealt = swap_images(samples, seed) if set(swapped) - {ResponseLikelihood.name} else []
    queries: dict[str, Query] = {}
    for name in protocols:
        protocol = build_protocol(name, seed)
        others = contrast_images(samples, seed) if name == ResponseLikelihood.name else dealt
        for sample in [*samples, *(others if name in swapped else [])]:
            for query in protocol.requests(sample):
                if queries.setdefault(query.id, query) != query:
                    raise DataError(f"two questions give the query {query.id!r}; make the ids of the questions unique.")
    return list(queries.values())
