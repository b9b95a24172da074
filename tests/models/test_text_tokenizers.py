"""Readers of tokenizer.json and tokenizer.model: transformers' ids, text that survives, special tokens kept apart."""

import json
import pickle

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from medtune.errors import ModelError
from medtune.models.common.chat_formats import gemma, huatuo, mistral
from medtune.models.common.chat_template import chatml, llama3, vicuna
from medtune.models.common.tokenizer import (
    FastTokenizer,
    SentencePieceTokenizer,
    placeholder,
    single_token,
    special_ids,
)
from tests.models.conftest import SENTENCES
from tests.models.tiny_tokenizers import CHATML_MARKS, llama2, qwen2

PLACEHOLDER = "\u2460"
TEXTS = [*SENTENCES, "Z\u00fcrich \u00b5m\u00b2 \u7d30\u80de", " two  spaces", "\n\n", "", "a\tb", "x\ufdd0y"]


@pytest.fixture(scope="module", params=["qwen2", "llama2", "llama2 legacy", "json", "json legacy"])
def pair(request, tmp_path_factory):
    """Our reader and transformers' tokenizer of the same file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "qwen2":
        theirs = qwen2(folder)
        return FastTokenizer(folder), theirs
    theirs = llama2(folder, legacy="legacy" in request.param)
    return (FastTokenizer(folder) if "json" in request.param else SentencePieceTokenizer(folder)), theirs


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_transformers_and_text_survives(pair, text):
    ours, theirs = pair
    if isinstance(ours, SentencePieceTokenizer) and text.startswith(" "):
        text = text.lstrip()  # SentencePiece puts its space before a space too, which transformers 5 no longer does
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text)).lstrip() == text.lstrip()


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith(" ") and text])
def test_text_after_a_special_token(pair, text):
    ours, theirs = pair
    mark = theirs.convert_ids_to_tokens([len(theirs) - 1])[0]
    text = text.replace("\ufdd0", "\ufffd")  # it is replaced there
    assert [ours.special_id(mark), *ours.encode(text, first=False)] == theirs.encode(
        mark + text, add_special_tokens=False
    )


def test_decoding_leaves_special_tokens_and_unknown_ids_out(pair):
    ours, theirs = pair
    words = ours.encode("big cell")
    last = len(theirs) - 1
    assert ours.decode([last, *words, last, 10_000]).strip() == "big cell"


@pytest.mark.parametrize("count", [1, 3, 8, 33])
def test_placeholders_never_merge(pair, count):
    ours, _ = pair
    one = single_token(ours, PLACEHOLDER)
    assert ours.encode(f"a\n{PLACEHOLDER * count} b", first=False).count(one) == count


def test_placeholders_that_are_split_or_merge_are_refused(pair):
    for text in ("\u7ec6", "cell size"):
        with pytest.raises(ModelError, match="splits or merges the placeholder"):
            single_token(pair[0], text)


MARK = "\u203b"


def with_joined_spaces(folder):
    """Qwen2's kind of tokenizer, in which a space and the mark are one token, as published ones have it."""
    qwen2(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["added_tokens"] = [entry for entry in content["added_tokens"] if entry["content"] != PLACEHOLDER]
    words, pairs = content["model"]["vocab"], content["model"]["merges"]
    words.pop(PLACEHOLDER, None)
    letters = ByteLevel(add_prefix_space=False).pre_tokenize_str(MARK)[0][0]
    for new in (letters[:2], letters, "\u0120" + letters):
        words[new] = 2000 + len(words)
    pairs += [[letters[0], letters[1]], [letters[:2], letters[2]], ["\u0120", letters]]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return FastTokenizer(folder)


def test_a_placeholder_that_a_space_before_it_changes_serves_where_none_stands(tmp_path):
    """The published tokenizers of Qwen2.5 and Gemma 3 have a token for a space with it."""
    tokenizer = with_joined_spaces(tmp_path)
    one = single_token(tokenizer, MARK, after_space=False)
    assert tokenizer.encode(f"user\n{MARK * 8}").count(one) == 8
    assert tokenizer.encode(f"USER: {MARK * 8}").count(one) == 7
    with pytest.raises(ModelError, match="splits or merges the placeholder"):
        single_token(tokenizer, MARK)
    assert placeholder(tokenizer, after_space=False) == MARK
    with pytest.raises(ModelError, match="none of .* as one token"):
        placeholder(tokenizer, after_space=True)


def test_chat_formats_tell_whether_a_users_words_stand_after_a_space():
    assert vicuna().after_space and mistral().after_space
    assert not any(template.after_space for template in (chatml(), llama3(), gemma(), huatuo()))


def test_special_tokens_are_found_by_name(pair):
    ours, theirs = pair
    marks = list(theirs.get_added_vocab())
    assert special_ids(ours, marks) == theirs.convert_tokens_to_ids(marks)
    with pytest.raises(ModelError, match="no token <none>"):
        ours.special_id("<none>")


def test_text_never_becomes_a_special_token(pair):
    ours, theirs = pair
    special = set(theirs.get_added_vocab().values()) - {theirs.unk_token_id}
    for mark, first in ((m, f) for m in theirs.get_added_vocab() for f in (True, False)):
        if mark == PLACEHOLDER:
            continue
        ids = ours.encode(f"a {mark} b{mark}", first=first)
        assert not special & set(ids), mark
        assert ours.decode(ids).strip() == f"a {mark} b{mark}"


def test_marks_in_the_model_itself_stay_text(tmp_path):
    """A SentencePiece model may hold its marks as symbols that it finds in any text."""
    import io

    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=model, vocab_size=400, model_type="bpe", byte_fallback=True,
        user_defined_symbols=["<|im_end|>"], hard_vocab_limit=False, remove_extra_whitespaces=False, minloglevel=2,
        normalization_rule_name="identity",
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    plain = SentencePieceTokenizer(tmp_path)
    mark = plain.special_id("<|im_end|>")
    assert mark in plain.encode("big<|im_end|>"), "nothing beside the model says that it is special"
    config = {"added_tokens_decoder": {str(mark): {"content": "<|im_end|>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = SentencePieceTokenizer(tmp_path)
    for first in (True, False):
        ids = ours.encode("big<|im_end|> cell", first=first)
        assert mark not in ids and ours.decode(ids) == "big<|im_end|> cell"
    assert ours.special_id("<|im_end|>") == mark and len(ours) == len(plain)


def test_added_tokens_are_read_from_either_file(tmp_path):
    theirs = llama2(tmp_path, legacy=True, marks=tuple(CHATML_MARKS))
    ids = theirs.convert_tokens_to_ids(CHATML_MARKS)
    assert special_ids(SentencePieceTokenizer(tmp_path), CHATML_MARKS) == ids
    assert len(SentencePieceTokenizer(tmp_path / "tokenizer.model")) == max(ids) + 1
    (tmp_path / "added_tokens.json").unlink()
    with pytest.raises(ModelError, match="is added_tokens.json or tokenizer_config.json missing"):
        SentencePieceTokenizer(tmp_path).special_id("<|im_start|>")
    table = {str(i): {"content": mark} for i, mark in zip(ids, CHATML_MARKS, strict=True)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": table}))
    assert special_ids(SentencePieceTokenizer(tmp_path), CHATML_MARKS) == ids


def test_legacy_is_read_from_the_config_and_can_be_said(tmp_path):
    llama2(tmp_path, legacy=False)
    new, old = SentencePieceTokenizer(tmp_path), SentencePieceTokenizer(tmp_path, legacy=True)
    assert old.encode("big", first=False) == old.encode("big") == new.encode("big") != new.encode("big", first=False)
    (tmp_path / "tokenizer_config.json").unlink()
    assert SentencePieceTokenizer(tmp_path).encode("big", first=False) == old.encode("big")
    assert pickle.loads(pickle.dumps(new)).encode("big", first=False) == new.encode("big", first=False)


def test_a_token_that_strips_spaces_is_refused(tmp_path):
    qwen2(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<greedy>", lstrip=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match="<greedy> strips spaces"):
        FastTokenizer(tmp_path).special_id("<greedy>")


def test_files_that_are_missing_or_broken_are_named(tmp_path):
    for reader, name in ((FastTokenizer, "tokenizer.json"), (SentencePieceTokenizer, "tokenizer.model")):
        with pytest.raises(ModelError, match=f"no tokenizer at .*{name}"):
            reader(tmp_path)
        (tmp_path / name).write_text("{}")
        with pytest.raises(ModelError, match=f"{name} is not a"):
            reader(tmp_path)
    llama2(tmp_path / "llama", legacy=True)
    for content, said in (("[1]", "does not hold a JSON object"), ("{", "is not JSON")):
        (tmp_path / "llama" / "added_tokens.json").write_text(content)
        with pytest.raises(ModelError, match=f"added_tokens.json {said}"):
            SentencePieceTokenizer(tmp_path / "llama")


def test_a_file_that_asks_for_a_fixed_length_neither_cuts_nor_fills(tmp_path):
    theirs = qwen2(tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=9, pad_token="<|endoftext|>")
    raw.save(str(tmp_path / "tokenizer.json"))
    for text in ("A", " ".join(SENTENCES)):
        assert FastTokenizer(tmp_path).encode(text) == theirs.encode(text, add_special_tokens=False)


def test_a_tokenizer_with_more_special_tokens_can_be_written(tmp_path):
    qwen2(tmp_path / "before")
    ours = FastTokenizer(tmp_path / "before")
    known = ours.vocabulary()
    (tmp_path / "tokenizer.json").write_text(ours.with_special_tokens(["<<NEW>>", "<|im_end|>"]))
    more = FastTokenizer(tmp_path)
    assert more.vocabulary() == {**known, "<<NEW>>": len(known)} and ours.vocabulary() == known
    assert len(more.encode("a <<NEW>> b")) > 3 and len(known) not in more.encode("<<NEW>>"), "written out it is text"
    assert more.special_id("<<NEW>>") == len(known)
