"""Peers that accept connections, and speak no HTTP, or not to its end."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

OK = b"HTTP/1.1 200 OK\r\n"
# With it, closing sends a reset instead of an orderly end.
_RESET = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def peer(answer: bytes, *, resets: bool = False) -> Iterator[str]:
    """Give the address of a peer that answers each connection with these bytes, and ends it."""

    def serve() -> None:
        while not ended.is_set():
            connection = listener.accept()[0]
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)
                if resets:
                    connection.setsockopt(*_RESET)
                else:
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        address = listener.getsockname()
        try:
            yield f"{address[0]}:{address[1]}"
        finally:
            ended.set()
            socket.create_connection(address).close()
            thread.join()
