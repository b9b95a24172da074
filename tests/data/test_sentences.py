import random

import pytest

from medtune.data.sentences import NEVER_LAST, RARELY_LAST, sentence_spans

GOLD = [
    ["The ET tube is 3.5 cm above the carina.", "No pneumothorax."],
    ["Compared to Dr. Smith's note, there is no change.", "Heart size is normal."],
    ["Nodule measures approx. 4 mm. in the left upper lobe.", "Follow up in 6 months."],
    ["Nodule of 4 mm.", "No other lesion."],
    ["There are risk factors, e.g. smoking, for malignancy.", "Recommend CT."],
    ["It is oval, i.e. benign in shape.", "Follow up."],
    ["Comparison with study No. 3 shows no interval change.", "Lungs are clear."],
    ["Is there an effusion?", "No.", "Lungs are clear!"],
    ["FINDINGS: 1. No acute process.", "2. Stable cardiomegaly.", "3. Nodule of 4 mm.", "4. Edema."],
    ["a. No mass.", "b. Old scars."],
    ["Mild atelectasis vs. pneumonia at the right base.", "No effusion."],
    ["Pt. was seen at 5 p.m. by Dr. Lee.", "The lungs are clear."],
    ["Findings were discussed with Dr. ___ at 3:45 p.m. on ___.", "No further change."],
    ["Seen by Dr. J. Smith.", "Rt. lung is clear.", "Lt. base opacity."],
    ["approx. 3.2 cm mass in the L. breast (BI-RADS 4).", "Biopsy advised."],
    ["Staph. aureus grew.", "E. coli did not."],
    ["The score is 3.", "BI-RADS: 4.", "Fig. 2 shows the lesion."],
    ["(See Fig. 2. It is old.)", "No change since 3.4.2019.", 'He said "stable."', "End"],
    ["no acute process.", "heart is normal.", "lungs are clear."],
    ["WBC 11.2 x 10^9/L, N:C ratio 0.8.", "Nucleus is lobed."],
]


def pieces(text):
    return [text[start:end] for start, end in sentence_spans(text)]


@pytest.mark.parametrize("sentences", GOLD, ids=lambda sentences: sentences[0][:20])
@pytest.mark.parametrize("between", [" ", "\n", "  \n\n"])
def test_clinical_sentences(sentences, between):
    assert pieces(between.join(sentences)) == sentences


def test_lines():
    assert pieces("Impression:\n1. No edema.\n2. Stable.") == ["Impression:\n1. No edema.", "2. Stable."]
    assert pieces("- clear lungs\n- no effusion\n\nNo stop here") == ["- clear lungs", "- no effusion", "No stop here"]
    assert pieces("A wrapped line\ngoes on. The end") == ["A wrapped line\ngoes on.", "The end"]


def test_a_missing_space_does_not_join_sentences_and_an_open_bracket_does_not_swallow_the_rest():
    assert pieces("Heart size normal.No effusion.") == ["Heart size normal.", "No effusion."]
    assert pieces("Nodule (4 mm. No change.") == ["Nodule (4 mm.", "No change."]


def test_the_lists_do_not_overlap():
    assert not NEVER_LAST & RARELY_LAST


def test_whatever_the_text_nothing_but_white_space_lies_outside_the_sentences():
    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(
            rng.choices(["a", "B", "no", "Dr", "mm", "3", ".", ".", "?", ":", "(", ")", "-", " ", "\n"], k=25)
        )
        spans = sentence_spans(text)
        edges = [0, *(edge for span in spans for edge in span), len(text)]
        assert edges == sorted(edges)
        assert not "".join(text[end:start] for end, start in zip(edges[::2], edges[1::2], strict=True)).strip()
        assert all(text[start:end].strip() == text[start:end] != "" for start, end in spans)


def test_a_long_text_takes_no_time():
    assert len(sentence_spans("The heart is normal (4.5 cm). " * 20000)) == 20000
