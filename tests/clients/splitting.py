"""A proxy that passes streams on in pieces of its own choice."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Recorded = tuple[int, list[tuple[str, str]], bytes]
_HOP = frozenset({"connection", "content-length", "date", "host", "server", "transfer-encoding"})


class SplittingProxy(ThreadingHTTPServer):
    """Asks the server each thing once, and repeats what it said, cut as the path's head says.

    /whole/… leaves it whole, /bytes/… sends each byte in a chunk of its own, /7/… cuts at random
    places (seed 7). An HTTP chunk reaches the client's decoder as one piece.
    """

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._upstream = upstream
        self._recorded: dict[tuple[str, bytes], Recorded] = {}
        self._lock = threading.Lock()

    def base_url(self, cut: str) -> str:
        """Return what SDKs are given."""
        return f"http://127.0.0.1:{self.server_port}/{cut}/v1"

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Recorded:
        """Return the server's response to a POST: status, headers, body."""
        with self._lock:
            if (path, body) not in self._recorded:
                connection = http.client.HTTPConnection(self._upstream, timeout=60)
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                self._recorded[path, body] = response.status, response.getheaders(), response.read()
                connection.close()
            return self._recorded[path, body]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SplittingProxy

    def do_POST(self) -> None:
        """Pass a request on, and its response back."""
        _, cut, path = self.path.split("/", 2)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = _end_to_end(dict(self.headers))
        status, answered, answer = self.server.answer(f"/{path}", headers, body)
        self.send_response(status)
        for name, value in _end_to_end(dict(answered)).items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in _pieces(answer, cut):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def _end_to_end(headers: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP}


def _pieces(body: bytes, cut: str) -> Iterator[bytes]:
    if cut == "whole":
        cuts = []
    elif cut == "bytes":
        cuts = list(range(1, len(body)))
    else:
        cuts = sorted(random.Random(int(cut)).sample(range(1, len(body)), len(body) // 9))
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        yield body[start:end]


@contextmanager
def splitting(upstream: str) -> Iterator[SplittingProxy]:
    """Run a proxy in front of the server at host:port."""
    with SplittingProxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()
