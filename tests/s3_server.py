"""An S3 server on loopback, in memory, that can be told to fail: for tests of object storage.

It speaks what the AWS SDK within pyarrow needs: objects, ranges, multipart uploads, paged lists
with delimiters. Signatures are not checked.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 3  # keys of a list answer, few so that every listing is paged
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class Stored:
    """An object. written: to the millisecond, as S3 tells it in lists."""

    content: bytes
    written: datetime

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


@dataclass
class Fault:
    """What to do instead with the next `times` requests that match."""

    matches: Callable[[str, str], bool]
    status: int | None
    times: float


@dataclass
class S3Server:
    """The state that handlers share. requests: (method, path and query), all of them."""

    buckets: dict[str, dict[str, Stored]] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    page: int = PAGE
    endpoint: str = ""

    def fail(self, status: int | None, times: float = 1, method: str = "", path: str = "") -> None:
        """Answer the next matching requests with a status; with None, not at all."""
        pattern = re.compile(path)
        self.faults.append(
            Fault(lambda m, p: m.startswith(method) and bool(pattern.search(p)), status, times)
        )

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Take the first fault that matches a request."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.matches(method, path):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def s3_server(*buckets: str) -> Iterator[S3Server]:
    """Serve some buckets on a free port."""
    state = S3Server({name: {} for name in buckets})
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), name="s3")
    thread.start()
    try:
        yield state
    finally:
        state.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: S3Server
    protocol_version = "HTTP/1.1"
    timeout = 0.2  # an idle connection ends, so that the server can
    wbufsize = -1  # an answer is one packet
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Stay quiet."""

    def handle_expect_100(self) -> bool:
        """Send it now: the body comes after it."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def do_GET(self) -> None:
        self._handle(self._list if not self._key() else self._get)

    def do_HEAD(self) -> None:
        self._handle(self._head_bucket if not self._key() else self._get)

    def do_PUT(self) -> None:
        self._handle(self._put)

    def do_POST(self) -> None:
        self._handle(self._post)

    def do_DELETE(self) -> None:
        self._handle(self._delete)

    def _handle(self, action: Callable[[], None]) -> None:
        body = self._body()
        fault = self.state.fault_for(self.command, self.path)
        if fault is not None and fault.status is None:
            self.state.stopped.wait()
            self.close_connection = True
            return
        if fault is not None:
            self._error(fault.status or 0, "SlowDown" if fault.status == 503 else "AccessDenied")
            return
        self.body = body
        self.query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query, True).items()}
        if self._bucket() not in self.state.buckets:
            self._error(404, "NoSuchBucket")
            return
        self.objects = self.state.buckets[self._bucket()]
        with self.state.lock:
            action()

    def _bucket(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[0]

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]

    def _body(self) -> bytes:
        """Return the body, its transfer and `aws-chunked` encodings undone."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return _unchunk(body) if "aws-chunked" in self.headers.get("Content-Encoding", "") else body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, name: str, content: str, status: int = 200) -> None:
        text = f'<?xml version="1.0"?><{name} xmlns="{NAMESPACE}">{content}</{name}>'
        self._answer(status, text.encode(), Content_Type="application/xml")

    def _error(self, status: int, code: str) -> None:
        content = f"<Code>{code}</Code><Message>{code} at {escape(self.path)}</Message>"
        self._xml("Error", content, status)

    def _head_bucket(self) -> None:
        self._answer(200, x_amz_bucket_region="us-east-1")

    def _get(self) -> None:
        stored = self.objects.get(self._key())
        if stored is None:
            self._error(404, "NoSuchKey")
            return
        content, status, size = stored.content, 200, len(stored.content)
        headers = {"ETag": stored.etag, "Accept_Ranges": "bytes",
                   "Last_Modified": format_datetime(stored.written, usegmt=True)}  # fmt: skip
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or size - 1)
            content, status = content[first : last + 1], 206
            headers["Content_Range"] = f"bytes {first}-{first + len(content) - 1}/{size}"
        self._answer(status, content, **headers, Content_Length=str(len(content)))

    def _put(self) -> None:
        if upload := self.query.get("uploadId"):
            self.state.uploads[upload][int(self.query["partNumber"])] = self.body
            self._answer(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')
            return
        self._answer(200, ETag=self._store(self.body).etag)

    def _store(self, content: bytes) -> Stored:
        now = datetime.now(UTC)
        stored = Stored(content, now.replace(microsecond=now.microsecond // 1000 * 1000))
        self.objects[self._key()] = stored
        return stored

    def _post(self) -> None:
        names = f"<Bucket>{self._bucket()}</Bucket><Key>{escape(self._key())}</Key>"
        if "uploads" in self.query:
            upload = hashlib.md5(f"{self._key()}{len(self.state.requests)}".encode()).hexdigest()
            self.state.uploads[upload] = {}
            self._xml("InitiateMultipartUploadResult", f"{names}<UploadId>{upload}</UploadId>")
        elif upload := self.query.get("uploadId", ""):
            parts = self.state.uploads.pop(upload)
            stored = self._store(b"".join(parts[number] for number in sorted(parts)))
            etag = escape(stored.etag)
            self._xml("CompleteMultipartUploadResult", f"{names}<ETag>{etag}</ETag>")
        else:
            keys = re.findall(r"<Key>(.*?)</Key>", self.body.decode())
            for key in keys:
                self.objects.pop(key, None)
            self._xml("DeleteResult", "")

    def _delete(self) -> None:
        if upload := self.query.get("uploadId"):
            self.state.uploads.pop(upload, None)
        else:
            self.objects.pop(self._key(), None)
        self._answer(204)

    def _list(self) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        after = self.query.get("continuation-token", "")
        limit = min(self.state.page, int(self.query.get("max-keys", 1000)))
        seen: list[tuple[str, Stored | None]] = []
        for key in sorted(k for k in self.objects if k.startswith(prefix)):
            rest = key[len(prefix) :]
            folded = delimiter and delimiter in rest
            name = prefix + rest.partition(delimiter)[0] + delimiter if folded else key
            if name > after and (not seen or seen[-1][0] != name):
                seen.append((name, None if folded else self.objects[key]))
        page, more = seen[:limit], len(seen) > limit
        content = f"<Name>{self._bucket()}</Name><KeyCount>{len(page)}</KeyCount>"
        content += f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        if more:
            content += f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>"
        self._xml("ListBucketResult", content + "".join(_listed(*item) for item in page))


def _listed(name: str, stored: Stored | None) -> str:
    if stored is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    written = stored.written.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>{written}</LastModified>"
        f"<ETag>{escape(stored.etag)}</ETag><Size>{len(stored.content)}</Size></Contents>"
    )


def _unchunk(body: bytes) -> bytes:
    """Undo S3's own chunking: sizes with signatures before the chunks, checksums after."""
    content, position = b"", 0
    while True:
        line_end = body.index(b"\r\n", position)
        size = int(body[position:line_end].split(b";")[0], 16)
        if not size:
            return content
        content += body[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2
