"""VQA-RAD, SLAKE and PathVQA: rows written as their owners write them, and the real files."""

import json
import os
import pickle

import pytest

from medtune.data.sample import Message
from medtune.datasets.vqa import prepare_path_vqa, prepare_slake, prepare_vqa_rad
from medtune.errors import ConfigError, DataError
from medtune.evaluation.protocols.registry import plan_queries
from medtune.recipes.prepare import main
from tests.data.tools import write_pictures

RAD = {
    "qid": 7,
    "image_name": "synpic1.jpg",
    "image_organ": "HEAD",
    "answer": "Yes",
    "answer_type": "CLOSED ",
    "question_type": "PRSE, ABN",
    "question": "Is there a mass? ",
    "phrase_type": "freeform",
}
SLAKE = {
    "img_id": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What modality is used?",
    "answer": "CT",
    "q_lang": "en",
    "location": "Lung",
    "modality": "CT",
    "answer_type": "OPEN",
    "base_type": "vqa",
    "triple": ["vhead", "_", "_"],
    "qid": 3,
    "content_type": "Modality",
}
PATH = {
    "answer_type": "other",
    "img_id": "train_0422",
    "label": {"in the canals": 1},
    "question_id": 100422000,
    "question_type": "where",
    "sent": "Where are liver cells located?",
}


def write_json(path, *rows):
    path.write_text(json.dumps(list(rows), ensure_ascii=False), encoding="utf-8")
    return str(path)


def write_pickle(path, rows):
    path.write_bytes(pickle.dumps(rows))
    return str(path)


# -- VQA-RAD ----------------------------------------------------------------------------------------------------------


def test_a_question_of_vqa_rad(tmp_path):
    prepared = prepare_vqa_rad(train=write_json(tmp_path / "trainset.json", RAD), closed_hint="Answer yes or no.")
    (sample,) = prepared.splits["train"]
    assert (sample.id, sample.images) == ("vqa_rad/train/7", ("synpic1.jpg",))
    assert sample.messages == (Message("user", "Is there a mass? Answer yes or no."), Message("assistant", "Yes"))
    assert sample.meta == {
        "attribute": "ABN, PRES",
        "answer": "Yes",
        "answer_type": "closed",
        "organ": "HEAD",
        "phrase_type": "freeform",
    }
    assert prepared.summary["corrected_question_types"] == {"PRSE": 1}
    (query,) = plan_queries([sample], ["vqa"])
    assert (query.prompt, query.references) == ("Is there a mass? Answer yes or no.", ("Yes",))


def test_numbers_are_answers_and_the_hint_stands_with_yes_and_no_alone(tmp_path):
    rows = [RAD | {"qid": 1, "answer": 3}, RAD | {"qid": 2, "answer": 4.5}, RAD | {"qid": 3, "answer": "left"}]
    prepared = prepare_vqa_rad(train=write_json(tmp_path / "a.json", *rows), closed_hint="Answer yes or no.")
    assert [sample.meta["answer"] for sample in prepared.splits["train"]] == ["3", "4.5", "left"]
    assert all(sample.messages[0].content == "Is there a mass?" for sample in prepared.splits["train"])


def test_the_owners_single_file_is_split_by_its_phrase_type(tmp_path):
    rows = [RAD, RAD | {"qid": 8, "phrase_type": "test_freeform"}, RAD | {"qid": 9, "phrase_type": "test_para"}]
    prepared = prepare_vqa_rad(public=write_json(tmp_path / "VQA_RAD Dataset Public.json", *rows))
    assert prepared.counts() == {"train": 1, "test": 2}


