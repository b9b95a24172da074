"""A step on batches with text alone: the encoder on real images only, beside the encoder on padding images too.

    python benchmark/text_rows.py [--rounds 15] [--batch-size 32]

A mini model with cross-attention, all parts trained, conversations about rendered cells and conversations without an
image. Forward and backward pass of both are timed in turn, round after round; a ratio is the median over rounds, plain
over fast. Time is the process's CPU time (one thread). Operations of a forward pass of Llama-3.2-Vision 11B stand
beside it: what a conversation of 512 tokens costs (two for each weight and token, without attention scores), and what a
padding image of four tiles would add (counted on the meta device).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from medtune.config import PACKAGE
from medtune.datasets.cells import rendered_cells_dataset
from medtune.evaluation.provenance import stamp
from medtune.models.common.interface import BatchShape
from medtune.models.llama3_2_vision import llama3_2_vision_11b
from medtune.models.mini import mini_transform, mini_vlm
from medtune.objectives import SFT

SHARES = (0.0, 0.25, 0.5, 1.0)


def batch(size: int, text: float) -> dict[str, Any]:
    """A batch of which a share of the rows has no image."""
    transform = mini_transform(PACKAGE / "assets" / "mini_tokenizer")
    sources = [rendered_cells_dataset(size, 0, kind) for kind in ("text", "instructions")]
    samples = [(sources[index >= round(size * text)], index) for index in range(size)]
    items = [transform(source[index], source.open_images(source[index])) for source, index in samples]
    return transform.collate(items)


def seconds(model: Any, objective: SFT, given: dict[str, Any]) -> tuple[float, float]:
    """CPU seconds of a forward and backward pass, and the loss."""
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    output = model.compute(objective, given)
    output.loss_sum.backward()
    return time.process_time() - start, float(output.loss_sum.detach() / output.weight)


def compare(size: int, text: float, rounds: int) -> dict[str, Any]:
    """Median ratio, its quartiles, and the median seconds of both."""
    torch.manual_seed(0)
    fast, plain = mini_vlm(vocab_size=1024), mini_vlm(vocab_size=1024)
    plain.load_state_dict(fast.state_dict())
    plain.encode = lambda vision: plain.encoder(**vision)
    objective, given = SFT(), batch(size, text)
    times, losses = [], []
    for number in range(rounds + 1):
        (quick, one), (slow, other) = seconds(fast, objective, given), seconds(plain, objective, given)
        losses.append(abs(one - other))
        if number:  # the first round warms up
            times.append((quick, slow))
    ratios = [slow / quick for quick, slow in times]
    return {
        "text_rows": text,
        "speedup": round(statistics.median(ratios), 3),
        "quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)[::2]],
        "seconds": [round(statistics.median(column), 3) for column in zip(*times, strict=True)],
        "largest_difference_of_losses": max(losses),
    }


def operations(tokens: int = 512) -> dict[str, Any]:
    """Operations (10^12) of one row through the 11B model, forward: its text, and one image of four tiles."""
    with torch.device("meta"):
        model = llama3_2_vision_11b()
    parts, sizes = model.parts(), {name: p.numel() for name, p in model.named_parameters()}
    read = [name for name in parts["decoder"] + parts["fusion"] if "tok_embeddings" not in name]
    vision = model.meta_vision(BatchShape(batch=1, tokens=tokens, images=1, tiles=4, size=560))
    with torch.no_grad(), FlopCounterMode(display=False) as of_image:
        model.encode(vision)
    counts = {"text": 2 * tokens * sum(sizes[name] for name in read), "padding_image": of_image.get_total_flops()}
    return {"tokens": tokens, **{name: round(count / 1e12, 2) for name, count in counts.items()}}


def main() -> int:
    """Time every share of text rows and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "text_rows.json")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    torch.set_num_threads(1)
    found = []
    for text in SHARES:
        found.append(compare(options.batch_size, text, options.rounds))
        print(json.dumps(found[-1]), flush=True)
    result = {
        **stamp(sys.argv[0], sys.argv[1:]),
        "batch_size": options.batch_size,
        "steps": found,
        "llama3_2_vision_11b": operations(),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
