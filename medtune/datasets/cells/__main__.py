"""`python -m medtune.datasets.cells tokenizer|preview`: the two commands that make files from rendered cells."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from medtune.datasets.cells.preview import write_contact_sheet
from medtune.datasets.cells.tokenizer import build_tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name (those of the process by default)."""
    parser = argparse.ArgumentParser(prog="python -m medtune.datasets.cells", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer", help="train the mini family's tokenizer")
    tokenizer.add_argument("--out", type=Path, required=True, help="folder for the tokenizer's files")
    tokenizer.add_argument("--vocab-size", type=int, default=1024)
    tokenizer.add_argument("--seed", type=int, default=0)
    preview = commands.add_parser("preview", help="draw a contact sheet, one cell type a row")
    preview.add_argument("--out", type=Path, required=True, help="image file to write")
    preview.add_argument("--columns", type=int, default=12)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--natural", type=float, default=1.0, help="share of cells with WBCAtt's frequencies")
    chosen = parser.parse_args(arguments)
    if chosen.command == "tokenizer":
        build_tokenizer(chosen.out, chosen.vocab_size, chosen.seed)
    else:
        write_contact_sheet(chosen.out, chosen.columns, chosen.seed, chosen.natural)
    print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()
