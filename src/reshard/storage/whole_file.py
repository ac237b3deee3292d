"""A whole file, block by block: copied, or its CRC-32."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from reshard.index import Extent
from reshard.storage.storage import NewFile, ReadFile


def copy_file(source: ReadFile, new: NewFile, block_nbytes: int, proceed: Callable[[], object] = lambda: None) -> None:
    """Write and name the copy; on an error, also one of ``proceed`` after a block, nothing is left of it."""
    try:
        for start in range(0, source.nbytes, block_nbytes):
            nbytes = min(block_nbytes, source.nbytes - start)
            new.write(start, memoryview(source.read(start, nbytes)))
            proceed()
        new.commit()
    except BaseException:
        new.abandon()
        raise


def crc32_of(file: ReadFile, extent: Extent, block_nbytes: int, crc: int = 0) -> int:
    """The CRC-32 of some bytes of a file, going on from ``crc``."""
    buffer = memoryview(bytearray(min(block_nbytes, max(extent.nbytes, 1))))
    for at in range(extent.offset, extent.end, len(buffer)):
        part = buffer[: min(len(buffer), extent.end - at)]
        file.read_into(at, part)
        crc = zlib.crc32(part, crc)
    return crc
