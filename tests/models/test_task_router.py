"""GLiClass as a model of the trainer: its prompt, its scores beside the package's own, its export."""

import ast
import json
import pickle

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from medtune.config import PACKAGE
from medtune.errors import ConfigError, ModelError
from medtune.models.common.interface import BatchShape
from medtune.models.task_router.builders import (
    gliclass_deberta_v3_base,
    gliclass_deberta_v3_small,
    gliclass_encoder,
    load_task_router,
    mini_gliclass,
)
from medtune.models.task_router.transform import QuestionTransform
from medtune.models.weights import load_weights, save_hf
from tests.routing.routed_questions import TASKS
from tests.routing.tiny_router import SIZES, TOKENIZER, tiny_router

LONG = "Return the bounding box [x_min, y_min, x_max, y_max] of the lesion in this ultrasound scan, please."
ASKED = ["How many cells?", LONG, "What is shown? A: a, B: b"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder as the hub has it: a BERT with its WordPiece tokenizer, which asks for padding and truncation."""
    import transformers

    folder = tmp_path_factory.mktemp("bert")
    words = "how many cells what is shown the a b return box multi label classification counting detection : ? _ [ ]"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words.split(), *"cdefghijklmnopqrstuvwxyz", "##s"]
    tokenizer = Tokenizer(WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(5)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_the_prompt_names_the_labels_in_their_order_and_then_the_question(bert):
    transform = QuestionTransform(str(bert), ["multi_label_classification", "counting"])
    names = {number: piece for piece, number in transform.tokenizer.vocabulary().items()}
    names |= {transform.label_id: "<<LABEL>>", transform.text_id: "<<SEP>>"}
    spelled = [names[token] for token in transform.tokens("How many cells?", [1, 0])]
    assert " ".join(spelled) == (
        "[CLS] <<LABEL>> counting <<LABEL>> multi label classification <<SEP>> how many cells ? [SEP]"
    )
    assert transform.vocab_size == transform.text_id + 1 == transform.label_id + 2


@pytest.mark.parametrize("added", ["<<LABEL>>", "<<SEP>>", "[SEP]", "[CLS]", "<image>"])
def test_a_question_that_spells_a_special_token_adds_no_label_and_no_end(bert, added):
    transform = QuestionTransform(str(bert), TASKS)
    plain, spelled = (transform.tokens(text, [0, 1, 2]) for text in ("how many", f"how {added} many"))
    for token in (transform.label_id, transform.text_id, *transform.start, *transform.end):
        assert spelled.count(token) == plain.count(token)


def test_a_long_question_loses_its_end_and_never_its_labels():
    transform = QuestionTransform(TOKENIZER, TASKS, 40)
    whole, cut = (transform.tokens(LONG, [0, 1, 2], cut=cut) for cut in (False, True))
    assert len(whole) > 40 and cut == whole[:40] and cut.count(transform.label_id) == 3


def test_a_copy_of_the_transform_in_a_worker_makes_the_same_tokens():
    transform = QuestionTransform(TOKENIZER, TASKS)
    assert pickle.loads(pickle.dumps(transform)).tokens(LONG, [2, 0, 1]) == transform.tokens(LONG, [2, 0, 1])


@pytest.mark.parametrize("labels", [["one"], ["one", "one"], ["one", ""], []])
def test_labels_that_are_no_labels_are_refused(labels):
    with pytest.raises(ConfigError, match="two or more different names"):
        QuestionTransform(TOKENIZER, labels)


def test_a_limit_without_room_for_a_question_is_refused():
    with pytest.raises(ConfigError, match="no room for a question"):
        QuestionTransform(TOKENIZER, TASKS, 10)


@pytest.mark.parametrize("changes", [{}, {"class_token_pooling": "first"}, {"text_pooling": "first"}])
def test_scores_are_those_of_the_package_for_a_question_alone(changes, tmp_path):
    import gliclass

    model = tiny_router(**changes)
    save_hf(model.state_dict(), model.family, tmp_path)
    theirs = gliclass.GLiClassModel.from_pretrained(tmp_path, local_files_only=True).eval()
    for text in ASKED:
        tokens = torch.tensor([model.transform.tokens(text, [2, 0, 1])])
        found = model.logits(tokens, torch.ones_like(tokens, dtype=torch.bool))
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens), max_num_classes=3).logits
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_the_pipeline_of_the_package_reads_the_export_and_gives_the_same_scores(tmp_path):
    import gliclass
    import transformers

    model = tiny_router(("counting", "box", "class"))
    save_hf(model.state_dict(), model.family, tmp_path)
    theirs = gliclass.GLiClassModel.from_pretrained(tmp_path, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    pipeline = gliclass.ZeroShotClassificationPipeline(
        theirs, tokenizer, classification_type="single-label", device="cpu", progress_bar=False
    )
    ours = model.probabilities(ASKED)
    for row, text in zip(ours, ASKED, strict=True):
        (best,) = pipeline(text, list(model.labels), threshold=0.0)[0]
        assert best["label"] == model.labels[int(row.argmax())]
        assert best["score"] == pytest.approx(row.max().item(), abs=2e-6)


def test_a_question_has_the_scores_in_a_batch_that_it_has_alone():
    model = tiny_router()
    together = model.probabilities(ASKED)
    alone = torch.cat([model.probabilities([text]) for text in ASKED])
    assert (together - alone).abs().max() < 1e-6
    assert (together.sum(1) - 1).abs().max() < 1e-12


def test_columns_keep_their_labels_when_the_prompt_has_another_order():
    model = tiny_router()
    order = [2, 0, 1]
    rows = model.probabilities(ASKED, [order] * 3)
    tokens = model.transform.collate_tokens([model.transform.tokens(text, order) for text in ASKED])
    raw = model.logits(**tokens).double().softmax(1)
    for column, label in enumerate(order):
        torch.testing.assert_close(rows[:, label], raw[:, column])
    assert (rows - model.probabilities(ASKED)).abs().max() > 1e-6, "a random router reads the order"


def test_every_parameter_is_in_one_part_and_every_used_one_learns():
    model = tiny_router().train()
    parts = model.parts()
    names = [name for name, _ in model.named_parameters()]
    assert sorted(parts["encoder"] + parts["head"]) == sorted(names) and parts["encoder"] and parts["head"]
    tokens = model.transform.collate_tokens([model.transform.tokens(text, [0, 1, 2]) for text in ASKED])
    (model.logits(**tokens) * torch.arange(3.0)).sum().backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent


def test_an_exported_router_is_read_back_to_the_bit(tmp_path):
    model = tiny_router()
    save_hf(model.state_dict(), model.family, tmp_path)
    again = load_task_router(tmp_path)
    assert again.labels == model.labels and not any(p.requires_grad for p in again.parameters())
    assert (again.probabilities(ASKED) == model.probabilities(ASKED)).all()
    tokens = QuestionTransform(str(tmp_path), TASKS)
    assert (tokens.label_id, tokens.vocab_size) == (model.transform.label_id, model.transform.vocab_size)


def test_training_may_go_on_with_other_labels_and_not_with_another_architecture(tmp_path):
    model = tiny_router()
    save_hf(model.state_dict(), model.family, tmp_path)
    load_weights(tmp_path, tiny_router(("one", "two", "three", "four")))
    for changes, key in (
        ({"class_token_pooling": "first"}, "class_token_pooling"),
        ({"layers": 2}, "num_hidden_layers"),
    ):
        with pytest.raises(ModelError, match=key):
            load_weights(tmp_path, tiny_router(**changes))


def test_an_encoder_of_a_local_folder_starts_with_its_weights(bert):
    from safetensors.torch import load_file

    model = gliclass_encoder(str(bert), TASKS)
    own, theirs = model.network.model.encoder_model.state_dict(), load_file(bert / "model.safetensors")
    for name, value in theirs.items():
        rows = len(value) if name.endswith("word_embeddings.weight") else None
        torch.testing.assert_close(own[name][:rows], value, atol=0, rtol=0)
    assert len(own["embeddings.word_embeddings.weight"]) == model.transform.vocab_size
    random = gliclass_encoder(str(bert), TASKS, pretrained=False)
    name = "encoder.layer.0.output.dense.weight"
    assert (random.network.model.encoder_model.state_dict()[name] != theirs[name]).any()


def _other_size(config):
    config["hidden_size"] = 8


def _unknown_type(config):
    config["model_type"] = "no_such_encoder"


def _with_remote_code(config):
    config["model_type"] = "no_such_encoder"
    config["auto_map"] = {"AutoConfig": "harm.Config", "AutoModel": "harm.Model"}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (_other_size, ModelError, "does not fit the encoder"),
        (_unknown_type, ConfigError, "no encoder of type 'no_such_encoder'"),
        (_with_remote_code, ConfigError, "no encoder of type 'no_such_encoder'"),
    ],
)
def test_an_encoder_that_cannot_be_built_is_refused(bert, tmp_path, change, error, said):
    config = json.loads((bert / "config.json").read_text())
    change(config)
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    (tmp_path / "harm.py").write_text("raise SystemExit('code of a file was run')")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=said):
        gliclass_encoder(str(tmp_path), TASKS)


def test_more_tokens_than_the_encoder_has_positions_are_refused(bert):
    with pytest.raises(ConfigError, match="512 positions"):
        gliclass_encoder(str(bert), TASKS, max_seq_len=513)


@pytest.mark.parametrize(
    ("builder", "layers", "millions"), [(gliclass_deberta_v3_small, 6, 141.3), (gliclass_deberta_v3_base, 12, 183.8)]
)
def test_real_sizes_on_the_meta_device(builder, layers, millions):
    with torch.device("meta"):
        model = builder("absent/tokenizer", TASKS, encoder="absent/encoder")
        model.meta_forward(BatchShape(2, 40, 0, 0, 0), False)
    encoder = sum(p.numel() for name, p in model.named_parameters() if name in set(model.parts()["encoder"]))
    # the published encoder has 128,100 rows, of which the tokenizer uses 128,001; two are added here
    published = encoder + (128_100 - model.transform.vocab_size) * 768
    assert published / 1e6 == pytest.approx(millions, abs=0.1)
    assert len(model.network.model.encoder_model.encoder.layer) == layers
    assert len(model.missing) == 2 and "no tokenizer at absent" in model.missing[0]


def test_a_missing_tokenizer_is_an_error_when_the_model_is_built_for_a_run():
    with pytest.raises(ModelError, match="no tokenizer at"):
        gliclass_deberta_v3_small("absent/tokenizer", TASKS)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="multiple of heads"):
        mini_gliclass(TOKENIZER, TASKS, embed_dim=10, heads=4)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gliclass", None)
    with pytest.raises(ConfigError, match=r"medtune\[routing\].*tfidf_router"):
        mini_gliclass(TOKENIZER, TASKS, **SIZES)


def test_the_packages_that_take_seconds_to_import_are_imported_late():
    for folder in ("models/task_router", "routing", "datasets/task_questions"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.parse(path.read_text()).body:  # of the module alone
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & {"gliclass", "transformers"}, path.name


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no task router"):
        load_task_router(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "GLiClass", "encoder_config": {}}))
    with pytest.raises(ModelError, match="no 'medtune_router'"):
        load_task_router(tmp_path)
