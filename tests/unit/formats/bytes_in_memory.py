"""A file that is bytes: formats need no disk."""

from __future__ import annotations

from reshard.errors import StorageError
from reshard.index import Contents


class Bytes:
    """Counts what is read of it; a read beyond its end is what storage makes of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read_nbytes = 0

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > len(self.data):
            raise StorageError(f"read of {nbytes} bytes at {offset} of {len(self.data)}")
        self.read_nbytes += nbytes
        return self.data[offset : offset + nbytes]


def held(data: bytes, contents: Contents) -> dict[str, bytes]:
    """The bytes of each tensor where its extents say."""
    return {name: b"".join(data[e.offset : e.end] for e in stored.extents) for name, stored in contents.tensors.items()}