def test_overlaps_of_splits_are_named_with_their_numbers(tmp_path):
    train = write_json(tmp_path / "a.json", RAD, RAD | {"qid": 8, "image_name": "synpic2.jpg"})
    test = write_json(
        tmp_path / "b.json",
        RAD | {"question": "is there a MASS?"},
        RAD | {"qid": 8, "question": "Where?"},
        RAD | {"qid": 9, "image_name": "synpic3.jpg"},
    )
    prepared = prepare_vqa_rad(train=train, test=test)
    assert prepared.summary["known_overlaps"] == {
        "vqa_rad/train+test": {
            "splits": ["train", "test"],
            "images": 1,
            "questions": {"train": 1, "test": 2},
            "same_question": 1,
        }
    }
    assert (
        "share 1 images (2 questions of test); the manifest names this overlap vqa_rad/train+test" in prepared.notes[0]
    )


def test_the_real_vqa_rad(medtune_data):
    folder = medtune_data / "vqa_rad"
    prepared = prepare_vqa_rad(str(folder / "trainset.json"), str(folder / "testset.json"))
    assert prepared.counts() == {"train": 3064, "test": 451}
    assert prepared.summary["questions"] == {
        "train": {"closed": 1823, "open": 1241},
        "test": {"closed": 272, "open": 179},
    }
    overlap = prepared.summary["known_overlaps"]["vqa_rad/train+test"]
    assert (overlap["images"], overlap["questions"]) == (203, {"train": 1912, "test": 451})
    assert len(plan_queries(prepared.splits["test"], ["vqa"], swapped=["vqa"])) == 902


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": " "}, "a.json, item 2: the field 'answer' is missing or empty"),
        ({"question": None}, "item 2: the field 'question' is missing"),
        ({"answer_type": "maybe"}, "item 2: 'answer_type' must be OPEN or CLOSED"),
        ({"qid": 7}, "item 2: the id 7 is also that of a.json, item 1"),
    ],
)
def test_a_wrong_question_is_named_by_file_and_place(change, said, tmp_path):
    path = write_json(tmp_path / "a.json", RAD, RAD | {"qid": 8} | change)
    with pytest.raises(DataError, match=said) as error:
        prepare_vqa_rad(train=path)
    assert "mass" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{}", "[1]", "nothing"])
def test_a_file_that_holds_no_questions_is_refused(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match="a.json"):
        prepare_vqa_rad(train=str(tmp_path / "a.json"))


def test_one_form_of_vqa_rad_must_be_given(tmp_path):
    for given in ({}, {"train": "a", "public": "b"}):
        with pytest.raises(ConfigError, match="give train and test .* or public"):
            prepare_vqa_rad(**given)
    with pytest.raises(DataError, match="absent.json does not exist"):
        prepare_vqa_rad(train=str(tmp_path / "absent.json"))


# -- SLAKE ------------------------------------------------------------------------------------------------------------

ZH = SLAKE | {"qid": 4, "q_lang": "zh", "question": "图片使用的什么模态？", "answer": "CT"}


def test_both_languages_of_slake_have_types_of_their_own(tmp_path):
    prepared = prepare_slake(validate=write_json(tmp_path / "validate.json", SLAKE, ZH))
    english, chinese = prepared.splits["val"]
    assert english.meta["attribute"] == "Modality" and chinese.meta["attribute"] == "Modality (zh)"
    assert (english.meta["language"], chinese.meta["language"]) == ("en", "zh")
    assert english.id == "slake/val/3" and english.images == ("xmlab1/source.jpg",)


def test_a_language_of_slake_can_be_left_out(tmp_path):
    prepared = prepare_slake(test=write_json(tmp_path / "test.json", SLAKE, ZH), languages=["en"])
    assert prepared.counts() == {"test": 1} and prepared.summary["languages"] == {"en": 1, "zh": 1}
    with pytest.raises(ConfigError, match=r"some of en, zh; got \['de'\]"):
        prepare_slake(test=str(tmp_path / "test.json"), languages=["de"])
    with pytest.raises(DataError, match="no question in zh"):
        prepare_slake(test=write_json(tmp_path / "b.json", SLAKE), languages=["zh"])


