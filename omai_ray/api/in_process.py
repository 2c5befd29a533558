"""Requests that come in no HTTP request: the lines of batches, answered as any other."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.requests import Request
from starlette.types import Message, Scope

from omai_ray.api.accounting import Accountant
from omai_ray.api.backends import ServedModels
from omai_ray.api.context import RequestContext
from omai_ray.api.endpoints import endpoints_of
from omai_ray.api.failures import internal_error, render_error
from omai_ray.batches.answering import Answered, LineRequest
from omai_ray.errors import OMAiError
from omai_ray.telemetry.logs import request_id_var

_KEEP_ALIVE_S = 3600.0  # of streams, of which there are none
_log = logging.getLogger(__name__)


class InProcessApi:
    """The API's endpoints without a server; who asks is known."""

    def __init__(self, models: ServedModels, accountant: Accountant) -> None:
        self._endpoints = {
            str(path): handler
            for path, handler in endpoints_of(models, accountant, _KEEP_ALIVE_S).items()
        }

    async def answer(self, request: LineRequest) -> Answered:
        """Return what the endpoint answers, an error's envelope where it fails.

        Cancelled, it ends at once, unless the answer is being charged: then it is returned.
        """
        request_id_var.set(request.request_id)
        context = RequestContext(
            request.request_id,
            time.perf_counter(),
            batch_id=request.batch_id,
            recorded_as=request.usage_id,
        )
        answering = asyncio.create_task(self._answer(request, context))
        while True:
            try:
                return await asyncio.shield(answering)
            except asyncio.CancelledError:
                if answering.cancelled() or not context.charged:
                    answering.cancel()
                    await asyncio.wait({answering})
                    raise

    async def _answer(self, request: LineRequest, context: RequestContext) -> Answered:
        exchange = _Exchange(request, context)
        try:
            answering = Request(exchange.scope, exchange.receive)
            response = await self._endpoints[request.endpoint](answering)
        except OMAiError as error:
            response = render_error(error)
        except Exception:  # as in FailureMiddleware: the answer has the envelope, the log the cause
            _log.exception("unhandled error")
            response = render_error(internal_error())
        await response(exchange.scope, exchange.receive, exchange.send)
        return Answered(exchange.status, bytes(exchange.body), context.usage)


class _Exchange:
    """One request and its response; whoever asks stays until it is there."""

    def __init__(self, request: LineRequest, context: RequestContext) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": request.endpoint,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "state": {"principal": request.principal, "context": context},
        }
        self.status = 500
        self.body = bytearray()
        self._sent: bytes | None = request.body

    async def receive(self) -> Message:
        """Return the body, then never anything."""
        if self._sent is None:
            await asyncio.get_running_loop().create_future()
        body, self._sent = self._sent, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Take a part of the response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.body += message.get("body", b"")
