import random
import re
from collections import Counter

import pytest

from medtune.data.reports import attribute_report, shuffle_response, shuffle_sections, shuffle_sentences
from medtune.data.sentences import sentence_spans
from medtune.errors import ConfigError


def test_segments_are_stripped_shuffled_and_joined_by_comma_and_space():
    text = "big cell size,round cell shape ,  Neutrophil"
    seen = {shuffle_response(text, ",", random.Random(seed)) for seed in range(60)}
    assert len(seen) == 6, "all 3! orders must come up"
    for shuffled in seen:
        assert sorted(shuffled.split(", ")) == ["Neutrophil", "big cell size", "round cell shape"]


def test_orders_are_equally_likely():
    counts = Counter(shuffle_response("a,b,c", ",", random.Random(seed)) for seed in range(6000))
    assert len(counts) == 6 and all(850 < count < 1150 for count in counts.values())


@pytest.mark.parametrize(
    ("text", "separator", "pieces"),
    [
        ("Lungs clear. No effusion.", ".", {"Lungs clear. No effusion.", "No effusion. Lungs clear."}),
        ("a b", " ", {"a b", "b a"}),
        ("one\ntwo\n", "\n", {"one\ntwo", "two\none"}),
        ("one; two", "; ", {"one; two", "two; one"}),
        ("a,,b", ",", {"a, b", "b, a"}),
        ("alone", ",", {"alone"}),
    ],
)
def test_any_separator(text, separator, pieces):
    assert {shuffle_response(text, separator, random.Random(seed)) for seed in range(30)} == pieces


def test_an_empty_separator_is_refused():
    with pytest.raises(ConfigError, match="separator"):
        shuffle_response("a", "", random.Random(0))


def test_attributes_become_terms():
    attributes = {"cell_size": "big", "vacuole": "no", "granularity": "yes", "granule_type": "nil", "label": "Monocyte"}
    assert attribute_report(attributes, ["label"]) == "big cell size, granularity, Monocyte"
    assert attribute_report({"vacuole": "no"}) == ""


def test_sections_are_put_in_any_order_and_stay_whole():
    sections = ["The lungs are clear. No effusion, no edema.", "No acute process."]
    seen = Counter(shuffle_sections(sections, random.Random(seed)) for seed in range(2000))
    assert set(seen) == {" ".join(sections), " ".join(sections[::-1])} and min(seen.values()) > 900
    assert shuffle_sections([" one ", "", "  "], random.Random(0)) == "one"
    assert shuffle_sections([], random.Random(0)) == ""


SENTENCES = [
    "The heart is normal.",
    "Compared with Dr. Lee's note, there is no change.",
    "A nodule of approx. 3.5 mm. is seen in the L. upper lobe.",
    "Is there an effusion?",
    "Findings, e.g. edema, were discussed (see No. 3. It is old).",
]


def test_sentences_are_put_in_every_order_and_not_a_character_is_lost():
    text = "  " + "\n".join(SENTENCES[:2]) + "  " + SENTENCES[2] + "\n"
    seen = {shuffle_sentences(text, random.Random(seed)) for seed in range(60)}
    assert len(seen) == 6
    for shuffled in seen:
        assert Counter(shuffled) == Counter(text) and shuffled[:2] == "  " and shuffled[-1] == "\n"


def test_what_stands_between_sentences_stays_in_its_place():
    text = "Heart.\n\nLungs. Bones.\t\tAorta.   Airways."
    shuffled = [shuffle_sentences(text, random.Random(seed)) for seed in range(40)]
    assert len(set(shuffled)) > 20
    assert {tuple(re.findall(r"\s+", one)) for one in shuffled} == {("\n\n", " ", "\t\t", "   ")}


def test_any_report_keeps_its_sentences():
    for seed in range(300):
        rng = random.Random(seed)
        sentences = rng.choices(SENTENCES, k=rng.randrange(1, 9))
        text = rng.choice([" ", "\n", "\n\n"]).join(sentences)
        shuffled = shuffle_sentences(text, rng)
        assert sorted(shuffled[start:end] for start, end in sentence_spans(shuffled)) == sorted(sentences)


def test_a_report_of_one_sentence_or_none_stays_as_it_is():
    for text in ("", " \n", "No acute process", " Stable. "):
        assert shuffle_sentences(text, random.Random(0)) == text
