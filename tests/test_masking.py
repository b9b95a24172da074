"""Credentials are masked by name or form; what decides a run is left to be compared."""

import pytest

from medtune.masking import MASK, is_credential, masked


@pytest.mark.parametrize(
    "name",
    [
        "key", "api_key", "apiKey", "API_KEY", "apikey", "access_token", "token", "hf_token", "HFToken",
        "client_secret", "secret_name", "password", "db_password_old", "passwd", "Authorization", "proxy-authorization",
        "auth", "credentials", "Cookie", "Ocp-Apim-Subscription-Key", "passphrase",
    ],
)  # fmt: skip
def test_names_of_credentials(name: str) -> None:
    assert is_credential(name)
    assert masked({"a": [{name: "x"}]}) == {"a": [{name: MASK}]}


@pytest.mark.parametrize(
    "name",
    [
        "api_key_env", "max_new_tokens", "tokenizer", "image_token", "eos_token", "label_key", "keys", "keyword",
        "monkey", "author", "top_k", "model", "token_count", "key_padding",
    ],
)  # fmt: skip
def test_names_of_settings(name: str) -> None:
    assert not is_credential(name)
    assert masked({name: "x", "n": 3}) == {name: "x", "n": 3}


def test_whatever_stands_below_headers_is_masked() -> None:
    options = {"extra_headers": {"X-Clinic": "ward 3", "X-Numbers": [1, "a"], "none": None}, "top_k": 1}
    assert masked(options) == {
        "extra_headers": {"X-Clinic": MASK, "X-Numbers": [MASK, MASK], "none": None},
        "top_k": 1,
    }
    assert options["extra_headers"]["X-Clinic"] == "ward 3", "the tree itself is left alone"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://me:word@host/v1?a=b", f"https://{MASK}@host/v1?a=b"),
        ("https://host/v1/@user", "https://host/v1/@user"),
        ("Bearer abc.def", MASK),
        ("sk-" + "a1" * 10, MASK),
        ("hf_" + "Q" * 30, MASK),
        ("hf_models/llama", "hf_models/llama"),
        ("sk-learn", "sk-learn"),
        ("Basic anatomy of the eye", "Basic anatomy of the eye"),
        (7, 7),
        (None, None),
    ],
)
def test_values_that_look_like_credentials(value: object, shown: object) -> None:
    assert masked([value]) == [shown]


def test_false_and_nothing_stay() -> None:
    assert masked({"use_auth": False, "token": None, "key": "", "password": 12345}) == {
        "use_auth": False, "token": None, "key": "", "password": MASK,
    }  # fmt: skip
