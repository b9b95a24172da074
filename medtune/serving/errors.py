"""Errors of the API, in the form in which OpenAI's clients expect them. A message never repeats text of a request."""

from collections.abc import Sequence
from typing import Any

from medtune.errors import DataError, MedtuneError
from medtune.models.common.chat_template import SampleTooLong

INVALID = "invalid_request_error"
SERVER = "server_error"


class ApiError(Exception):
    """An error that a client is told.

    Args:
        status: HTTP status.
        message: What is wrong and what to do.
        kind: OpenAI's ``type`` of the error.
        param: The parameter that is meant; None if there is none.
        code: A short name that programs can compare.
        headers: Further HTTP headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class RefusedImageError(DataError):
    """An image of a request cannot be used."""


def refused(param: str, message: str, code: str | None = None) -> ApiError:
    """Return the error for a request that the client must change."""
    return ApiError(400, message, param=param, code=code)


def unknown_model(names: Sequence[str]) -> ApiError:
    """Return the error for a model that is not in ``/v1/models``."""
    return ApiError(
        404, f"this model is not served; there are {', '.join(names)}", param="model", code="model_not_found"
    )


def busy(message: str, seconds: int) -> ApiError:
    """Return the error for a full queue; the client may come again after so many seconds."""
    headers = {"Retry-After": str(seconds)}
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=headers)


def stopping() -> ApiError:
    """Return the error while the server ends."""
    return ApiError(
        503, "the server is stopping; try again later", kind=SERVER, code="stopping", headers={"Retry-After": "30"}
    )


def overdue(seconds: float) -> ApiError:
    """Return the error for a request that took too long."""
    return ApiError(504, f"the answer took longer than {seconds:g} s; ask for less", kind=SERVER, code="timeout")


def internal() -> ApiError:
    """Return the error for a fault of the server, which tells nothing of it."""
    return ApiError(500, "the server failed on this request; its log says where", kind=SERVER, code="internal_error")


def of_engine(error: MedtuneError) -> ApiError:
    """Return the error for a request that the engine could not answer."""
    if isinstance(error, SampleTooLong):
        return refused("messages", str(error), "context_length_exceeded")
    if isinstance(error, RefusedImageError):
        return refused("messages", str(error), "invalid_image")
    return refused("messages", str(error)) if isinstance(error, DataError) else internal()
