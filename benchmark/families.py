"""An SFT-LoRA step of a family's mini model beside the same step in transformers and PEFT, and a ragged vision tower.

    python benchmark/families.py [--only qwen2_5_vl] [--rounds 7] [--out FILE]

Both sides have the same weights (medtune's export, opened by transformers, and its adapter folder, opened by PEFT), the
same batch, and AdamW; adapters are on every linear map of the decoder, everything else is frozen, in fp32. Answers are
supervised, prompts with images of several sizes are not. A step is what lies between a ready batch and the optimizer's
end. Steps are taken in turn on one thread, on the process's CPU time; a ratio is the median of the rounds' own ratios.
Memory is the peak of all tensors that a step allocates. ``max_loss_difference`` is over all rounds, in which both sides
are trained.

``vision_time_ratio`` is a forward pass of Qwen2.5-VL's tower on a ragged batch (1,350 blocks of 28 pixels in six
images) beside transformers' own tower with sdpa.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medtune.config import PACKAGE
from medtune.data.sample import Message, Sample
from medtune.evaluation.provenance import stamp
from medtune.models import mini
from medtune.models.common.names import is_adapter_key
from medtune.models.lora.options import ATTENTION
from medtune.models.lora.peft import save_peft
from medtune.models.qwen2_5_vl._component_builders import qwen2_5_vl
from medtune.models.qwen2_5_vl._images import published_inputs
from medtune.models.qwen2_5_vl._shape import Qwen2_5VLShape
from medtune.models.weights import save_hf
from medtune.objectives import SFT

OUT = Path(__file__).resolve().parent / "results" / "families.json"
TOKENIZER = PACKAGE / "assets" / "mini_tokenizer"
SIZES = {"vocab_size": 1024, "embed_dim": 192, "vision_layers": 4, "decoder_layers": 6, "heads": 6}
LORA: dict[str, Any] = {"lora_attn_modules": list(ATTENTION), "apply_lora_to_mlp": True, "lora_rank": 8}
ROWS, WORDS = 8, 40
Step = Callable[[], float]
GRIDS = ((30, 20), (9, 14), (24, 16), (5, 8), (10, 12), (16, 5))


@dataclass(frozen=True)
class Family:
    """How both sides are made of one mini model.

    Attributes:
        name: of its builders in ``medtune.models.mini``.
        inputs: (batch, image token) -> what transformers' model takes besides tokens.
        model: further arguments of the builder.
        transform: further arguments of the transform.
        config: changes transformers' configuration where it reads the same file in another way.
        transform_name: of the transform's builder, if it is not the model's.
    """

    name: str
    inputs: Callable[[dict[str, Any], int], dict[str, Tensor]]
    model: dict[str, Any] = field(default_factory=dict)
    transform: dict[str, Any] = field(default_factory=dict)
    config: Callable[[Any], None] = lambda config: None
    transform_name: str = ""


def tiles_in_a_row(batch: dict[str, Any], image_id: int) -> dict[str, Tensor]:
    """The real tiles of a batch, one after the other."""
    images, tiles = batch["vision"]["images"], batch["vision"]["tiles"]
    return {"pixel_values": torch.cat([images[b, i, :n] for b, row in enumerate(tiles) for i, n in enumerate(row)])}


def blocks_with_grids(batch: dict[str, Any], image_id: int) -> dict[str, Tensor]:
    """Patches of images of any size, and where image tokens are."""
    given = published_inputs(batch["vision"]["images"].flatten(0, 1), batch["vision"]["grid"].flatten(0, 1))
    return given | {"mm_token_type_ids": (batch["tokens"] == image_id).long()}


def tiles_with_types(batch: dict[str, Any], image_id: int) -> dict[str, Tensor]:
    """Tiles, and which tokens see each other because they are one image."""
    return tiles_in_a_row(batch, image_id) | {"token_type_ids": (batch["tokens"] == image_id).long()}


def tiles_beside_the_text(batch: dict[str, Any], image_id: int) -> dict[str, Tensor]:
    """One tile for each row, which its text reads by cross-attention."""
    images = batch["vision"]["images"]
    ones = torch.ones(images.shape[:2], dtype=torch.long)
    sees = batch["vision_mask"].unflatten(2, (*images.shape[1:3], -1))[..., 0].long()
    return {
        "pixel_values": images,
        "aspect_ratio_ids": ones,
        "aspect_ratio_mask": ones[..., None],
        "cross_attention_mask": sees,
    }


def count_states_from_zero(config: Any) -> None:
    """Llama-3.2-Vision's weights mean the state before a layer, where transformers takes the one after it."""
    config.vision_config.intermediate_layers_indices = [
        number - 1 for number in config.vision_config.intermediate_layers_indices
    ]


