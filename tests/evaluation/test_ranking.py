"""Response ranking: its numbers against formulas by hand, the draw of the other image, the way from rows to results."""

import math

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from medtune.config import PACKAGE
from medtune.data.labels import Target
from medtune.errors import ConfigError, DataError
from medtune.evaluation.evaluation import evaluate, metric_rows, verdict_rows
from medtune.evaluation.prediction import Prediction
from medtune.evaluation.protocols.registry import plan_queries
from medtune.evaluation.protocols.response_likelihood import (
    BINS,
    DEFINITIONS,
    Pairs,
    ResponseLikelihood,
    density,
    ranking_points,
    score_ranking,
)
from medtune.evaluation.swapped import contrast_images
from medtune.models.mini import mini_internvl_transform
from tests.evaluation.classes import BREAST, MAJORITY, answered, class_question, class_questions
from tests.evaluation.ranked import BOTH, NAME, answers, likely, many

ASKED = {"protocols": [NAME], "swapped": [NAME]}


def scored(gap, resamples=60, **changes):
    done = evaluate(many(), answers(gap, **ASKED), {}, name="model", resamples=resamples, **ASKED, **changes)
    return done, done.results["protocols"][NAME]


def test_the_numbers_are_those_of_the_formulas():
    rng = np.random.default_rng(0)
    own, other = -rng.exponential(1.0, 50), -rng.exponential(2.0, 50)
    other[:5] = own[:5]  # ties
    found = ranking_points(Pairs(own, other, tuple((str(n),) for n in range(50))))
    assert found.keys() == DEFINITIONS.keys()
    assert found["auc"] == pytest.approx(mannwhitneyu(own, other).statistic / 2500)
    assert found["own_above_other"] == sum(a > b for a, b in zip(own, other, strict=True)) / 50 < 0.9
    assert found["margin"] == pytest.approx(sum(own) / 50 - sum(other) / 50)
    assert found["probability_own"] == pytest.approx(sum(math.exp(a) for a in own) / 50)
    places = [[min(BINS - 1, int(BINS * math.exp(value))) for value in side] for side in (own, other)]
    overlap = sum(min(places[0].count(at), places[1].count(at)) for at in range(BINS)) / 50
    assert found["overlap"] == pytest.approx(overlap) and 0 < overlap < 1


def test_a_density_holds_every_image_certain_ones_too():
    shares = density(np.asarray([0.0, 0.0, -1e-9, -800.0]))
    assert shares.shape == (BINS,) and shares[-1] == 0.75 and shares[0] == 0.25


def test_a_model_that_looks_ranks_and_one_that_does_not_does_not():
    _, blind = scored(0.0)
    _, sees = scored(3.0)
    low, high = blind["overall"]["auc_macro"]["interval"]
    assert low < 0.5 < high and sees["overall"]["auc_macro"]["interval"][0] > 0.85
    assert sees["overall"]["overlap_macro"]["value"] < blind["overall"]["overlap_macro"]["value"]
    assert sees["overall"]["overlap_macro"]["interval"] is None
    low, high = sees["overall"]["margin_macro"]["interval"]
    assert low < sees["overall"]["margin_macro"]["value"] < high and low > 2
    for sets in (blind["attributes"], sees["attributes"]):
        assert sets["breast"]["auc"]["n"] == 40 and sets["retina"]["auc"]["n"] == 30
    mean = np.mean([one["auc"]["value"] for one in sees["attributes"].values()])
    assert sees["overall"]["auc_macro"]["value"] == pytest.approx(mean)
    assert all(sum(side) == pytest.approx(1) for one in sees["densities"].values() for side in one.values())


def test_the_mean_is_over_tokens():
    queries = plan_queries(many(), **ASKED)
    rows = [likely(query, -6.0, 6 if query.meta["swapped"] else 2) for query in queries]
    done = evaluate(many(), rows, {}, name="model", resamples=10, **ASKED)
    assert done.results["protocols"][NAME]["overall"]["margin_macro"]["value"] == pytest.approx(-2.0)
    assert done.results["protocols"][NAME]["overall"]["auc_macro"]["value"] == 0.0


def test_every_question_is_asked_on_two_images_of_its_set_with_different_answers():
    queries = plan_queries(many(), **ASKED)
    own = {query.meta["sample_id"]: query for query in queries if not query.meta["swapped"]}
    others = {query.meta["sample_id"]: query for query in queries if query.meta["swapped"]}
    assert own.keys() == others.keys() and len(queries) == 140
    right = {sample.images: sample.meta["label"] for sample in many()}
    for name, query in others.items():
        assert query.prompt == own[name].prompt and query.continuations == own[name].continuations
        assert query.sample.images != own[name].sample.images
        assert query.sample.images[0].split("/")[0] == name.split("/")[0]
        assert right[query.sample.images] == query.meta["shown_answer"] != query.continuations[0]
    shown = {query.sample.images for query in others.values() if query.meta["answer"] == "malignant"}
    assert len(shown) > 2, "each image is drawn by itself"


