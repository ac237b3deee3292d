"""A server that speaks enough S3 to be timed and tested against: answers come late, and bytes no faster than a rate.

    python bench/store.py FOLDER LATENCY_S BYTES_A_SECOND

It prints its port, and ends with its standard input. Each folder in FOLDER is a bucket; what is put there lies in
memory until it ends. Reading and writing have the rate each, over all connections together. Whoever asks is believed.
"""

from __future__ import annotations

import mmap
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from reshard.storage.machine import paced

_STEP_NBYTES = 256 << 10
_SMALLEST_PART_NBYTES = 5 << 20
_NUMBERS = count(1)
_MISSING = {"NoSuchKey": "no such object", "NoSuchUpload": "no such upload"}


@dataclass(frozen=True)
class Object:
    """Bytes in memory, part after part."""

    parts: tuple[memoryview, ...]
    etag: str = field(default_factory=lambda: f"{next(_NUMBERS):x}")
    changed_s: float = field(default_factory=time.time)

    @property
    def nbytes(self) -> int:
        return sum(len(part) for part in self.parts)

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
        self._file = cast(BufferedReader, connection.makefile("rb", buffering=_STEP_NBYTES))

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
                self.answer(method, target, headers, body)

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

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: memoryview) -> None:
        parts = urlsplit(target)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        if method == "POST":
            self._post(path, query, body)
        elif method == "PUT":
            self._put(path, query, headers, body)
        elif method == "DELETE":
            self._delete(path, query)
        elif "list-type" in query:
            self.say(200, self._listed(path.rstrip("/") + "/", query))
        else:
            self._give(method, path, headers)

    def _post(self, path: str, query: Mapping[str, str], body: memoryview) -> None:
        if "uploads" in query:
            upload = os.urandom(8).hex()
            self._store.uploads[upload] = {}
            self.say(200, _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"))
        elif "uploadId" in query:
            self._complete(path, query["uploadId"], body)
        else:
            keys = re.findall(r"<Key>([^<]*)</Key>", bytes(body).decode())
            for key in map(unescape, keys):
                self._store.objects.pop(f"{path.rstrip('/')}/{key}", None)
            self.say(200, _xml("DeleteResult", "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)))

    def _complete(self, path: str, upload: str, body: memoryview) -> None:
        parts = self._store.uploads.get(upload)
        if parts is None:
            self._missing("NoSuchUpload")
            return
        named = [parts[int(n)] for n in re.findall(rb"<PartNumber>(\d+)<", bytes(body))]
        if any(len(part) < _SMALLEST_PART_NBYTES for part in named[:-1]):
            self.fail(400, "EntityTooSmall", "a part but the last is below 5 MiB")
            return
        self._store.uploads.pop(upload, None)
        made = self._store.objects[path] = Object(tuple(named))
        self.say(200, _xml("CompleteMultipartUploadResult", f'<ETag>"{made.etag}"</ETag>'))

    def _put(self, path: str, query: Mapping[str, str], headers: Mapping[str, str], body: memoryview) -> None:
        objects = self._store.objects
        if "uploadId" in query:
            parts = self._store.uploads.get(query["uploadId"])
            if parts is None:
                self._missing("NoSuchUpload")
                return
            parts[int(query["partNumber"])] = body
            self.say(200, etag=f"{next(_NUMBERS):x}")
        elif source := headers.get("x-amz-copy-source"):
            found = objects.get("/" + unquote(source).lstrip("/"))
            if found is None:
                self._missing("NoSuchKey")
                return
            objects[path] = Object(found.parts)
            self.say(200, _xml("CopyObjectResult", f'<ETag>"{objects[path].etag}"</ETag>'))
        else:
            made = Object((body,))
            if headers.get("if-none-match") != "*":
                objects[path] = made
            elif objects.setdefault(path, made) is not made:
                self.fail(412, "PreconditionFailed", "it is there")
                return
            self.say(200, etag=made.etag)

    def _delete(self, path: str, query: Mapping[str, str]) -> None:
        if "uploadId" not in query:
            self._store.objects.pop(path, None)
        elif self._store.uploads.pop(query["uploadId"], None) is None:
            self._missing("NoSuchUpload")
            return
        self.say(204)

    def _listed(self, bucket: str, query: Mapping[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        folders, found = set(), []
        for path, made in sorted(self._store.objects.copy().items()):
            key = path.removeprefix(bucket)
            if key == path or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(made.changed_s))
            found.append(
                f'<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>"{made.etag}"</ETag>'
                f"<Size>{made.nbytes}</Size></Contents>"
            )
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)
        )
        return _xml("ListBucketResult", "<IsTruncated>false</IsTruncated>" + "".join(found) + prefixes)

    def _give(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        made = self._store.objects.get(path)
        if made is None:
            self._missing("NoSuchKey", told=method != "HEAD")
            return
        start, stop, status = 0, made.nbytes, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            start, stop, status = int(asked[1]), min(int(asked[2] or made.nbytes) + 1, made.nbytes), 206
        said = f"Content-Range: bytes {start}-{stop - 1}/{made.nbytes}\r\n" if status == 206 else ""
        said += f"Last-Modified: {formatdate(made.changed_s, usegmt=True)}\r\n"
        self.head(status, stop - start, made.etag, said)
        if method == "GET":
            for step in made.range(start, stop):
                self.send(step)
                if stop - start > _STEP_NBYTES:
                    self._store.down(len(step))

    def _missing(self, code: str, *, told: bool = True) -> None:
        self.fail(404, code, _MISSING[code], told=told)

    def fail(self, status: int, code: str, message: str, *, told: bool = True) -> None:
        """``told``: an answer to HEAD has no body."""
        content = _xml("Error", f"<Code>{code}</Code><Message>{message}</Message>")
        self.head(status, len(content), "")
        if told:
            self.send(content)

    def say(self, status: int, body: bytes = b"", etag: str = "") -> None:
        self.head(status, len(body), etag)
        self.send(body)

    def head(self, status: int, nbytes: int, etag: str, more: str = "") -> None:
        said = "" if status == 204 else f"Content-Length: {nbytes}\r\n"
        said += f'ETag: "{etag}"\r\n' if etag else ""
        self._socket.sendall(f"HTTP/1.1 {status} it is\r\n{said}{more}\r\n".encode())

    def send(self, content: bytes | memoryview) -> None:
        self._socket.sendall(content)


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
