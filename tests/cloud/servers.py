"""Servers on loopback that tests read from and write to: objects, with answers that are spoilt, and plain files."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Literal

import pytest

from reshard.cli.main import main

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from store import Connection, Object, Store

Kind = Literal["500", "503", "403", "cut", "cut-early", "slow", "short", "long"]


@dataclass(frozen=True)
class Request:
    """What was asked; ``number`` counts all requests of a server from 1, ``at_once`` those under way when it came."""

    number: int
    method: str
    path: str
    range: str
    nbytes: int
    at_once: int = 0

    @property
    def key(self) -> str:
        return self.path.partition("?")[0]

    @property
    def bucket(self) -> str:
        return self.key.split("/")[1]


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


class ObjectServer(Store):
    """Speaks S3, notes every request, and spoils the answers that ``spoil`` picks."""

    def __init__(self) -> None:
        super().__init__(0, lambda nbytes: None, lambda nbytes: None)
        self.buckets: set[str] = set()
        self.requests: list[Request] = []
        self.spoil: Spoil = lambda request: None
        self.slow_s = 0.0
        self.most_at_once = 0
        self._lock = threading.Lock()
        self._inside = 0
        self._server = _Server(_Serving, self)
        self.port = self._server.server_address[1]

    def bucket(self, name: str) -> S3:
        self.buckets.add(name)
        return S3(name, self)

    @contextmanager
    def noted(self, method: str, path: str, range_: str, nbytes: int) -> Iterator[Request]:
        with self._lock:
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
            self.requests.append(Request(len(self.requests) + 1, method, path, range_, nbytes, self._inside))
            noted = self.requests[-1]
        try:
            yield noted
        finally:
            with self._lock:
                self._inside -= 1

    def count(self, method: str, part: str = "") -> int:
        return sum(r.method == method and part in r.path for r in self.requests)

    def close(self) -> None:
        self._server.end()


class _Spoiling(Connection):
    """Answers, unless its server spoils the answer."""

    def __init__(self, server: ObjectServer, connection: socket.socket) -> None:
        super().__init__(server, connection)
        self._server = server
        self._cut = False
        self._left_nbytes = 0
        self._other_length = ""

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: memoryview) -> None:
        with self._server.noted(method, target, headers.get("range", ""), len(body)) as request:
            kind = self._server.spoil(request)
            if kind == "slow":
                time.sleep(self._server.slow_s)
            self._cut = kind == "cut"
            self._other_length = kind if kind in ("short", "long") else ""
            if kind == "cut-early":
                raise ConnectionError("as the test has it")
            if kind in ("500", "503", "403"):
                self.fail(int(kind), "Spoilt", "by the test", told=method != "HEAD")
            elif request.bucket not in self._server.buckets:
                self.fail(404, "NoSuchBucket", "no such bucket", told=method != "HEAD")
            else:
                super().answer(method, target, headers, body)
            if self._cut:
                raise ConnectionError("as the test has it")

    def head(self, status: int, nbytes: int, etag: str, more: str = "") -> None:
        """A spoilt length is that of what comes; the range is told as it was asked for."""
        self._left_nbytes = nbytes // 2
        nbytes = {"short": nbytes // 2, "long": nbytes + 1}.get(self._other_length, nbytes)
        super().head(status, nbytes, etag, more)

    def send(self, content: bytes | memoryview) -> None:
        sent = content[: self._left_nbytes] if self._cut or self._other_length == "short" else content
        self._left_nbytes -= len(sent)
        super().send(sent)
        if self._other_length == "long":
            self._other_length = ""
            super().send(b"x")


class _Serving(BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        assert isinstance(self.server.owner, ObjectServer)
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # the client left, or shall see us leave
            _Spoiling(self.server.owner, self.request).serve()


@dataclass(frozen=True)
class S3:
    """A bucket. What is done here no client asked for: it is noted nowhere, and not spoilt."""

    bucket: str
    store: ObjectServer

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """What leads there."""
        endpoint = f"http://127.0.0.1:{self.store.port}"
        return {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

    def put(self, folder: Path, below: str) -> str:
        """Copy a local folder or file; gives its URL."""
        files = [folder] if folder.is_file() else [p for p in sorted(folder.rglob("*")) if p.is_file()]
        for path in files:
            name = below if folder.is_file() else f"{below}/{path.relative_to(folder)}"
            self.put_bytes(name, path.read_bytes())
        return f"{self.url}/{below}"

    def put_bytes(self, key: str, content: bytes, *, age_s: float = 0) -> None:
        made = Object((memoryview(content),), changed_s=time.time() - age_s)
        self.store.objects[f"/{self.bucket}/{key}"] = made

    def get(self, key: str) -> bytes:
        return b"".join(self.store.objects[f"/{self.bucket}/{key}"].parts)

    def keys(self, below: str = "") -> list[str]:
        keys = [path.removeprefix(f"/{self.bucket}/") for path in self.store.objects.copy()]
        return sorted(key for key in keys if key.startswith(below))

    def uploads(self) -> int:
        """Multipart uploads that were begun, and neither completed nor aborted."""
        return len(self.store.uploads)


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


class _Server(ThreadingTCPServer):
    """Ends the connections that clients keep, so that no thread outlives it."""

    request_queue_size = 128

    def __init__(self, handler: type[BaseRequestHandler], owner: ObjectServer | Files) -> None:
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
