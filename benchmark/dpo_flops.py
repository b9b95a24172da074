"""Operations of a DPO step per pair, counted on the meta device at the models' real sizes; no weights, no GPU.

    python benchmark/dpo_flops.py [--answer 64] [--only llava1_5_7b] [--out FILE]

Every plan is run forward and backward on tensors without storage, and torch counts its operations, attention included.
Adapters are on every linear layer of the language model; the vision encoder is frozen. The plans:

``trl``: what TRL 1.16 runs: each answer with its image and prompt, through policy and reference, so four encodes and
four whole rows. ``one_encode``: the same rows with one encode. ``medtune``: one encode, the prompt read once by each
model, the last layer on the predicting states only. ``medtune_precomputed``: without the reference's pass.
``medtune_precomputed_features``: without the encoder's either, as with ``feature_cache``.

``medtune_precomputed`` is compared with TRL's live reference: TRL refuses precomputed references for images.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medtune.evaluation.provenance import stamp
from medtune.losses.cross_entropy import IGNORE_INDEX
from medtune.losses.dpo import dpo
from medtune.losses.log_probs import target_log_probs
from medtune.models.common.branches import Branch, pack
from medtune.models.common.interface import BatchShape
from medtune.models.llama3_2_vision import lora_llama3_2_vision_11b
from medtune.models.llava import lora_llava1_5_7b
from medtune.models.lora.options import ATTENTION
from medtune.models.mini import lora_mini_llava
from medtune.modules.exemplar import TokenRows
from medtune.objectives.dpo.forms import SharedForm

OUT = Path(__file__).resolve().parent / "results" / "dpo_flops.json"
TERA = 1e12
CHUNK = 512
LORA: dict[str, Any] = {"lora_attn_modules": list(ATTENTION), "apply_lora_to_mlp": True, "lora_parts": ["decoder"]}


@dataclass(frozen=True)
class Case:
    """One model and the size of a pair.

    Attributes:
        build: builds the model; called on the meta device.
        text: text tokens of prompt and answer together.
        tiles: tiles of the one image.
    """

    build: Callable[[], Any]
    text: int
    tiles: int = 1


def _llama(tiles: int) -> Callable[[], Any]:
    """Images of one tile are encoded as one tile; as the weights were trained, they would be padded to four."""
    mode: Any = "torchtune" if tiles == 1 else "checkpoint"
    sizes = {"lora_rank": 16, "lora_alpha": 32, "max_num_tiles": tiles}
    return lambda: lora_llama3_2_vision_11b(**LORA, **sizes, encoder_mode=mode)


CASES: dict[str, Case] = {
    "llava1_5_7b": Case(lambda: lora_llava1_5_7b(**LORA, lora_rank=128, lora_alpha=256), 104),
    "llama3_2_vision_11b_128_1": Case(_llama(1), 128, 1),
    "llama3_2_vision_11b_128_4": Case(_llama(4), 128, 4),
    "llama3_2_vision_11b_512_4": Case(_llama(4), 512, 4),
    "llama3_2_vision_11b_512_1": Case(_llama(1), 512, 1),
    "mini_llava": Case(lambda: lora_mini_llava(**LORA), 104),
}


class Lookup(torch.nn.Module):
    """In place of word embeddings, which are a lookup without operations, and not every kind is one on meta."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        """[b, s] -> [b, s, width]."""
        return torch.empty(*tokens.shape, self.width, device="meta")


class Pair:
    """A pair of made-up tokens about one image, on the meta device, in both forms.

    Args:
        model: on the meta device.
        case: sizes.
        answer: tokens of each answer.
    """

    def __init__(self, model: Any, case: Case, answer: int) -> None:
        shape = BatchShape(1, case.text, 1, case.tiles, model.image_size)
        self.model = model
        self.vision = model.meta_vision(shape)
        image = model.image_tokens(shape) if model.images_as_tokens else 0
        prompt = image + case.text - answer
        tokens = torch.full((1, prompt), 5)
        if image:
            tokens[:, :image] = model.image_id
            sees = torch.ones(1, image, dtype=torch.bool)
        else:
            sees = torch.ones(1, prompt, self.features().shape[1], dtype=torch.bool)
        prompts = TokenRows(tokens, sees, torch.full_like(tokens, IGNORE_INDEX), torch.ones_like(tokens).bool())
        own = torch.full((1, answer), 7)
        branches = [Branch(own, own) for _ in range(2)]
        self.lm_tokens = {"plain": 2 * (prompt + answer), "shared": prompt + 2 * answer}
        self.batch = on_meta(SharedForm().collate(prompts, branches, pad_id=0))
        row = pack(prompts, branches[:1], pad_id=0).rows
        self.tokens, self.sees = row.tokens.to("meta"), row.vision_mask.to("meta")
        self.targets = own[0].to("meta")

    def row(self, features: Tensor) -> Tensor:
        """Log-probability of one answer from a row of its own, with logits of the answer's tokens only, [1, 1]."""
        hidden = self.model.hidden(self.tokens, features, vision_mask=self.sees)
        states = hidden[0, -len(self.targets) - 1 : -1]
        return target_log_probs(states, self.targets, self.model.logits, CHUNK).double().sum().view(1, 1)

    def shared(self, features: Tensor) -> Tensor:
        """Log-probabilities of both answers from one row, [1, 2]."""
        return SharedForm().log_probs(self.model, self.batch, features, CHUNK)

    def features(self) -> Tensor:
        """Image features, from an encode."""
        return self.model.encode(self.vision)

    def given(self) -> Tensor:
        """Features that need no encode, as from a cache."""
        with torch.no_grad():
            like = self.features()
        return torch.empty_like(like)


