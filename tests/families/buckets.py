"""A bucket of a test's own on the server that all tests share."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path
from urllib.request import Request, urlopen

_NUMBERS = count(1)
_SIGNED = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class Bucket:
    def __init__(self, port: int) -> None:
        self._place = f"http://127.0.0.1:{port}/rows-{os.getpid()}-{next(_NUMBERS)}"
        self.url = f"s3://{self._place.rpartition('/')[2]}"
        self._put("", b"")

    def _put(self, key: str, content: bytes) -> None:
        headers = {"Authorization": _SIGNED, "Content-Type": "application/octet-stream"}
        urlopen(Request(f"{self._place}/{key}".rstrip("/"), content, headers, method="PUT"), timeout=20).close()

    def put(self, path: Path) -> str:
        """Copy a file or folder; gives its URL."""
        for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            self._put(f"src/{file.relative_to(path.parent)}", file.read_bytes())
        return f"{self.url}/src/{path.name}"