def test_the_real_slake(medtune_data):
    prepared = prepare_slake(test=str(medtune_data / "slake" / "test.json"))
    assert prepared.counts() == {"test": 2094} and prepared.summary["languages"] == {"en": 1061, "zh": 1033}
    assert prepared.summary["known_overlaps"] == {}
    assert len(plan_queries(prepared.splits["test"], ["vqa"])) == 2094


# -- PathVQA ----------------------------------------------------------------------------------------------------------


def test_both_forms_of_path_vqa_give_the_same_questions(tmp_path):
    closed = {"answer_type": "yes/no", "img_id": "train_0001", "label": {"yes": 1}, "sent": "Is it benign?"}
    first = prepare_path_vqa(train=write_pickle(tmp_path / "train_vqa.pkl", [PATH, closed]))
    plain = [
        {"image": "train_0422", "question": PATH["sent"], "answer": "in the canals"},
        {"image": "train_0001", "question": "Is it benign?", "answer": "yes"},
    ]
    second = prepare_path_vqa(train=write_pickle(tmp_path / "train_qa.pkl", plain))
    assert first.splits == second.splits
    where, benign = first.splits["train"]
    assert where.images == ("train/train_0422.jpg",) and where.id == "path_vqa/train/1"
    assert where.meta == {"attribute": "where", "answer": "in the canals", "answer_type": "open"}
    assert benign.meta == {"attribute": "yes/no", "answer": "yes", "answer_type": "closed"}


def test_the_likeliest_of_several_answers_is_the_right_one(tmp_path):
    rows = [PATH | {"label": {"a": 0.3, "liver": 1.0, "": 2}}, PATH | {"answer_type": "number", "label": {"2": 1}}]
    prepared = prepare_path_vqa(test=write_pickle(tmp_path / "test_vqa.pkl", rows))
    assert [sample.meta["answer"] for sample in prepared.splits["test"]] == ["liver", "2"]


def test_a_malicious_path_vqa_does_not_run(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = write_pickle(tmp_path / "train_vqa.pkl", [PATH, Runs()])
    with pytest.raises(DataError, match="train_vqa.pkl holds objects of a class, or calls of a function"):
        prepare_path_vqa(train=path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": {}}, "item 1: 'label' must hold an answer"),
        ({"label": {"": 1}}, "item 1: 'label' must hold an answer"),
        ({"label": ["a"]}, "item 1: 'label' must hold an answer"),
        ({"answer_type": "closed"}, "'answer_type' must be one of yes/no, other, number"),
        ({"img_id": "../secret_1"}, "must be named like train_0422"),
        ({"img_id": "0422"}, "must be named like train_0422"),
        ({"sent": ""}, "the field 'sent' is missing or empty"),
    ],
)
def test_a_wrong_question_of_path_vqa_is_named(change, said, tmp_path):
    with pytest.raises(DataError, match=said):
        prepare_path_vqa(train=write_pickle(tmp_path / "train_vqa.pkl", [PATH | change]))


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_the_recipe_writes_questions_and_names_the_overlap_in_the_manifest(tmp_path, capsys):
    write_pictures(tmp_path / "images", 2)
    train = write_json(tmp_path / "a.json", RAD | {"image_name": "1.png"})
    test = write_json(tmp_path / "b.json", RAD | {"image_name": "1.png", "question": "Where is it?"})
    options = [f"data.train={train}", f"data.test={test}", f"image_root={tmp_path / 'images'}"]
    assert main(["--config", "prepare/vqa_rad", *options, f"output_dir={tmp_path / 'out'}"]) in (0, None)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["known_overlaps"]["vqa_rad/train+test"]["images"] == 1
    assert manifest["counts"] == {"train": 1, "test": 1}
    assert "names this overlap vqa_rad/train+test" in capsys.readouterr().out
    assert (tmp_path / "out/test.jsonl").read_text().count("Where is it?") == 1
