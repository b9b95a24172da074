"""Values of environment variables are used, and written nowhere: neither in configs nor in records nor in reports."""

import dataclasses
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from medtune.config import CONFIGS, Component, load_config, save_config, saved_keys, to_plain, to_shown
from medtune.errors import ConfigError
from medtune.generation.identity import claim
from medtune.masking import MASK, FromEnvironment, masked
from medtune.reporting.runs import read_run
from medtune.training.checkpointer import _hidden
from medtune.training.telemetry import Telemetry

SECRET = "x9-Zq77-never-written"


@dataclass
class Server:
    """A config with places for a secret."""

    place: str = ""
    seconds: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    many: list[str] = field(default_factory=list)
    part: Component | None = None


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The secret in every kind of place, directly and by reference."""
    monkeypatch.setenv("CLINIC_TOKEN", SECRET)
    monkeypatch.setenv("CLINIC_PLACE", "ward-7")
    values = {
        "place": "${oc.env:CLINIC_PLACE}/images",
        "options": {
            "plain": "${oc.env:CLINIC_TOKEN}",
            "within": "user=${oc.env:CLINIC_TOKEN};x=1",
            "reference": "${options.within}",
            "extra_headers": {"X-Any": "${oc.env:CLINIC_TOKEN}", "X-Typed": "hunter2"},
            "api_key": "typed-in-the-file",
        },
        "many": ["a", "${oc.env:CLINIC_TOKEN}"],
        "part": {"_component_": "fractions.Fraction", "numerator": "${oc.env:CLINIC_TOKEN}"},
    }
    path = tmp_path / "server.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    return load_config(str(path), Server)


def test_the_values_are_used(config: Server) -> None:
    assert config.options["plain"] == SECRET and config.place == "ward-7/images"
    assert config.options["reference"] == f"user={SECRET};x=1" and config.many == ["a", SECRET]
    assert to_plain(config)["part"]["numerator"] == SECRET


def test_a_saved_config_holds_what_was_written_and_reads_back(config: Server, tmp_path: Path) -> None:
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert SECRET not in text and "hunter2" not in text and "typed-in-the-file" not in text
    assert "${oc.env:CLINIC_PLACE}/images" in text and text.count("${oc.env:CLINIC_TOKEN}") == 5
    again = load_config(str(tmp_path / "config.yaml"), Server)
    assert again.options["plain"] == SECRET and again.options["reference"] == config.options["reference"]
    assert again.options["api_key"] == MASK


@pytest.mark.parametrize(
    "text", ["costs ${5}", r"a \${b}", r"C:\\${x}${y}", "$ {a} $b {c} \\", "${oc.env:NOT_SET_ANYWHERE}"]
)
def test_a_text_with_a_dollar_is_saved_as_text(text: str, tmp_path: Path) -> None:
    save_config(Server(place=text, options={"a": text}, many=[text]), tmp_path / "config.yaml")
    again = load_config(str(tmp_path / "config.yaml"), Server)
    assert (again.place, again.options["a"], again.many) == (text, text, [text])
    assert saved_keys(tmp_path / "config.yaml", Server)["options"] == {"a": text}


@dataclass
class Place:
    """Some keys of the config."""

    place: str = ""
    seconds: float = 1.0


def test_a_variable_of_another_key_is_not_needed_to_read_some(
    config: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_config(config, tmp_path / "config.yaml")
    monkeypatch.delenv("CLINIC_TOKEN")
    assert saved_keys(tmp_path / "config.yaml", Place) == {"place": "ward-7/images", "seconds": 1.0}
    with pytest.raises(ConfigError, match="config.yaml cannot be read: .*CLINIC_TOKEN"):
        saved_keys(tmp_path / "config.yaml", Server)
    (tmp_path / "config.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="a config is a mapping of keys to values"):
        saved_keys(tmp_path / "config.yaml", Place)


def test_a_typed_default_of_a_credential_is_masked(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("options: {api_key: '${oc.env:NOT_SET_ANYWHERE,hunter2}'}")
    assert to_shown(load_config(str(path), Server))["options"] == {"api_key": MASK}


def test_an_error_message_shows_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC_TOKEN", SECRET)
    path = tmp_path / "server.yaml"
    path.write_text("seconds: ${oc.env:CLINIC_TOKEN}\n")
    with pytest.raises(ConfigError, match=r"got '\$\{oc.env:CLINIC_TOKEN\}'"):
        load_config(str(path), Server)


def test_an_identity_masks_credentials_and_keeps_what_decides(config: Server) -> None:
    hidden = masked(to_plain(config))
    assert hidden["place"] == "ward-7/images", "another place is another run"
    assert SECRET not in json.dumps(hidden) and "hunter2" not in json.dumps(hidden)
    kept = _hidden({"objective": to_plain(config), "companions": {"weights/answer.key": "ab"}})
    assert SECRET not in json.dumps(kept) and kept["companions"] == {"weights/answer.key": "ab"}


def test_the_record_of_predictions_has_no_value_of_a_variable(config: Server, tmp_path: Path) -> None:
    claim(tmp_path / "predictions.jsonl", {"config": to_plain(config)})
    record = (tmp_path / "predictions.meta.json").read_text()
    assert SECRET not in record and "${oc.env:CLINIC_TOKEN}" in record


def test_loggers_get_no_value_and_resolve_none(config: Server, tmp_path: Path) -> None:
    """W&B's logger resolves a config before it is sent."""
    sent: list[Any] = []

    class Logger:
        def log_config(self, given: Any) -> None:
            sent.append(OmegaConf.to_container(given, resolve=True))

        def close(self) -> None:
            pass

    Logger.__module__ = __name__
    globals()["Logger"] = Logger
    log = Telemetry(tmp_path, [Component(_component_=f"{__name__}.Logger")], config, 1, 0, True)
    log.close()
    assert SECRET not in json.dumps(sent) and sent[0]["options"]["plain"] == "${oc.env:CLINIC_TOKEN}"


def test_a_report_masks_an_older_runs_config_and_provenance(tmp_path: Path) -> None:
    results = {"schema": "medtune.results/1", "name": "a", "provenance": {"config": {"api_key": "hunter2"}}}
    from medtune.evaluation.evaluation import SCHEMA

    (tmp_path / "results.json").write_text(json.dumps({**results, "schema": SCHEMA}))
    (tmp_path / "config.yaml").write_text("backend:\n  options:\n    extra_headers: {X: hunter2}\nseed: 3\n")
    run = read_run(tmp_path)
    assert "hunter2" not in run.config + json.dumps(run.results) and "seed: 3" in run.config
    (tmp_path / "config.yaml").write_text("extra_headers: {X: hunter2")
    assert "hunter2" not in read_run(tmp_path).config


def test_a_value_survives_workers_and_copies() -> None:
    value = FromEnvironment("a", "${oc.env:A}", ("A",))
    again = pickle.loads(pickle.dumps(value))
    assert (again, again.written, again.variables) == ("a", "${oc.env:A}", ("A",))
    assert dataclasses.replace(Server(place=value)).place is value


def test_no_packaged_config_holds_anything_that_is_masked() -> None:
    """Else a run's saved config could not be run again."""
    for name in sorted(CONFIGS.glob("*/*.yaml")):
        plain = OmegaConf.to_container(OmegaConf.load(name), resolve=False)
        assert masked(plain) == plain, name