def on_meta(value: Any) -> Any:
    """A batch with its tensors on the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    return {key: on_meta(one) for key, one in value.items()} if isinstance(value, dict) else value


def trl(pair: Pair) -> Tensor:
    """Each answer is run with an encode of its own, by the policy and by the reference."""

    def sums() -> Tensor:
        return torch.cat([pair.row(pair.features()) for _ in range(2)], dim=1)

    with pair.model.adapters_off():
        reference = sums()
    return _loss(sums(), reference)


def one_encode(pair: Pair) -> Tensor:
    """The same rows with one encode."""
    features = pair.features()

    def sums() -> Tensor:
        return torch.cat([pair.row(features) for _ in range(2)], dim=1)

    with pair.model.adapters_off():
        reference = sums()
    return _loss(sums(), reference)


def medtune(pair: Pair) -> Tensor:
    """One encode and shared prompts."""
    features = pair.features()
    with pair.model.adapters_off():
        reference = pair.shared(features)
    return _loss(pair.shared(features), reference)


def precomputed(pair: Pair, features: Tensor | None = None) -> Tensor:
    """The policy's pass alone."""
    policy = pair.shared(pair.features() if features is None else features)
    return _loss(policy, torch.zeros_like(policy))


def _loss(policy: Tensor, reference: Tensor) -> Tensor:
    return dpo(*policy.unbind(1), *reference.unbind(1)).sum()


def operations(run: Callable[[], Tensor]) -> int:
    """Operations of a forward pass, and of a backward pass if there is a gradient."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Everything()
    with sdpa_kernel(SDPBackend.MATH), counter:
        out = run()
        if out.requires_grad:
            out.backward()
    return int(counter.get_total_flops())


class Everything(contextlib.nullcontext):
    """Counts all operations as one; torch's tracker of modules fails on gradients that are taken in a forward pass."""

    parents: ClassVar[set[str]] = {"Global"}


def count(case: Case, answer: int) -> dict[str, Any]:
    """Every plan of a case."""
    with torch.device("meta"):
        model = case.build()
        model.decoder.tok_embeddings = Lookup(model.embed_dim)
    model._empty_rotary_tables()
    pair = Pair(model, case, answer)
    features = pair.given()
    plans: dict[str, Callable[[], Tensor]] = {
        "trl": lambda: trl(pair),
        "one_encode": lambda: one_encode(pair),
        "medtune": lambda: medtune(pair),
        "medtune_precomputed": lambda: precomputed(pair),
        "medtune_precomputed_features": lambda: precomputed(pair, features),
    }
    found = {name: operations(run) for name, run in plans.items()}
    return {
        "text_tokens": case.text,
        "answer_tokens": answer,
        "tiles": case.tiles,
        "teraflops_per_pair": {name: value / TERA for name, value in found.items()},
        "ratio_to_trl": {name: value / found["trl"] for name, value in found.items()},
        "encode_teraflops": operations(pair.features) / TERA,
        "encodes_per_pair": {"trl": 4, "medtune": 1},
        "lm_tokens_per_pair": {name: 2 * value for name, value in pair.lm_tokens.items()},
        "lm_tokens_ratio": pair.lm_tokens["shared"] / pair.lm_tokens["plain"],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--only", nargs="*", choices=sorted(CASES), help="these cases (all but the mini one)")
    parser.add_argument("--out", type=Path, help="the JSON file; by default benchmark/results, for all cases alone")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print and write."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(arguments)
    names = options.only or [name for name in CASES if not name.startswith("mini")]
    cases = {name: count(CASES[name], options.answer) for name in names}
    for name, found in cases.items():
        each = ", ".join(f"{plan} {value:.1f}" for plan, value in found["teraflops_per_pair"].items())
        print(f"{name}: TFLOP per pair: {each}")
        print("  of TRL's: " + ", ".join(f"{plan} {value:.2f}" for plan, value in found["ratio_to_trl"].items()))
    out = options.out or (None if options.only else OUT)
    if out is not None:
        out.write_text(
            json.dumps({"cases": cases, **stamp("benchmark/dpo_flops.py", arguments or [])}, indent=1) + "\n",
            encoding="utf-8",
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
