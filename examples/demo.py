"""The platform in two minutes: `make demo`, or `python examples/demo.py [--port P] [--exit]`.

Starts it, makes an account and a key, and shows over HTTP what it does: chat, a stream,
embeddings, a rate limit, and a parquet corpus embedded in bulk. Every figure shown is measured.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from sample_corpus import passages, write_corpus

DIRECTORY = Path(__file__).resolve().parent.parent / ".demo"
STATE, CORPUS, VECTORS = DIRECTORY / "state", DIRECTORY / "corpus", DIRECTORY / "embedded"
COMMAND = str(Path(sys.executable).parent / "omai-ray")
CORPUS_ROWS = 6000
CHAT = {
    "model": "omai-gpt-4",
    "messages": [{"role": "user", "content": "Hello, how are you?"}],
    "temperature": 0.7,
    "max_tokens": 1000,
}
EMBEDDING = {
    "model": "text-embedding-ada-002",
    "input": "The quick brown fox jumps over the lazy dog",
}
BASIC_LIMIT = 60


class Api:
    """Calls the API with one key."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and JSON body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), self._headers)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, json.loads(response.read())
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the JSON of each event."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        try:
            connection.request("POST", path, json.dumps(body), self._headers)
            response = connection.getresponse()
            expect(response.status == 200, f"the stream answered {response.status}")
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line.removeprefix(b"data: "))
        finally:
            connection.close()


def expect(holds: bool, problem: str) -> None:
    """End the demo, with status 1, where something is not as it must be."""
    if not holds:
        raise SystemExit(f"\nthe demo failed: {problem} (log: {STATE / 'omai.log'})")


def heading(text: str) -> None:
    """Print a step's title."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def start_server(port: int) -> subprocess.Popen[str]:
    """Start the platform as a process of its own."""
    heading("1  Starting: Ray, the ingress, a chat model, an embedding model")
    return subprocess.Popen(
        [COMMAND, "serve", "--port", str(port), "--state-dir", str(STATE)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends the server
    )


def wait_until_ready(server: subprocess.Popen[str], begun: float) -> None:
    """Wait until the server answers, saying how long that takes."""
    ready = threading.Event()
    threading.Thread(target=show_waiting, args=(ready, begun), daemon=True).start()
    line = read_line(server.stdout)
    ready.set()
    expect(line.startswith("ready "), "the server did not start; its message is above")
    print(f"\r   {line.strip()} after {time.perf_counter() - begun:.1f} s    ", flush=True)


def read_line(stream: IO[str] | None) -> str:
    """Return the server's next line, empty at its end."""
    return stream.readline() if stream else ""


def show_waiting(ready: threading.Event, begun: float) -> None:
    """Count the seconds until ready, on a terminal."""
    while sys.stdout.isatty() and not ready.wait(0.5):
        print(f"\r   {time.perf_counter() - begun:.0f} s", end="", flush=True)