def test_the_draw_depends_on_the_seed_alone_and_a_set_of_one_answer_has_none():
    def drawn(seed):
        return [sample.meta["swapped_with"] for sample in contrast_images(many(), seed)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert contrast_images(many()) == contrast_images(many(), 0), "as predict and evaluate, whose seed is 0"
    lone = [class_question(Target("breast", "multi_class", BREAST, (0,)), n) for n in range(3)]
    beside = contrast_images([*lone, *many()[40:]], 0)
    assert len(beside) == 30 and {sample.meta["set"] for sample in beside} == {"retina"}
    queries = plan_queries(lone, **ASKED)
    done = evaluate(lone, [likely(query, -1.0) for query in queries], {}, name="m", resamples=5, **ASKED)
    found = done.results["protocols"][NAME]
    assert found["attributes"] == {} and found["overall"]["auc_macro"]["value"] is None


def test_several_findings_are_one_response():
    queries = {query.id: query for query in plan_queries(class_questions(), **ASKED)}
    assert queries[f"chest/test/0/{NAME}"].continuations == ("effusion; mass",)
    assert queries[f"chest/test/1/{NAME}"].continuations == ("no finding",)


def test_it_stands_beside_a_classification_and_in_the_table_of_numbers():
    rows = [
        likely(query, -1.0 - query.meta["swapped"]) if query.task == NAME else answered(query)
        for query in plan_queries(many(), **BOTH)
    ]
    done = evaluate(many(), rows, MAJORITY, name="model", resamples=20, **BOTH)
    assert done.results["protocols"]["classification"]["overall"]["accuracy_macro"]["value"] == 1.0
    found = done.results["protocols"][NAME]["overall"]
    assert found["auc_macro"]["value"] == 1.0 and 0.9 < found["auc_macro"]["interval"][0] < 1.0
    units = {(row["group"], row["metric"]): row["unit"] for row in metric_rows(done.results) if row["protocol"] == NAME}
    assert units["overall", "margin_macro"] == "nats per token" and units["attributes", "auc"] == "fraction"
    assert {row["task"] for row in verdict_rows(done.verdicts)} == {"classification"}


def test_a_missing_likelihood_leaves_its_pair_out():
    rows = answers(1.0, **ASKED)[1:]
    done = evaluate(many(), rows, {}, name="m", resamples=5, on_missing="wrong", **ASKED)
    assert done.results["protocols"][NAME]["attributes"]["breast"]["auc"]["n"] == 39
    assert done.results["counts"]["missing"] == 1


@pytest.mark.parametrize("change", [{"scores": [1.0]}, {"scores": []}, {"scores": [math.nan]}, {"score_tokens": [0]}])
def test_numbers_that_are_no_likelihoods_are_refused(change):
    first, *rest = answers(1.0, **ASKED)
    broken = Prediction(first.id, first.task, first.prompt, "", first.references, {**first.meta, **change})
    with pytest.raises(DataError, match="breast/test/0.*(score_tokens|has tokens)"):
        evaluate(many(), [broken, *rest], {}, name="m", resamples=5, **ASKED)


def test_one_image_makes_no_ranking():
    with pytest.raises(ConfigError, match="compares two images; list it under 'swapped'"):
        plan_queries(many(), [NAME])


def test_no_pairs_no_intervals():
    assert score_ranking([])["attributes"] == {}


def test_the_response_is_scored_as_the_tokens_that_training_sees():
    transform = mini_internvl_transform(PACKAGE / "assets" / "mini_tokenizer", image_size=16)
    for sample in class_questions():
        (query,) = ResponseLikelihood().plan(sample)
        picture = [Image.new("RGB", (16, 16))]
        trained = list(map(int, transform(sample, picture, inference=False)["tokens"]))
        prompt = list(map(int, transform(query.sample, picture, inference=True)["tokens"]))
        whole = [*prompt, *transform.encode(query.continuations[0])]
        assert trained[:-1] == whole and trained[-1] in transform.stop_ids


def test_a_margin_that_never_varies_has_no_interval_and_a_share_has_wilsons():
    rows = [likely(query, -1.0 - 2.0 * query.meta["swapped"]) for query in plan_queries(many(), **ASKED)]
    done = evaluate(many(), rows, {}, name="model", resamples=10, **ASKED)
    found = done.results["protocols"][NAME]["overall"]
    assert found["margin_macro"]["value"] == pytest.approx(2.0 / rows[0].meta["score_tokens"][0])
    assert found["margin_macro"]["interval"] is None, "all margins are equal, which claims no certainty"
    n, z = 70, 1.959963984540054  # all own images above the others: Wilson's lower end is n / (n + z^2)
    assert found["own_above_other_macro"]["interval"] == pytest.approx([n / (n + z * z), 1.0])


def test_every_number_over_sets_has_a_title():
    assert set(ResponseLikelihood.display.titles) == {f"{name}_macro" for name in DEFINITIONS}
