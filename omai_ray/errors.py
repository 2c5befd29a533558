"""One tree of domain errors, each knowing the answer a client gets.

The API maps an error to its envelope in one place; the command line prints `message` and exits
with status 1. Nothing else turns exceptions into text for users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

INTERRUPTED = 130
"""The exit status of a command that SIGINT or SIGTERM ended."""


class OMAiError(Exception):
    """A failure that is meant to be shown to whoever caused it.

    message: text for the client: names the field, the value and the limit, never a secret.
    param: the request field at fault, where there is one.
    code: a machine-readable reason; the class's own by default.
    headers: extra response headers (Retry-After and the like).
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling between replicas with every attribute."""
        return (_rebuild, (type(self), self.__dict__))

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return the wire form: `{"error": {message, type, param, code}}`, all keys present."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def _rebuild(cls: type[OMAiError], state: dict[str, Any]) -> OMAiError:
    error = cls.__new__(cls)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class ConfigError(OMAiError):
    """A setting, a catalog entry or a command's argument that cannot be used."""


class NotFetched(ConfigError):
    """A model of the hub whose files are not here yet."""


class CheckpointError(ConfigError):
    """A model directory that cannot, or must not, be loaded."""


class InvalidRequest(OMAiError):
    """The request cannot be served as sent."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_value"


class ContextTooLong(InvalidRequest):
    """The prompt, or an input, has more tokens than the model accepts."""

    default_code = "context_length_exceeded"


class Unauthorized(OMAiError):
    """No usable credentials were sent."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class PermissionDenied(OMAiError):
    """The caller is known and may not do this."""

    status = 403
    type = "permission_denied"
    default_code = "permission_denied"


class NotFound(OMAiError):
    """There is no such thing, or none that the caller may see."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class ModelNotFound(NotFound):
    """No served model has that name."""

    default_code = "model_not_found"


class MethodNotAllowed(OMAiError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"
    default_code = "method_not_allowed"


class PayloadTooLarge(OMAiError):
    """The body exceeds the limit; it was not read to its end."""

    status = 413
    type = "invalid_request_error"
    default_code = "payload_too_large"


class RangeNotSatisfiable(OMAiError):
    """The part of the content that is asked for lies beyond its end."""

    status = 416
    type = "invalid_request_error"
    default_code = "range_not_satisfiable"


class InsufficientStorage(OMAiError):
    """The server's disk is full."""

    status = 507
    default_code = "insufficient_storage"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        given = {"x-should-retry": "false", **(headers or {})}
        super().__init__(message, param=param, code=code, headers=given)


class HeadersTooLarge(OMAiError):
    """There are too many headers, or they are too long."""

    status = 431
    type = "invalid_request_error"
    default_code = "headers_too_large"


class UnsupportedMediaType(OMAiError):
    """The body is not of the kind that the route reads."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_media_type"


class RateLimited(OMAiError):
    """A tier's bucket is empty for now (`limited` says which), or can never hold the request.

    limited: `requests` or `tokens`, the wire's error type. reason: what stood in the way, where
    that says more.
    """

    status = 429
    default_code = "rate_limit_exceeded"

    def __init__(
        self,
        message: str,
        *,
        limited: str,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, headers=headers)
        self.limited = limited
        self.reason = reason or limited

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return the wire form, its type being the limit that was hit."""
        body = super().envelope()
        body["error"]["type"] = self.limited
        return body


class QuotaExceeded(OMAiError):
    """The account's budget is used up: waiting a minute does not help."""

    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"


class ServerError(OMAiError):
    """An unexpected failure: the cause is in the log under the request id."""

    default_code = "internal_error"


class Overloaded(OMAiError):
    """A queue is full or a dependency is away; the same request may work later, in 1 s if not said.

    headers: Retry-After, in whole seconds, gives retry-after-ms where that is left out.
    """

    status = 503
    default_code = "server_is_overloaded"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        given = {"Retry-After": "1", **(headers or {})}
        given.setdefault("retry-after-ms", str(int(given["Retry-After"]) * 1000))
        super().__init__(message, param=param, code=code, headers=given)
