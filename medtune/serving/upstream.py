"""Our router before another server: questions are routed here, and answered by the adapters of a vLLM server."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from medtune.clients.openai import NO_KEY, Endpoint
from medtune.data.sample import Sample
from medtune.errors import ConfigError, MedtuneError
from medtune.generation.requests import Request as RoutedRequest
from medtune.routing.extension import ADAPTER, BASE
from medtune.serving.adapters import RoutedModels, open_router
from medtune.serving.app import read_body
from medtune.serving.chat import ChatCall, Defaults, read_call
from medtune.serving.config import ServeConfig
from medtune.serving.errors import SERVER, ApiError, of_engine, stopping, unknown_model
from medtune.serving.images import ReceivedImages
from medtune.serving.limits import Limits
from medtune.serving.metrics import Metrics
from medtune.serving.ticket import ClientGone

log = logging.getLogger("medtune.serving")
ROUTE_HEADERS = {"adapter": "x-medtune-adapter", "task": "x-medtune-task", "score": "x-medtune-score"}


class UpstreamApi:
    """Checks and routes requests, and passes them to one server.

    The reply is that of the other server; its headers ``x-medtune-adapter``, ``x-medtune-task`` and ``x-medtune-score``
    tell the route. Redirects are not followed.

    Args:
        endpoint: Address of the server; ``model`` is its name of the base.
        models: Names of the adapters, and the router.
        adapters: Name here -> name there.
        limits: What one client may ask.
        metrics: Where it counts.

    Raises:
        ConfigError: If the package ``openai`` is not installed, or a key is not set.
    """

    def __init__(
        self, endpoint: Endpoint, models: RoutedModels, adapters: Mapping[str, str], limits: Limits, metrics: Metrics
    ) -> None:
        try:
            import openai
        except ImportError:
            raise ConfigError("upstream needs the package openai: pip install 'medtune[judges]'") from None
        self.models, self.limits, self.metrics = models, limits, metrics
        self.created = int(time.time())
        self._names = {BASE: endpoint.model, **adapters}
        self._url = endpoint.base_url.rstrip("/") + "/chat/completions"
        key = endpoint.read_key()
        headers = {} if key == NO_KEY else {"Authorization": f"Bearer {key}"}
        secure = endpoint.base_url.lower().startswith("https:")
        # As for every server that images go to: no redirects, and no proxy in the clear.
        self._client: Any = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, trust_env=secure, timeout=limits.seconds, headers=headers
        )
        self._running, self._stopping = 0, False
        metrics.watch(lambda: 0, lambda: self._running)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return self.models.names

    def status(self) -> str:
        """Return ``ok`` or ``stopping``."""
        return "stopping" if self._stopping else "ok"

    def stop(self) -> None:
        """Take no new requests."""
        self._stopping = True

    def close(self) -> None:
        """Nothing is left."""

    async def chat(self, request: Request) -> Response:
        """Route a request, and pass it on."""
        started, model, status = time.monotonic(), "-", 500
        routed: Mapping[str, Any] = {}
        try:
            if self._stopping:
                raise stopping()
            raw = await read_body(request, self.limits)
            call = await asyncio.to_thread(read_call, raw, self.limits, Defaults())
            if call.model not in self.names:
                raise unknown_model(self.names)
            model = call.model
            routed = await asyncio.to_thread(self._route, call)
            self.metrics.routed.labels(str(routed["adapter"])).inc()
            reply = await self._pass_on(raw, call, routed)
            status = reply.status_code
            return reply
        except ApiError as error:
            status = error.status
            raise
        except ClientGone:
            status = 499
            raise
        finally:
            self.metrics.requests.labels(model, str(status)).inc()
            told, seconds = routed.get("adapter", "-"), time.monotonic() - started
            log.info("upstream model=%s adapter=%s status=%d seconds=%.3f", model, told, status, seconds)

    def _route(self, call: ChatCall) -> Mapping[str, Any]:
        request = RoutedRequest("upstream", Sample("upstream", (), call.messages), ReceivedImages(1))
        try:
            return self.models.told(self.models.assign(request, call.model, call.question))
        except MedtuneError as error:
            raise of_engine(error) from None

    async def _pass_on(self, raw: bytes, call: ChatCall, route: Mapping[str, Any]) -> Response:
        body = {**json.loads(raw), "model": self._names[route[ADAPTER]]}
        headers = {ROUTE_HEADERS[key]: str(value) for key, value in route.items() if value is not None}
        self._running += 1
        try:
            sent = self._client.build_request("POST", self._url, json=body)
            reply = await self._client.send(sent, stream=True)
        except Exception as error:
            self._running -= 1
            if not type(error).__module__.startswith("httpx"):
                raise
            raise _unreachable(type(error).__name__) from None
        if call.stream and reply.status_code == 200:
            media_type = reply.headers.get("content-type", "text/event-stream")
            return StreamingResponse(self._pieces(reply), 200, headers, media_type=media_type)
        try:
            content = await reply.aread()
        finally:
            self._running -= 1
            await reply.aclose()
        return self._whole(content, reply, route, headers)

    async def _pieces(self, reply: Any) -> AsyncIterator[bytes]:
        """The bytes of a stream; a client that hangs up ends the other connection too."""
        try:
            async for piece in reply.aiter_bytes():
                yield piece
        finally:
            self._running -= 1
            await reply.aclose()

    def _whole(self, content: bytes, reply: Any, route: Mapping[str, Any], headers: dict[str, str]) -> Response:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ApiError(502, "the upstream server sent no JSON", kind=SERVER, code="bad_gateway")
        if reply.status_code in (401, 403):  # its key is ours, not the client's
            raise _unreachable(f"status {reply.status_code}")
        if "retry-after" in reply.headers:
            headers = {**headers, "Retry-After": reply.headers["retry-after"]}
        return JSONResponse({**value, "medtune": dict(route)}, reply.status_code, headers)


def _unreachable(what: str) -> ApiError:
    return ApiError(502, f"the upstream server cannot be asked ({what})", kind=SERVER, code="bad_gateway")


def open_upstream(config: ServeConfig) -> UpstreamApi:
    """Return what passes requests on to the server of a config.

    Raises:
        MedtuneError: If address, key or router cannot be used.
    """
    assert config.upstream is not None
    if config.name is None:
        raise ConfigError("upstream needs name, the name under which that server offers the base model")
    endpoint = Endpoint(config.upstream, config.name, config.upstream_key_env, config.limits.seconds, key="upstream")
    router = open_router(config.router, config.adapters, config.fallback)
    models = RoutedModels(tuple(config.adapters), router, config.threshold, config.fallback)
    return UpstreamApi(endpoint, models, config.adapters, config.limits, Metrics())