def create_key(tier: str) -> str:
    """Create an account of a tier, and return its key."""
    command = [COMMAND, "keys", "create", "--tier", tier, "--state-dir", str(STATE), "--quiet"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    expect(done.returncode == 0, "no key could be created")
    return str(done.stdout).strip()


def show_chat(api: Api) -> None:
    """Send the API reference's chat request."""
    heading("3  POST /v1/chat/completions")
    print(f"   user       {CHAT['messages'][0]['content']}")  # type: ignore[index]
    begun = time.perf_counter()
    status, _, body = api.post("/v1/chat/completions", CHAT)
    elapsed_ms = (time.perf_counter() - begun) * 1000
    expect(status == 200, f"chat answered {status}: {body}")
    print(f"   assistant  {body['choices'][0]['message']['content']}")
    print(f"   {elapsed_ms:.0f} ms, usage {body['usage']}")


def show_stream(api: Api) -> None:
    """Send it again, streamed."""
    heading("4  The same, streamed")
    begun = time.perf_counter()
    first_ms, tokens = None, 0
    print("   assistant  ", end="")
    body = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    for event in api.stream("/v1/chat/completions", body):
        expect("error" not in event, f"the stream failed: {event}")
        for choice in event["choices"]:
            text = choice["delta"].get("content") or ""
            if text and first_ms is None:
                first_ms = (time.perf_counter() - begun) * 1000
            print(text, end="", flush=True)
        tokens = event["usage"]["completion_tokens"] if event["usage"] else tokens
    elapsed_s = time.perf_counter() - begun
    expect(first_ms is not None, "the stream had no text")
    print(f"\n   first text after {first_ms:.0f} ms, {tokens} tokens in {elapsed_s * 1000:.0f} ms")


def show_embedding(api: Api) -> None:
    """Send the API reference's embeddings request."""
    heading("5  POST /v1/embeddings")
    begun = time.perf_counter()
    status, _, body = api.post("/v1/embeddings", EMBEDDING)
    elapsed_ms = (time.perf_counter() - begun) * 1000
    expect(status == 200, f"embeddings answered {status}: {body}")
    vector = body["data"][0]["embedding"]
    shown = ", ".join(f"{value:.4f}" for value in vector[:4])
    print(f"   [{shown}, …]: {len(vector)} dimensions in {elapsed_ms:.0f} ms, {body['usage']}")


def show_rate_limit(port: int) -> None:
    """Send a Basic account's minute at once, and one request more.

    The limit refills continuously, one request a second: where sending took longer than that,
    the refusal comes as many requests later, and the demo goes on until it does.
    """
    heading(f"6  A Basic key: {BASIC_LIMIT} requests a minute")
    api = Api(port, create_key("basic"))
    body = {"model": EMBEDDING["model"], "input": "Hi"}
    begun = time.perf_counter()
    with ThreadPoolExecutor(BASIC_LIMIT + 1) as pool:
        calls = range(BASIC_LIMIT + 1)
        answers = list(pool.map(lambda _: api.post("/v1/embeddings", body), calls))
    while all(status == 200 for status, _, _ in answers) and len(answers) < 2 * BASIC_LIMIT:
        answers.append(api.post("/v1/embeddings", body))
    elapsed_s = time.perf_counter() - begun
    refused = [answer for answer in answers if answer[0] == 429]
    expect(bool(refused), "no request was refused")
    admitted = sum(status == 200 for status, _, _ in answers)
    print(f"   {len(answers)} requests in {elapsed_s:.1f} s: {admitted} answered, ", end="")
    print(f"{len(refused)} refused")
    status, headers, envelope = refused[0]
    print(f"   {status} {envelope['error']['message']}")
    for name in sorted(headers):
        if name.startswith(("x-ratelimit", "retry-after")):
            print(f"       {name}: {headers[name]}")


def show_bulk() -> None:
    """Embed a parquet corpus, on the same Ray cluster, with the same model class."""
    heading("7  omai-ray embed: a parquet corpus, on Ray Data")
    begun = time.perf_counter()
    rows = passages(CORPUS_ROWS)
    write_corpus(CORPUS, rows)
    elapsed_s = time.perf_counter() - begun
    print(f"   {len(rows)} passages of documentation found on this machine in {elapsed_s:.1f} s")
    arguments = [CORPUS, VECTORS, "--column", "text", "--overwrite"]
    arguments += ["--address", STATE, "--actors", "2"]
    done = subprocess.run([COMMAND, "embed", *map(str, arguments)], check=False)
    expect(done.returncode == 0, f"the bulk job ended with status {done.returncode}")


def show_addresses(port: int) -> None:
    """Say where everything is."""
    cluster = json.loads((STATE / "cluster.json").read_text(encoding="utf-8"))
    heading("Ready for you")
    print(f"   API            http://127.0.0.1:{port}/v1   (key: the one above)")
    print(f"   API reference  http://127.0.0.1:{port}/docs")
    print(f"   Ray dashboard  {cluster['dashboard']}   (token: in {cluster['token_file']})")
    print(f"   vectors        {VECTORS}")
    print(
        f"\n   export OMAI_API_KEY=…   # the key above\n"
        f"   curl http://127.0.0.1:{port}/v1/chat/completions \\\n"
        f'     -H "Authorization: Bearer $OMAI_API_KEY" -H "Content-Type: application/json" \\\n'
        """     -d '{"model": "omai-gpt-4", "messages": [{"role": "user", "content": "Hi!"}]}'"""
    )


def stop(server: subprocess.Popen[str]) -> None:
    """End the server and wait for it."""
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="where the API listens")
    parser.add_argument("--exit", action="store_true", help="leave when all has been shown")
    args = parser.parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    begun = time.perf_counter()
    DIRECTORY.mkdir(exist_ok=True)
    server = start_server(args.port)
    try:
        wait_until_ready(server, begun)
        heading("2  A demo account, and its key (shown this once)")
        key = create_key("pro")
        print(f"   {key}")
        api = Api(args.port, key)
        show_chat(api)
        print(f"   (the first answer came {time.perf_counter() - begun:.1f} s after the start)")
        show_stream(api)
        show_embedding(api)
        show_rate_limit(args.port)
        show_bulk()
        if args.exit:
            print(f"\n   The vectors are in {VECTORS}. Without --exit (EXIT=1) the server stays.")
        else:
            show_addresses(args.port)
            print("\n   Serving until Ctrl-C.", flush=True)
            server.wait()
    except KeyboardInterrupt:
        print("\n   stopping")
    finally:
        stop(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
