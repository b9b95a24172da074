"""The arguments of ``medtune annotate``; no large package is imported here."""

import argparse
from pathlib import Path
from typing import Any


def add_annotate(commands: Any) -> argparse.ArgumentParser:
    """Add the command, and return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "annotate",
        help="show clinicians two answers to each question, and store which is better",
        description="A page on which clinicians choose the better of two answers. It listens on the loopback address; "
        "each annotator has a token, printed once as a link. Stop with Ctrl-C; the same command goes on.",
        epilog="Results: medtune annotate DATA --export preferences.jsonl, and --agreement for the kappas.",
    )
    parser.add_argument(
        "data",
        type=Path,
        metavar="DATA",
        help="JSON Lines of questions with two answers, or tasks of Label Studio (JSON)",
    )
    parser.add_argument("--images", type=Path, metavar="ROOT", help="folder or .tar of the images")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE", help="JSON or JSON Lines of captions and mentions, by id or image"
    )
    parser.add_argument(
        "--annotator", action="append", default=[], metavar="NAME", help="who annotates; once for each person"
    )
    parser.add_argument(
        "--store", type=Path, default=Path("annotations.sqlite"), metavar="FILE", help="default: annotations.sqlite"
    )
    share = parser.add_argument_group("shares")
    share.add_argument(
        "--overlap",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of questions for several people (default: 0.2)",
    )
    share.add_argument(
        "--raters", type=int, default=0, metavar="N", help="people for each of these questions (default: 0, all)"
    )
    share.add_argument("--seed", type=int, default=0, help="of shares, orders and sides (default: 0)")
    access = parser.add_argument_group("access")
    access.add_argument("--host", default="127.0.0.1", help="any other than loopback needs --cert and --key")
    access.add_argument("--port", type=int, default=8010, help="default: 8010; 0 takes a free one")
    access.add_argument("--cert", type=Path, metavar="PEM", help="certificate for HTTPS")
    access.add_argument("--key", type=Path, metavar="PEM", help="key of the certificate")
    access.add_argument(
        "--renew", action="append", default=[], metavar="NAME", help="give this person a new token; the old one ends"
    )
    access.add_argument("--days", type=float, default=30, metavar="N", help="validity of new tokens (default: 30 days)")
    files = parser.add_argument_group("files")
    files.add_argument("--export", type=Path, metavar="FILE", help="write all choices to FILE, and end")
    files.add_argument("--format", choices=("jsonl", "label_studio"), help="of --export (default: jsonl)")
    files.add_argument("--agreement", action="store_true", help="print how far annotators agree, and end")
    files.add_argument(
        "--import", dest="take", type=Path, metavar="FILE", help="take choices of JSON Lines or Label Studio, and end"
    )
    files.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=FIELD",
        help="how a Label Studio project calls id, question, image, first or second",
    )
    parser.add_argument("--dry-run", action="store_true", help="check questions and images, print the shares, and end")
    return parser
