"""The protocols by name, and the queries of a question file: predict asks them, evaluate expects them."""

from collections.abc import Callable, Iterable, Sequence

from medtune.config import import_path
from medtune.data.labels import classification_target, is_classification
from medtune.data.sample import Sample
from medtune.errors import ConfigError, DataError
from medtune.evaluation.protocols.base import EvaluationProtocol, Query
from medtune.evaluation.protocols.chat import Chat
from medtune.evaluation.protocols.classification import Classification
from medtune.evaluation.protocols.description import Description
from medtune.evaluation.protocols.flare import Flare
from medtune.evaluation.protocols.free_form import FreeForm
from medtune.evaluation.protocols.multiple_choice import LetterLikelihood, MultipleChoice
from medtune.evaluation.protocols.open_question import OpenQuestion
from medtune.evaluation.protocols.prompt import Prompt
from medtune.evaluation.protocols.report_generation import ReportGeneration
from medtune.evaluation.protocols.response_likelihood import ResponseLikelihood
from medtune.evaluation.protocols.vqa import Vqa
from medtune.evaluation.protocols.yes_no import YesNo
from medtune.evaluation.robustness import chosen_probes, probed

REGISTRY: dict[str, type[EvaluationProtocol]] = {
    protocol.name: protocol
    for protocol in (
        MultipleChoice,
        LetterLikelihood,
        OpenQuestion,
        YesNo,
        Description,
        Classification,
        ResponseLikelihood,
        Vqa,
        Chat,
        ReportGeneration,
        Flare,
        Prompt,
        FreeForm,
    )
}
"""The packaged protocols by name; another package may add an entry."""
PROTOCOLS = tuple(name for name, protocol in REGISTRY.items() if protocol.default)
"""Names of the protocols for questions about an attribute; they are asked by default."""


def build_protocol(name: str, seed: int = 0) -> EvaluationProtocol:
    """Return the protocol of that name, or of that dotted path.

    Args:
        name: A name of :data:`REGISTRY`, or the path of a subclass of ``EvaluationProtocol``.
        seed: Seed of predict and evaluate.

    Raises:
        ConfigError: There is no such protocol, or its name is that of a packaged protocol.
    """
    if name in REGISTRY:
        return REGISTRY[name](seed)
    if "." not in name:
        raise ConfigError(
            f"unknown protocol {name!r}; choose from {', '.join(REGISTRY)}, or give the dotted path of a class."
        )
    protocol_class = import_path(name, "protocols")
    if not (isinstance(protocol_class, type) and issubclass(protocol_class, EvaluationProtocol)):
        raise ConfigError(f"protocols: {name} is no subclass of medtune.evaluation.protocols.base.EvaluationProtocol.")
    if REGISTRY.get(protocol_class.name, protocol_class) is not protocol_class:
        raise ConfigError(
            f"protocols: {name} is named {protocol_class.name!r} as a packaged one; give it another name."
        )
    return protocol_class(seed)


def build_protocols(names: Iterable[str], seed: int = 0) -> dict[str, EvaluationProtocol]:
    """Return the protocols by their names, in the requested order.

    Raises:
        ConfigError: As :func:`build_protocol`, or two protocols have the same name.
    """
    by_name: dict[str, EvaluationProtocol] = {}
    for name in dict.fromkeys(names):
        protocol = build_protocol(name, seed)
        if type(by_name.setdefault(protocol.name, protocol)) is not type(protocol):
            raise ConfigError(f"protocols: two of them are named {protocol.name!r}; leave one out.")
    return by_name


def majority_of_use(names: Iterable[str]) -> bool:
    """Return whether any of the protocols uses the training split's most frequent values."""
    return any(protocol.majority != "none" for protocol in build_protocols(names).values())


def nothing_to_score(names: Iterable[str]) -> bool:
    """Return whether a report would show nothing of the protocols: no score, and no answers side by side."""
    asked = [(one.display, one.retention) for one in build_protocols(names).values()]
    return not any(show.headline or show.densities or show.side_by_side or form for show, form in asked)


def plan_queries(
    samples: Sequence[Sample],
    protocols: Sequence[str] = PROTOCOLS,
    *,
    swapped: Sequence[str] = (),
    seed: int = 0,
    robustness: bool | Sequence[str] = (),
) -> list[Query]:
    """Return every query of a question file once, in a fixed order: per protocol true images, swapped ones, probes.

    Args:
        samples: The questions.
        protocols: Names or dotted paths of the protocols to ask.
        swapped: Those of the protocols that are also asked on swapped images.
        seed: Seed of the yes/no choices and of the swap.
        robustness: Probes of the robustness card that are asked too; True takes all.

    Raises:
        ConfigError: A protocol or probe is unknown, a protocol in ``swapped`` is not in ``protocols``, or a protocol
            that compares two images is not in ``swapped``.
        DataError: Two different queries have the same id, because two questions have the same id.
    """
    asked, exchanged = build_protocols(protocols, seed), build_protocols(swapped, seed)
    stray = [name for name in exchanged if name not in asked]
    if stray:
        raise ConfigError(f"protocol {stray[0]!r} is listed under 'swapped' but not under 'protocols'; add it there.")
    for name, protocol in asked.items():
        if protocol.swap_required and name not in exchanged:
            raise ConfigError(f"protocol {name!r} compares two images; list it under 'swapped' as well.")
    probes = chosen_probes(robustness)
    others: dict[Callable[[Sequence[Sample], int], list[Sample]], list[Sample]] = {}
    queries: dict[str, Query] = {}
    for name, protocol in asked.items():
        shown = list(samples)
        if name in exchanged or ("swapped" in probes and "swapped" in protocol.probes):
            choose = type(protocol).other_images
            if choose not in others:
                others[choose] = choose(samples, seed)
            shown += others[choose]
        kinds = [probe for probe in probes if probe != "swapped" and probe in protocol.probes]
        shown += [probed(sample, probe, seed) for probe in kinds for sample in samples if _has_options(sample, probe)]
        for sample in shown:
            for query in protocol.plan(sample):
                if queries.setdefault(query.id, query) != query:
                    raise DataError(f"two questions give the query {query.id!r}; make the ids of the questions unique.")
    return list(queries.values())


def _has_options(sample: Sample, probe: str) -> bool:
    """Return whether a probe can change a question: a multi-label one has no options to reorder."""
    return probe != "options" or not is_classification(sample) or classification_target(sample).task != "multi_label"
