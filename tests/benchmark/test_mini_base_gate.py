"""benchmark/mini_base_gate.py: the committed result is of the base that is shipped, and says what its numbers say."""

import json

from medtune.config import PACKAGE
from medtune.data.writing import file_sha256
from tests.benchmark.scripts import FOLDER, script

GATE = script("mini_base_gate").GATE


def test_the_shipped_base_is_the_one_that_passed() -> None:
    found = json.loads((FOLDER / "results" / "mini_base_gate.json").read_text(encoding="utf-8"))
    assert found["weights_sha256"] == file_sha256(PACKAGE / "assets" / "mini_base" / "model.safetensors")
    assert found["gate"] == GATE
    assert found["gate_passed"] == all(
        found["options_shuffled"][name]["value"] >= least for name, least in GATE.items()
    )
    assert found["gate_passed"], "the demo has a column of letters only while its base can match options"
