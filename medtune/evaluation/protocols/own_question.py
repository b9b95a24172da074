"""The query of protocols that ask a sample's user turn as it is."""

from collections.abc import Mapping, Sequence
from typing import Any

from medtune.data.sample import Message, Sample
from medtune.errors import DataError
from medtune.evaluation.protocols.base import Query, query_frame
from medtune.evaluation.protocols.conversation import user_turn

NEEDS = "a question needs an image and a user turn."


def own_question(
    name: str,
    sample: Sample,
    references: Sequence[str],
    meta: Mapping[str, Any],
    *,
    about: Mapping[str, Any] | None = None,
    needs: str = NEEDS,
) -> Query:
    """Build the query that shows a sample's images and its last user turn.

    Args:
        name: Name of the protocol.
        sample: The sample.
        references: Right answers.
        meta: ``attribute``, ``answer`` and what else the protocol needs to judge.
        about: The asked sample's ``meta``, which whoever answers may read.
        needs: What is said of a sample without image or user turn.

    Raises:
        DataError: The sample has no image, or no user turn.
    """
    prompt = user_turn(sample)
    if not prompt or not sample.images:
        raise DataError(f"question {sample.id!r}: {needs}")
    query_id, shown = query_frame(name, sample)
    asked = Sample(id=query_id, images=sample.images, messages=(Message("user", prompt),), meta=dict(about or {}))
    return Query(query_id, name, asked, (), tuple(references), {**meta, **shown})
