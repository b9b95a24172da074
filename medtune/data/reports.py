"""Reports as text: written from attributes, and shuffled during training."""

import random
from collections.abc import Iterable, Mapping, Sequence

from medtune.data.sentences import sentence_spans
from medtune.errors import ConfigError

_MISSING = frozenset(
    "nan -nan null none na n/a <na> nat 1.#ind -1.#ind 1.#qnan -1.#qnan "  # pandas
    "#n/a #na #value! #ref! #name? #div/0! #null!".split()  # spreadsheets
)


def is_blank(text: str) -> bool:
    """Return whether a text has no content: white space, or only the ``___`` of a de-identified text."""
    return not text.replace("_", "").strip()


def is_missing_report(text: str) -> bool:
    """Return whether a report stands for "no report".

    These are texts without a letter or digit, and what pandas and spreadsheets write for an absent or wrong cell
    (``nan``, ``NULL``, ``N/A``, ``#REF!``).
    """
    word = text.strip().rstrip(".").casefold()
    return word in _MISSING or not any(character.isalnum() for character in text)


def shuffle_response(text: str, separator: str, rng: random.Random) -> str:
    r"""Reorder the segments of a report at random.

    Response shuffling of InstFree (Kang et al. 2026), Eq. 4: split at the separator, strip, shuffle, join again with
    the separator and one space (no space is added to a separator that ends in white space). Empty segments are removed.
    A separator at the end of the text stays at the end.

    Args:
        text: the report.
        separator: text between its segments: ``","``, ``"."``, ``"\n"``.
        rng: the sample's own generator.

    Raises:
        ConfigError: if the separator is empty.
    """
    if not separator:
        raise ConfigError("The separator of response shuffling is empty; give the text between segments, such as ','.")
    segments = [segment.strip() for segment in text.split(separator)]
    segments = [segment for segment in segments if segment]
    rng.shuffle(segments)
    joined = (separator if separator[-1].isspace() else f"{separator} ").join(segments)
    closed = not separator.isspace() and text.rstrip().endswith(separator)
    return joined + separator if closed else joined


def shuffle_sentences(text: str, rng: random.Random) -> str:
    """Put the sentences of a report into a random order.

    Equation 4 of InstFree with sentences in place of separators. The white space between two sentences stays in its
    place, so that no character is lost or added.

    Args:
        text: the report.
        rng: the sample's own generator.
    """
    spans = sentence_spans(text)
    if len(spans) < 2:
        return text
    gaps = [text[end:start] for (_, end), (start, _) in zip(spans, spans[1:], strict=False)]
    sentences = [text[start:end] for start, end in spans]
    rng.shuffle(sentences)
    inner = "".join(sentence + gap for sentence, gap in zip(sentences, [*gaps, ""], strict=True))
    return text[: spans[0][0]] + inner + text[spans[-1][1] :]


def shuffle_sections(sections: Sequence[str], rng: random.Random) -> str:
    """Put the sections of a report, such as findings and impression, into a random order.

    InstFree (section 5.2) shuffles the reports of MIMIC-CXR by section and uses no separator there: the text of a
    section does not change, and sections are joined by one space. Empty sections are removed.

    Args:
        sections: the texts, from ``meta["sections"]`` of a sample.
        rng: the sample's own generator.
    """
    present = [section.strip() for section in sections if section.strip()]
    rng.shuffle(present)
    return " ".join(present)


def attribute_report(attributes: Mapping[str, str], value_only: Iterable[str] = ()) -> str:
    """Write annotated attributes as a report of comma-separated terms (InstFree, section 4.2).

    ``nil`` (not applicable) and ``no`` are left out. ``yes`` becomes the attribute's name. An attribute in
    ``value_only`` becomes its value. Every other attribute becomes "value name". Underscores in names become spaces.

    Args:
        attributes: name to value, in the order of the report.
        value_only: attributes that are written without their name, such as ``label``.

    Returns:
        The report; empty if no attribute is present.
    """
    bare = set(value_only)
    terms = []
    for key, value in attributes.items():
        name = key.replace("_", " ")
        if value in ("nil", "no"):
            continue
        terms.append(name if value == "yes" else value if key in bare else f"{value} {name}")
    return ", ".join(terms)
