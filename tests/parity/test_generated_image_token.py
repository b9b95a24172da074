"""An image token that the model itself generated stands for no feature: it is embedded as transformers embeds it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import gemma3_twin, internvl_twin, llava_twin, qwen2_5_vl_twin

FAMILIES = {
    "LLaVA": (llava_twin, ()),
    "InternVL, InternLM2": (internvl_twin, ("internlm2",)),
    "InternVL, Qwen2": (internvl_twin, ("qwen2",)),
    "Qwen2.5-VL": (qwen2_5_vl_twin, ()),
    "Gemma 3": (gemma3_twin, ()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_token_without_features_is_embedded(family: str, tmp_path: Path) -> None:
    """No step of generation but the first has features."""
    module, arguments = FAMILIES[family]
    ours: Any = module.tiny(*arguments)
    theirs = module.twin(ours, tmp_path)
    tokens = torch.tensor([[*range(3, 12), ours.image_id, 5, 6]])
    with torch.no_grad():
        mine = ours.logits(ours.hidden(tokens))
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    assert (mine - expected).abs().max() < 1e-5
