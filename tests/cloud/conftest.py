from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from servers import S3, Files, Proxy, ask

_NUMBERS = itertools.count(1)
_VARIABLES = ("AWS_", "OBS_", "S3_", "ACCESS_KEY", "SECRET_ACCESS", "GOOGLE_", "AZURE_")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the credentials of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(_VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def s3(s3_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    bucket = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
    ask(s3_server, "PUT", f"/{bucket}")
    proxy = Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield S3(bucket, s3_server, proxy)
    proxy.close()


@pytest.fixture
def files() -> Iterator[Files]:
    server = Files()
    yield server
    server.close()
