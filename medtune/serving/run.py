"""Runs the server in this process until it is told to stop."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator
from types import FrameType

from starlette.types import ASGIApp

from medtune.errors import ConfigError
from medtune.serving.app import Api, create_app
from medtune.serving.chat import Defaults
from medtune.serving.config import ServeConfig, settings_of
from medtune.serving.engine_api import EngineApi
from medtune.serving.guard import check_exposure, is_loopback
from medtune.serving.loading import load, separator_of
from medtune.serving.local_server import LocalServer
from medtune.serving.memory import dry_run
from medtune.serving.metrics import Metrics
from medtune.serving.remote_images import RemoteImages
from medtune.serving.upstream import open_upstream
from medtune.serving.worker import Worker

log = logging.getLogger("medtune.serving")
_GRACE = 5


class Server(LocalServer):
    """A web server that lets requests end when it is told to stop.

    Args:
        app: The application.
        api: Answers the requests.
        config: Address and limits.
    """

    def __init__(self, app: ASGIApp, api: Api, config: ServeConfig) -> None:
        super().__init__(
            app,
            config.host,
            config.port,
            "/v1",
            limit_concurrency=config.limits.connections,
            timeout_graceful_shutdown=int(config.limits.stop_seconds) + _GRACE,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self.api = api

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests, and end when the others have ended; at the second signal at once."""
        if self.should_exit:
            self.force_exit = True
        else:
            log.info("stopping: running requests have %g s", self.api.limits.stop_seconds)
        self.api.stop()
        self.should_exit = True


@contextlib.contextmanager
def opened(config: ServeConfig) -> Iterator[Server]:
    """Load what a config names, and return the server, which is not yet running.

    Raises:
        MedtuneError: If something does not fit, or the address needs a token.
    """
    token = config.token()
    check_exposure(config.host, token)
    api = open_upstream(config) if config.upstream else open_engine(config)
    try:
        print(f"serving {', '.join(api.names)}", file=sys.stderr)
        yield server_of(config, api, token)
    finally:
        api.close()


def open_engine(config: ServeConfig) -> EngineApi:
    """Load the model of a config, and start its engine."""
    served, metrics = load(config), Metrics()
    limits, hosts = config.limits, config.allow_image_hosts
    fetch = RemoteImages(hosts, limits.body_bytes, limits.image_seconds) if hosts else None
    defaults = Defaults(config.max_new_tokens, config.sampling, config.images, separator_of(served.prompts), fetch)
    return EngineApi(served, Worker(served.open_engine, config.limits, metrics), config.limits, defaults, metrics)


def server_of(config: ServeConfig, api: Api, token: str | None) -> Server:
    """Return the server; it listens when it is run."""
    hosts = ("localhost", "127.0.0.1", "::1", config.host.lower()) if is_loopback(config.host) and not token else ()
    return Server(create_app(api, token, hosts), api, config)


def run(arguments: argparse.Namespace) -> int:
    """``medtune serve``."""
    upstream = [f"upstream={arguments.upstream}"] if arguments.upstream else []
    config = settings_of(arguments.source, [*arguments.overrides, *upstream])
    if arguments.dry_run:
        config.token()
        check_exposure(config.host, config.token())
        print(dry_run(config))
        return 0
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("medtune.serving").setLevel(logging.INFO)
    with opened(config) as server:
        try:
            server.run()
        except SystemExit:  # uvicorn's answer to an address that is in use
            raise ConfigError(
                f"the server cannot listen on {config.host}:{config.port}; is the port in use? Take another: port=8001"
            ) from None
        except KeyboardInterrupt:
            pass
    return 0
