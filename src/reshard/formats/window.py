"""A part of a file, or bytes, read as a file of its own."""

from __future__ import annotations

from reshard.errors import FormatError
from reshard.formats.base import ByteRanges


class Window:
    """``nbytes`` bytes of a file from ``offset`` on. Raises FormatError where the file has fewer."""

    def __init__(self, file: ByteRanges, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > file.nbytes:
            raise FormatError(f"bytes {offset:,} to {offset + nbytes:,} of a file of {file.nbytes:,}")
        self._file = file
        self._offset = offset
        self._nbytes = nbytes

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self._nbytes:
            raise FormatError(f"bytes {offset:,} to {offset + nbytes:,} of a part of {self._nbytes:,}")
        return self._file.read(self._offset + offset, nbytes)


class InBytes:
    """A small file of which all bytes are here. Raises FormatError where more are asked for."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def nbytes(self) -> int:
        return len(self._content)

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > len(self._content):
            raise FormatError(f"bytes {offset:,} to {offset + nbytes:,} of a file of {len(self._content):,}")
        return self._content[offset : offset + nbytes]
