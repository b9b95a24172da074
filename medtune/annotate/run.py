"""`medtune annotate`: prepares the questions, hands out tokens, and runs the page until it is told to stop."""

import argparse
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.types import ASGIApp

from medtune.annotate.agreement import agreement, agreement_text
from medtune.annotate.app import Desk, create_app
from medtune.annotate.exchange import take_preferences, write_preferences
from medtune.annotate.items import check_images, read_items, with_captions
from medtune.annotate.pictures import Pictures
from medtune.annotate.shares import Shares
from medtune.annotate.store import Store
from medtune.data.images import ImageRoot
from medtune.datasets.figure_captions import read_figures
from medtune.errors import ConfigError
from medtune.judges.annotations import FIELDS
from medtune.judges.candidates import Candidate
from medtune.serving.guard import is_loopback
from medtune.serving.local_server import LocalServer

_DAY = 86400
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Prepared:
    """What a command names, read and checked.

    Attributes:
        rows: The questions.
        root: Where their images lie.
        shares: How they are divided.
        summary: For the terminal.
    """

    rows: list[Candidate]
    root: ImageRoot | None
    shares: Shares
    summary: str


def page_server(app: ASGIApp, arguments: argparse.Namespace, listening: Callable[[str], None]) -> LocalServer:
    """Return the server of the page; it listens when it is run.

    Args:
        app: The application.
        arguments: Address and certificate.
        listening: Called with the page's address once it is served.
    """
    return LocalServer(
        app,
        arguments.host,
        arguments.port,
        "/",
        "; stop with Ctrl-C",
        listening,
        limit_concurrency=512,
        timeout_graceful_shutdown=5,
        ssl_certfile=arguments.cert,
        ssl_keyfile=arguments.key,
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    check(arguments)
    if arguments.export is not None or arguments.agreement:
        with Store(arguments.store) as store:
            _results(store, arguments)
        return 0
    prepared = prepare(arguments)
    print(prepared.summary)
    if arguments.dry_run:
        print("dry run: nothing was written")
        return 0
    with Store(arguments.store, create=True) as store:
        store.prepare(prepared.rows, arguments.annotator, prepared.shares)
        if arguments.take is not None:
            count = take_preferences(store, arguments.take, _fields(arguments.field))
            print(f"{arguments.take}: {count} choices are in {store.path}")
            return 0
        if not store.annotators():
            raise ConfigError("nobody annotates yet: give --annotator NAME, once for each")
        desk = Desk(store, prepared.shares, Pictures(prepared.root))
        hosts = ("localhost", "127.0.0.1", "::1", arguments.host.lower()) if is_loopback(arguments.host) else ()
        check_renewed(store, arguments.renew)
        listening = partial(hand_out, store, arguments.renew, arguments.days)
        _serve(page_server(create_app(desk, hosts), arguments, listening), arguments)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuse arguments that do not fit together.

    Raises:
        ConfigError: With what to give instead.
    """
    if not is_loopback(arguments.host) and not (arguments.cert and arguments.key):
        raise ConfigError(
            f"--host {arguments.host} can be reached from other machines, and tokens would not be encrypted: "
            "give --cert and --key, or keep 127.0.0.1 behind an SSH tunnel"
        )
    if bool(arguments.cert) != bool(arguments.key):
        raise ConfigError("--cert and --key belong together: give both")
    for path in filter(None, (arguments.cert, arguments.key)):
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; give the certificate and its key as PEM files")
    if not 0 <= arguments.port < 65536:
        raise ConfigError(f"--port {arguments.port} is not from 0 to 65535")
    if not arguments.days > 0:
        raise ConfigError(f"--days {arguments.days:g}: a token must be valid for some time")
    names = [*arguments.annotator, *arguments.renew]
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME or name != name.strip():
            raise ConfigError(f"--annotator {name!r}: give a name of at most {_LONGEST_NAME} letters")
    if arguments.format is not None and arguments.export is None:
        raise ConfigError("--format says how --export writes: give --export FILE too")


def prepare(arguments: argparse.Namespace) -> Prepared:
    """Read the questions, their captions and the headers of their images; nothing is written.

    Raises:
        MedtuneError: If something does not fit.
    """
    shares = Shares(arguments.seed, arguments.overlap, arguments.raters)
    items = read_items(arguments.data, _fields(arguments.field))
    figures = {} if arguments.captions is None else read_figures(arguments.captions)
    rows, without = with_captions(items.rows, figures)
    root = None if arguments.images is None else ImageRoot(arguments.images)
    check_images(rows, root)
    lines = [
        f"{len(rows)} questions, {sum(len(row.images) for row in rows)} images"
        + (f"; {without} have no caption" if without else ""),
        f"{_division(shares, [row.id for row in rows])} (seed {shares.seed})",
    ]
    if items.unusable:
        lines.append(f"{items.unusable} left out: an answer is empty, or both are equal")
    return Prepared(rows, root, shares, "\n".join(lines))


def _division(shares: Shares, items: Sequence[str]) -> str:
    """Say in words how many questions go to several annotators, and how many to one."""
    shared = len(shares.shared(items))
    several = f"{shares.raters} annotators" if shares.raters else "all annotators"
    if not shared:
        return "each question goes to one annotator"
    if shared == len(items):
        return f"each question goes to {several}"
    goes, rest = "goes" if shared == 1 else "go", len(items) - shared
    return f"{shared} of them {goes} to {several}, the other {'one' if rest == 1 else rest} to one annotator each"


def check_renewed(store: Store, names: Sequence[str]) -> None:
    """Refuse a new token for a name that nobody has.

    Raises:
        ConfigError: Naming the known ones.
    """
    known = store.annotators()
    for name in names:
        if name not in known:
            raise ConfigError(f"--renew {name!r}: there is no such annotator; there are {', '.join(known)}")


def hand_out(store: Store, renewed: Sequence[str], days: float, url: str) -> None:
    """Print a link with a new token for everybody who has none, and for those to renew.

    A token is printed this once; the store has only its hash. It stands behind the ``#`` of the link, which browsers do
    not send and servers do not log.

    Args:
        store: Where annotators are.
        renewed: Names whose token ends and is replaced.
        days: How long the new tokens are valid.
        url: The page's address.
    """
    for name, has_token in store.annotators().items():
        if not has_token or name in renewed:
            token = secrets.token_urlsafe(32)
            store.set_token(name, token, time.time() + days * _DAY)
            print(f"{name}: {url}#token={token}", flush=True)


def _results(store: Store, arguments: argparse.Namespace) -> None:
    if arguments.export is not None:
        count = write_preferences(store, arguments.export, arguments.format or "jsonl")
        print(f"{arguments.export}: {count} choices")
    if arguments.agreement:
        print(agreement_text(agreement((row.id, name, choice.preference) for row, name, choice in store.choices())))


def _fields(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, separator, value in pairs:
        if name not in FIELDS or not separator or not value:
            raise ConfigError(f"--field {name}: write NAME=FIELD with a NAME of {', '.join(FIELDS)}")
    return {name: value for name, _, value in pairs}


def _serve(server: LocalServer, arguments: argparse.Namespace) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        server.run()
    except SystemExit:  # uvicorn's answer to an address that is in use
        raise ConfigError(
            f"the page cannot listen on {arguments.host}:{arguments.port}; is it in use? Take another: --port 8011"
        ) from None
    except KeyboardInterrupt:
        pass
