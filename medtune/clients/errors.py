"""Errors of a server, as errors of medtune: status and request id, never the server's words.

A server may quote the prompt, a patient's name or the key in its message, its error type or its error code. None of
that is shown.
"""

import re

from medtune.errors import ConfigError, DataError, MedtuneError, ModelError

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class _FromServer(MedtuneError):
    """What a server's reply adds to an error.

    Attributes:
        status: HTTP status; None where no reply came.
        request_id: The server's name of the request, for its log; None where there is none.
    """

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class ServerSetupError(_FromServer, ConfigError):
    """Address, key or model cannot be used, so that no request can pass."""


class RequestRefusedError(_FromServer, DataError):
    """The server refused this request, or answered it without a text; others may pass."""


class ServerFailedError(_FromServer, ModelError):
    """The server stayed away for all attempts, or sent what is no reply."""


def shown_request_id(value: str | None, key: str) -> str | None:
    """A request id that can be shown: one short word that does not hold the key.

    Args:
        value: The server's header ``x-request-id``.
        key: What was sent as the key.
    """
    if not value or not _REQUEST_ID.fullmatch(value) or (key and key in value):
        return None
    return value


def described(status: int | None, request_id: str | None) -> str:
    """``status 500, request id abc``; empty where neither is known."""
    known = [f"status {status}" if status else "", f"request id {request_id}" if request_id else ""]
    return ", ".join(word for word in known if word)
