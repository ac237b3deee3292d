"""A server that speaks enough S3 to be timed against: each answer comes late, and bytes no faster than a rate.

    python bench/store.py FOLDER LATENCY_S BYTES_A_SECOND

It prints its port, and ends with its standard input. Each folder in FOLDER is a bucket; what is put there lies in
memory until it ends. Reading and writing have the rate each, over all connections together. Whoever asks is believed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from reshard.storage.machine import paced

_STEP_NBYTES = 256 << 10
_TIME, _HTTP_TIME = "2026-11-28T10:00:00.000Z", "Sat, 28 Nov 2026 10:00:00 GMT"


@dataclass(frozen=True)
class Object:
    """Bytes in memory, part after part."""

    parts: tuple[memoryview, ...]

    @property
    def nbytes(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def etag(self) -> str:
        return f"{id(self.parts[0]):x}-{self.nbytes:x}" if self.parts else "0"

    def range(self, start: int, stop: int) -> Iterator[memoryview]:
        at = 0
        for part in self.parts:
            first, last = max(start - at, 0), min(stop - at, len(part))
            for step in range(first, last, _STEP_NBYTES):
                yield part[step : min(step + _STEP_NBYTES, last)]
            at += len(part)


@dataclass
class Store:
    """All objects by ``/bucket/key``, and the uploads under way."""

    latency_s: float
    down: Callable[[int], None]
    up: Callable[[int], None]
    objects: dict[str, Object] = field(default_factory=dict)
    uploads: dict[str, dict[int, memoryview]] = field(default_factory=dict)


class Connection:
    """Answers what comes through one socket, one after the other."""

    def __init__(self, store: Store, connection: socket.socket) -> None:
        self._store = store
        self._socket = connection
        self._file = connection.makefile("rb", buffering=_STEP_NBYTES)

    def serve(self) -> None:
        with self._socket, self._file:
            while line := self._file.readline():
                method, target, _ = line.decode().split(" ", 2)
                headers = {}
                while (header := self._file.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    headers[name.strip().lower()] = value.strip()
                body = self._body(int(headers.get("content-length", 0)))
                time.sleep(self._store.latency_s)
                self._answer(method, target, headers, body)

    def _body(self, nbytes: int) -> memoryview:
        body, done = memoryview(bytearray(nbytes)), 0
        while done < nbytes:
            some = self._file.readinto(body[done : done + _STEP_NBYTES])
            if not some:
                raise ConnectionError("the client left")
            done += some
            if nbytes > _STEP_NBYTES:
                self._store.up(some)
        return body

    def _answer(self, method: str, target: str, headers: dict[str, str], body: memoryview) -> None:
        parts = urlsplit(target)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        if method == "POST":
            self._say(200, self._post(path, query, body))
        elif method == "PUT":
            self._put(path, query, headers, body)
        elif method == "DELETE":
            self._store.objects.pop(path, None)
            self._say(204)
        elif "list-type" in query:
            self._say(200, self._listed(path.rstrip("/") + "/", query))
        else:
            self._give(method, path, headers)

    def _post(self, path: str, query: dict[str, str], body: memoryview) -> bytes:
        if "uploads" in query:
            upload = os.urandom(8).hex()
            self._store.uploads[upload] = {}
            return _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        if "uploadId" in query:
            parts = self._store.uploads.pop(query["uploadId"])
            numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)<", bytes(body))]
            self._store.objects[path] = Object(tuple(parts[n] for n in numbers))
            return _xml("CompleteMultipartUploadResult", f'<ETag>"{self._store.objects[path].etag}"</ETag>')
        keys = re.findall(r"<Key>([^<]*)</Key>", bytes(body).decode())
        for key in keys:
            self._store.objects.pop(f"{path.rstrip('/')}/{key}", None)
        return _xml("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys))

    def _put(self, path: str, query: dict[str, str], headers: dict[str, str], body: memoryview) -> None:
        if headers.get("if-none-match") == "*" and path in self._store.objects:
            self._say(412, _xml("Error", "<Code>PreconditionFailed</Code><Message>it is there</Message>"))
            return
        if "uploadId" in query:
            self._store.uploads[query["uploadId"]][int(query["partNumber"])] = body
        elif source := headers.get("x-amz-copy-source"):
            self._store.objects[path] = self._store.objects[unquote(source)]
            self._say(200, _xml("CopyObjectResult", f'<ETag>"{self._store.objects[path].etag}"</ETag>'))
            return
        else:
            self._store.objects[path] = Object((body,))
        self._say(200, etag=hashlib.blake2b(str(id(body)).encode(), digest_size=8).hexdigest())

    def _listed(self, bucket: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        folders, found = set(), []
        for path in sorted(self._store.objects):
            key = path.removeprefix(bucket)
            if key == path or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            made = self._store.objects[path]
            found.append(
                f'<Contents><Key>{key}</Key><LastModified>{_TIME}</LastModified><ETag>"{made.etag}"</ETag>'
                f"<Size>{made.nbytes}</Size></Contents>"
            )
        prefixes = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in sorted(folders))
        return _xml("ListBucketResult", "<IsTruncated>false</IsTruncated>" + "".join(found) + prefixes)

    def _give(self, method: str, path: str, headers: dict[str, str]) -> None:
        made = self._store.objects.get(path)
        if made is None:
            self._say(404, b"" if method == "HEAD" else _xml("Error", "<Code>NoSuchKey</Code><Message>no</Message>"))
            return
        start, stop, status = 0, made.nbytes, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            start, stop, status = int(asked[1]), min(int(asked[2] or made.nbytes) + 1, made.nbytes), 206
        said = f"Content-Range: bytes {start}-{stop - 1}/{made.nbytes}\r\n" if status == 206 else ""
        self._head(status, stop - start, made.etag, said)
        if method == "GET":
            for step in made.range(start, stop):
                self._socket.sendall(step)
                if stop - start > _STEP_NBYTES:
                    self._store.down(len(step))

    def _say(self, status: int, body: bytes = b"", etag: str = "") -> None:
        self._head(status, len(body), etag)
        self._socket.sendall(body)

    def _head(self, status: int, nbytes: int, etag: str, more: str = "") -> None:
        said = f'ETag: "{etag}"\r\nLast-Modified: {_HTTP_TIME}\r\n' if etag else ""
        self._socket.sendall(f"HTTP/1.1 {status} it is\r\nContent-Length: {nbytes}\r\n{said}{more}\r\n".encode())


def _xml(name: str, content: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{name}>{content}</{name}>'.encode()


def main() -> None:
    folder, latency_s, rate = Path(sys.argv[1]), float(sys.argv[2]), int(float(sys.argv[3]))
    store = Store(latency_s, paced(lambda _: None, rate), paced(lambda _: None, rate))
    for path in (p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        store.objects[f"/{path.relative_to(folder)}"] = Object((memoryview(content),))
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listening, store), daemon=True).start()
    sys.stdin.read()


def _accept(listening: socket.socket, store: Store) -> None:
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(store, connection), daemon=True).start()


def _serve(store: Store, connection: socket.socket) -> None:
    with suppress(OSError):  # the client left
        Connection(store, connection).serve()


if __name__ == "__main__":
    main()