FAMILIES = {
    "gemma3": Family("mini_gemma3", tiles_with_types, {"image_size": 96}, {"image_size": 96}),
    "internvl": Family("mini_internvl", tiles_in_a_row, {"decoder": "qwen2", "image_size": 96}, {"image_size": 96}),
    "llama3_2_vision": Family(
        "mini_vlm",
        tiles_beside_the_text,
        {"image_size": 96, "hf_rows": True},
        {"image_size": 96},
        count_states_from_zero,
        "mini_transform",
    ),
    "llava": Family("mini_llava", tiles_in_a_row, {"image_size": 96}, {"image_size": 96}),
    "qwen2_5_vl": Family("mini_qwen2_5_vl", blocks_with_grids, {}, {"max_pixels": 128 * 128}),
}


def make_batch(transform: Any) -> dict[str, Any]:
    """Questions with one image each, of several sizes, and answers of ``WORDS`` words."""
    rng = random.Random(0)
    noise = np.random.default_rng(0)
    items = []
    for row in range(ROWS):
        size = (rng.randint(60, 140), rng.randint(60, 140), 3)
        image = Image.fromarray(noise.integers(0, 256, size, dtype=np.uint8))
        answer = " ".join(rng.choice(["cell", "small", "round", "nucleus", "pink"]) for _ in range(WORDS))
        turns = (Message("user", "What is the cell size?"), Message("assistant", answer))
        items.append(transform(Sample(str(row), ("image",), turns), [image]))
    return transform.collate(items)


