"""The key ``grey_bits`` of every builder that opens images."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medtune.data.source import SampleSource
from medtune.datasets import jsonl_dataset, llava_json_dataset, report_csv_dataset
from medtune.errors import ConfigError
from tests.data.tools import row, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(np.array([[0, 1000]], dtype=np.uint16)).save(tmp_path / "a.png")
    write_rows(tmp_path / "a.jsonl", [row("a", images=("a.png",))])
    (tmp_path / "a.csv").write_text("image,text\na.png,x\n")
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "x"}]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    return tmp_path


@pytest.mark.parametrize(
    ("build", "file"),
    [(jsonl_dataset, "a.jsonl"), (report_csv_dataset, "a.csv"), (llava_json_dataset, "a.json")],
    ids=["jsonl", "csv", "llava"],
)
def test_the_depth_of_grey_values_is_a_key(folder: Path, build: Callable[..., SampleSource], file: str) -> None:
    brightest, prints = [], []
    for bits in (None, 12, 16):
        source = build(str(folder / file), str(folder), grey_bits=bits)
        brightest.append(source.open_images(source[0])[0].getpixel((1, 0))[0])
        prints.append(source.fingerprint())
    assert brightest == [249, 62, 4], "1000 of 1023, of 4095 and of 65535"
    assert len(set(prints)) == 3 and prints[0] == build(str(folder / file), str(folder)).fingerprint()
    with pytest.raises(ConfigError, match="grey_bits is 20; it must be the depth"):
        build(str(folder / file), str(folder), grey_bits=20)
