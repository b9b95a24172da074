"""Converts errors of a server to medtune's errors: with status and request id, without the server's message.

The message, error type or error code of a server may contain the prompt, a patient's name or the key. So none of them
is shown.
"""

import re

from medtune.errors import ConfigError, DataError, MedtuneError, ModelError

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class _FromServer(MedtuneError):
    """An error with the facts of the server's reply.

    Attributes:
        status: HTTP status; None without a reply.
        request_id: The server's id of the request, for a search in its log; None if it sent none.
    """

    def __init__(self, message: str, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


class ServerSetupError(_FromServer, ConfigError):
    """Address, key or model cannot be used, so no request can succeed."""


class RequestRefusedError(_FromServer, DataError):
    """The server rejected this request, or its reply has no text; other requests may succeed."""


class NoTextError(RequestRefusedError):
    """The reply is well-formed and has no text: the model, or a filter of the server, declined to answer.

    Attributes:
        finish_reason: Why the reply ended, as :class:`medtune.clients.messages.ChatReply` has it.
        prompt_tokens: Tokens of the request that the server counted.
        completion_tokens: Tokens of the reply that the server counted.
    """

    finish_reason = ""
    prompt_tokens = completion_tokens = 0


class ServerFailedError(_FromServer, ModelError):
    """All attempts failed, or the server sent an invalid reply."""


def shown_request_id(value: str | None, key: str) -> str | None:
    """Return the request id if it is safe to show: one short word that does not contain the key; else None.

    Args:
        value: The server's header ``x-request-id``.
        key: The key that was sent.
    """
    if not value or not _REQUEST_ID.fullmatch(value) or (key and key in value):
        return None
    return value


def described(status: int | None, request_id: str | None) -> str:
    """Return a text such as ``status 500, request id abc``; empty if neither is known."""
    known = [f"status {status}" if status else "", f"request id {request_id}" if request_id else ""]
    return ", ".join(word for word in known if word)
