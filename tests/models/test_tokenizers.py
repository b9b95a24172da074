"""Special tokens keep their places, and text can never forge one."""

import pickle

import pytest

from medtune.errors import ModelError
from medtune.models.common.tokenizer import SPECIAL_TOKENS, JsonTokenizer
from medtune.models.llama3_2_vision._tokenizer import llama3_chat_tokenizer
from medtune.models.llama3_2_vision._transform import PLACEHOLDER
from medtune.models.mini import MiniTokenizer, mini_vlm, train_mini_tokenizer
from tests.models.conftest import SENTENCES, VOCAB


@pytest.fixture(params=["mini", "tiktoken"])
def tokenizer(request, tokenizer_dir, tiktoken_file):
    return MiniTokenizer(tokenizer_dir) if request.param == "mini" else llama3_chat_tokenizer(tiktoken_file)


@pytest.mark.parametrize("text", [*SENTENCES, "Zürich µm² 細胞", " two  spaces ", "\n\n", ""])
def test_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_in_text_is_text(tokenizer, token):
    ids = tokenizer.encode(f"a {token} b")
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.eot_id, tokenizer.eom_id}
    special |= {tokenizer.start_header_id, tokenizer.end_header_id, tokenizer.image_id}
    assert len(special) == 8 and not special & set(ids)
    assert tokenizer.decode(ids) == f"a {token} b"


def test_decoding_leaves_special_tokens_out(tokenizer):
    words = tokenizer.encode("big cell")
    around = [tokenizer.bos_id, tokenizer.image_id, *words, tokenizer.eot_id, tokenizer.pad_id]
    assert tokenizer.decode(around) == "big cell"


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_placeholders_never_merge(tokenizer, count):
    (one,) = tokenizer.encode(PLACEHOLDER)
    assert tokenizer.encode(PLACEHOLDER * count) == [one] * count
    assert tokenizer.encode(f"a {PLACEHOLDER * count}\n1").count(one) == count


def test_a_copy_in_another_process_is_the_same(tokenizer):
    text = f"The cell <|eot_id|> {PLACEHOLDER}"
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def test_mini_ids_fit_the_mini_model(tokenizer_dir):
    tokenizer = MiniTokenizer(tokenizer_dir)
    assert tokenizer.image_id == tokenizer.vocab_size == VOCAB
    config = mini_vlm(VOCAB).family.hf_config()
    text = config["text_config"]
    ours = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.image_id)
    assert ours == (text["bos_token_id"], text["eos_token_id"], text["pad_token_id"], config["image_token_index"])


def test_training_is_deterministic_and_fills_the_vocabulary(tokenizer_dir, tmp_path):
    train_mini_tokenizer(iter(SENTENCES), VOCAB, tmp_path / "again")
    first = (tokenizer_dir / "tokenizer.json").read_bytes()
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == first
    assert train_mini_tokenizer(["ab"], 500, tmp_path / "few").vocab_size == 500
    assert len(MiniTokenizer(tokenizer_dir).encode(SENTENCES[0])) < len(SENTENCES[0]) * 0.8


def test_too_small_a_vocabulary_is_refused(tmp_path):
    train_mini_tokenizer(["a"], 264, tmp_path)
    with pytest.raises(ModelError, match="at least 264, got 263"):
        train_mini_tokenizer(["a"], 263, tmp_path)


def test_llama_in_either_format_and_from_a_folder(tokenizer_dir, tiktoken_file, tmp_path):
    assert isinstance(llama3_chat_tokenizer(tokenizer_dir / "tokenizer.json"), JsonTokenizer)
    assert isinstance(llama3_chat_tokenizer(tokenizer_dir), JsonTokenizer)
    assert llama3_chat_tokenizer(tiktoken_file.parent).image_id == 128_256
    with pytest.raises(ModelError, match="holds none of original/tokenizer.model"):
        llama3_chat_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer at"):
        llama3_chat_tokenizer(tmp_path / "tokenizer.model")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="tokenizer.json is not a tokenizer.json"):
        MiniTokenizer(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer at"):
        MiniTokenizer(tmp_path / "elsewhere")


def test_missing_special_tokens_are_named(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    Tokenizer(BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"has no token <\|begin_of_text\|>"):
        MiniTokenizer(tmp_path)
