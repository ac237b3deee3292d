"""Servers on loopback that tests read from and write to: a proxy that spoils answers, and plain files."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from reshard.cli.main import main

Kind = Literal["500", "503", "403", "cut", "cut-early", "slow"]
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(frozen=True)
class Request:
    """What was asked; ``number`` counts all requests of a proxy from 1, ``at_once`` those under way when it came."""

    number: int
    method: str
    path: str
    range: str
    nbytes: int
    at_once: int = 0

    @property
    def key(self) -> str:
        return self.path.partition("?")[0]


Spoil = Callable[[Request], "Kind | None"]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def told(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """Run the program in this process."""
    capsys.readouterr()
    try:
        main([str(word) for word in words])
        code = 0
    except SystemExit as left:
        code = int(left.code or 0)
    captured = capsys.readouterr()
    return Said(code, captured.out, captured.err)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    content = body if body is not None or method != "PUT" else b""
    headers = {"Content-Type": "application/octet-stream", "Authorization": _SIGNED}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=content, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: bytes = answer.read()
        return found


@dataclass
class Proxy:
    """Stands before a server, notes every request, and spoils the answers that ``spoil`` picks."""

    target: int
    requests: list[Request] = field(default_factory=list)
    spoil: Spoil = lambda request: None
    slow_s: float = 0.0
    most_at_once: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._server = _Server(_Spoiling, self)
        self.port = self._server.server_address[1]

    def entered(self, more: int) -> None:
        with self._lock:
            self._inside += more
            self.most_at_once = max(self.most_at_once, self._inside)

    def note(self, method: str, path: str, range_: str, nbytes: int) -> Request:
        with self._lock:
            self.requests.append(Request(len(self.requests) + 1, method, path, range_, nbytes, self._inside))
            return self.requests[-1]

    def count(self, method: str, part: str = "") -> int:
        return sum(r.method == method and part in r.path for r in self.requests)

    def close(self) -> None:
        self._server.end()


class _Spoiling(BaseHTTPRequestHandler):
    """Passes a request on, and its answer back, unless the proxy spoils it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def proxy(self) -> Proxy:
        assert isinstance(self.server.owner, Proxy)
        return self.server.owner

    def log_message(self, *args: object) -> None:
        pass

    def do_any(self) -> None:
        self.proxy.entered(1)
        try:
            self.pass_on()
        finally:
            self.proxy.entered(-1)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

    def pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # who asked was killed
            self.close_connection = True
            return
        kind = self.proxy.spoil(self.proxy.note(self.command, self.path, self.headers.get("Range", ""), len(body)))
        if kind == "slow":
            time.sleep(self.proxy.slow_s)
        if kind in ("500", "503", "403"):
            self.answer(int(kind), [], b"<Error><Code>Spoilt</Code><Message>by the test</Message></Error>")
        elif kind == "cut-early":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            onward = http.client.HTTPConnection("127.0.0.1", self.proxy.target, timeout=60)
            try:
                onward.request(self.command, self.path, body, dict(self.headers.items()))
                got = onward.getresponse()
                self.answer(got.status, got.getheaders(), got.read(), cut=kind == "cut")
            finally:
                onward.close()

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        # of an answer to HEAD the length is not that of its body
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class S3:
    """A bucket behind a proxy."""

    bucket: str
    server: int
    proxy: Proxy

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def put(self, folder: Path, below: str) -> str:
        """Copy a local folder or file; gives its URL."""
        files = [folder] if folder.is_file() else [p for p in sorted(folder.rglob("*")) if p.is_file()]
        for path in files:
            name = below if folder.is_file() else f"{below}/{path.relative_to(folder)}"
            self.put_bytes(name, path.read_bytes())
        return f"{self.url}/{below}"

    def put_bytes(self, key: str, content: bytes) -> None:
        ask(self.server, "PUT", f"/{self.bucket}/{key}", content)

    def get(self, key: str) -> bytes:
        return ask(self.server, "GET", f"/{self.bucket}/{key}")

    def keys(self, below: str = "") -> list[str]:
        text = ask(self.server, "GET", f"/{self.bucket}?list-type=2&prefix={below}").decode()
        return sorted(part.partition("</Key>")[0] for part in text.split("<Key>")[1:])

    def uploads(self) -> int:
        """Multipart uploads that were begun, and neither completed nor aborted."""
        return ask(self.server, "GET", f"/{self.bucket}?uploads").decode().count("<Upload>")


@dataclass
class Files:
    """A plain file server: content by path, ranges, HEAD; it lists nothing. ``etags`` may be switched off."""

    content: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    cut_next: int = 0
    moved: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    def __post_init__(self) -> None:
        self._server = _Server(_Giving, self)
        self.port = self._server.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.end()


class _Giving(BaseHTTPRequestHandler):
    """Answers for Files."""

    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def files(self) -> Files:
        assert isinstance(self.server.owner, Files)
        return self.server.owner

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        files, asked = self.files, self.headers.get("Range", "")
        files.requests.append(Request(len(files.requests) + 1, self.command, self.path, asked, 0))
        content = files.content.get(self.path)
        if content is not None:
            self.give(content, asked if files.ranges else "")
            return
        moved = files.moved.get(self.path)
        self.send_response_only(302 if moved else 404)
        if moved:
            self.send_header("Location", moved)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def give(self, content: bytes, asked: str) -> None:
        start, stop = 0, len(content)
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(content))
        self.send_response_only(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if self.files.etags:
            self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Last-Modified", "Tue, 24 Nov 2026 10:00:00 GMT")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            self.send(content[start:stop])

    def send(self, body: bytes) -> None:
        if self.files.cut_next and len(body) > 1000:
            self.files.cut_next -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    """Ends the connections that clients keep, so that no thread outlives it."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler], owner: Proxy | Files) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), handler)
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that a test made to give up

    def end(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
