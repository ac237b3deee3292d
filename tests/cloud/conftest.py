from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers import Files


@pytest.fixture(autouse=True)
def environment(no_credentials: None) -> None:
    pass


@pytest.fixture
def files() -> Iterator[Files]:
    server = Files()
    yield server
    server.close()
