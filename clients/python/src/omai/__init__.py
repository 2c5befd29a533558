"""The OMAi API for Python."""

from openai import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncStream,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ContentFilterFinishReasonError,
    InternalServerError,
    LengthFinishReasonError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    Stream,
    Timeout,
    UnprocessableEntityError,
)
from openai import OpenAIError as OMAiError

from omai import types
from omai._client import AsyncOMAi, OMAi
from omai._credentials import CredentialsError
from omai._version import __version__

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncOMAi",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "ConflictError",
    "ContentFilterFinishReasonError",
    "CredentialsError",
    "InternalServerError",
    "LengthFinishReasonError",
    "NotFoundError",
    "OMAi",
    "OMAiError",
    "PermissionDeniedError",
    "RateLimitError",
    "Stream",
    "Timeout",
    "UnprocessableEntityError",
    "__version__",
    "types",
]