def our_step(model: nn.Module, batch: dict[str, Any], optimizer: torch.optim.Optimizer) -> Step:
    """A step of medtune's SFT objective."""
    objective: Any = SFT()

    def step() -> float:
        out = objective(model, batch)
        loss = out.loss_sum / out.weight
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def their_step(model: nn.Module, given: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Step:
    """A step on the loss of transformers' model."""

    def step() -> float:
        loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def both_sides(family: Family, folder: Path) -> tuple[Step, Step]:
    """The two steps, on the same weights and the same batch."""
    import peft.tuners.lora.torchao
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForImageTextToText

    peft.tuners.lora.torchao.is_torchao_available = lambda: False  # type: ignore[assignment]  # it refuses ours
    torch.manual_seed(0)
    plain = getattr(mini, family.name)(**SIZES, **family.model)
    save_hf(plain.state_dict(), plain.family, folder / "base")
    ours = getattr(mini, f"lora_{family.name}")(**SIZES, **family.model, **LORA)
    ours.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for name, value in ours.named_parameters():
            if ".lora_b." in name:
                nn.init.normal_(value, std=0.02)
    adapters = {key: value for key, value in ours.state_dict().items() if is_adapter_key(key)}
    save_peft(adapters, ours, folder / "adapter", str(folder / "base"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = AutoConfig.from_pretrained(folder / "base")
        family.config(config)
        base = AutoModelForImageTextToText.from_pretrained(folder / "base", config=config, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    transform = getattr(mini, family.transform_name or f"{family.name}_transform")(TOKENIZER, **family.transform)
    batch = make_batch(transform)
    given = {
        "input_ids": batch["tokens"],
        "attention_mask": batch["padding"].long(),
        "labels": batch["labels"],
        **family.inputs(batch, transform.image_id),
    }
    first, second = (
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4) for model in (ours, theirs)
    )
    return our_step(ours.train(), batch, first), their_step(theirs.train(), given, second)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of a call, and its result."""
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


def tensor_bytes(run: Callable[[], Any]) -> int:
    """Peak of what a call allocates for tensors."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def compare(ours: Step, theirs: Step, rounds: int) -> dict[str, float]:
    """Take steps in turn; the first of each is not timed."""
    differences = [abs(ours() - theirs())]
    times = []
    for number in range(rounds):
        sides = [(0, ours), (1, theirs)] if number % 2 else [(1, theirs), (0, ours)]
        found = {side: seconds(step) for side, step in sides}
        times.append((found[0][0], found[1][0]))
        differences.append(abs(found[0][1] - found[1][1]))
    memory = tensor_bytes(ours), tensor_bytes(theirs)
    return {
        "time_ratio": statistics.median(a / b for a, b in times),
        "seconds": statistics.median(a for a, _ in times),
        "memory_ratio": memory[0] / memory[1],
        "megabytes": memory[0] / 1e6,
        "max_loss_difference": max(differences),
    }


def compare_vision(rounds: int, folder: Path) -> dict[str, float]:
    """Qwen2.5-VL's tower and merger on a ragged batch, a quarter as wide and as deep as the published one."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    shape = Qwen2_5VLShape(
        vision_dim=320, vision_layers=8, vision_heads=4, vision_mlp_dim=860, full_layers=(3, 7), dim=64, layers=1,
        heads=1, kv_heads=1, mlp_dim=64, vocab_size=64, tied=False, image_id=63, video_id=62, vision_start_id=61,
        vision_end_id=60, bos_id=59, eos_id=58, rope_sections=(8, 12, 12), max_seq_len=64,
    )  # fmt: skip
    torch.manual_seed(0)
    ours = qwen2_5_vl("tower", shape).eval()
    save_hf(ours.state_dict(), ours.family, folder)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    most = max(rows * columns for rows, columns in GRIDS)
    images = torch.randn(1, len(GRIDS), most, 3, 28, 28)
    grid = torch.tensor(GRIDS)
    vision = {"images": images, "tiles": grid.prod(dim=1)[None], "grid": grid[None]}
    given = published_inputs(images[0], grid)
    tower = theirs.model.visual

    def our_pass() -> Tensor:
        return ours.encode(vision)[0]

    def their_pass() -> Any:
        return tower(given["pixel_values"], grid_thw=given["image_grid_thw"])

    with torch.no_grad():
        real = torch.arange(most) < grid.prod(dim=1)[:, None]
        found, expected = our_pass()[real.flatten()], their_pass()
        expected = expected if isinstance(expected, Tensor) else expected.pooler_output
        difference = (found - expected).abs().max()
        times = [(seconds(our_pass)[0], seconds(their_pass)[0]) for _ in range(rounds)]
    return {
        "vision_time_ratio": statistics.median(a / b for a, b in times),
        "seconds": statistics.median(a for a, _ in times),
        "max_difference": float(difference),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAMILIES, help="one family")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    torch.set_num_threads(1)
    results: dict[str, Any] = {"families": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, family in FAMILIES.items():
            if options.only in (None, name):
                steps = both_sides(family, Path(scratch) / name)
                results["families"][name] = compare(*steps, options.rounds)
                print(name, results["families"][name], flush=True)
        if options.only in (None, "qwen2_5_vl"):
            results["vision"] = compare_vision(options.rounds, Path(scratch) / "tower")
            print("vision", results["vision"], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({**stamp("benchmark/families.py", given), **results}, indent=1) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
