"""A new zip file laid out as torch's own writer does: records stored, aligned, their lengths after their bytes.

Source: ``caffe2/serialize/inline_container.cc`` and miniz as torch 2.13 has it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from struct import pack

from msgspec import Struct

from reshard.formats.zip_records import CENTRAL, END, END64, END64_LOCATOR, LOCAL, WIDE
from reshard.index import Checksum, Extent, Frame

_FLAGS = 0x0808  # lengths and CRC follow the bytes; names are UTF-8
_CRC_IN_DESCRIPTOR, _CRC_IN_ENTRY = 4, 16
_MADE_BY, _NEEDED = 0x031E, 0x2D


class _LaidRecord(Struct, frozen=True):
    name: bytes
    nbytes: int
    crc: int
    header: int
    start: int


def zip_frame(records: Sequence[tuple[str, bytes | int]]) -> Frame:
    """Lay out a zip file of records, each its bytes or the length of what comes later: these are its holes, by name."""
    pieces: list[tuple[int, bytes]] = []
    laid: list[_LaidRecord] = []
    piece, at = bytearray(), 0  # all from the hole before on
    for name, content in records:
        nbytes = content if isinstance(content, int) else len(content)
        crc = 0 if isinstance(content, int) else zlib.crc32(content)
        header = at + len(piece)
        piece += _local_header(name.encode(), nbytes, header)
        laid.append(_LaidRecord(name.encode(), nbytes, crc, header, at + len(piece)))
        if isinstance(content, int):
            pieces.append((at, bytes(piece)))
            at += len(piece) + nbytes
            piece.clear()
        else:
            piece += content
        piece += _descriptor(laid[-1])
    central = b"".join(map(_central, laid))
    directory = at + len(piece)
    pieces.append((at, bytes(piece) + central + _end(len(laid), directory, len(central))))
    holes: dict[str, tuple[Extent, ...]] = {}
    checksums: list[Checksum] = []
    entry = directory
    for (name, content), record in zip(records, laid, strict=True):
        if isinstance(content, int):
            extent = Extent(record.start, record.nbytes)
            holes[name] = (extent,)
            if record.nbytes:
                checksums.append(Checksum(extent, (extent.end + _CRC_IN_DESCRIPTOR, entry + _CRC_IN_ENTRY)))
        entry += len(_central(record))
    return Frame(pieces[-1][0] + len(pieces[-1][1]), tuple(pieces), holes, tuple(checksums))


def _local_header(name: bytes, nbytes: int, header: int) -> bytes:
    """With a field of padding, so that what follows begins at a multiple of 64, as torch has it."""
    wide = _wide_field(nbytes, header)
    start = header + LOCAL.size + len(name) + len(wide) + 4
    padding = -start % 64
    extra = wide + b"FB" + pack("<H", padding) + b"Z" * padding
    return LOCAL.pack(b"PK\x03\x04", 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def _wide_field(nbytes: int, header: int) -> bytes:
    """What does not fit four bytes."""
    numbers = (nbytes, nbytes) * (nbytes >= WIDE) + (header,) * (header >= WIDE)
    return pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def _descriptor(record: _LaidRecord) -> bytes:
    """An empty record has none."""
    if not record.nbytes:
        return b""
    size = "Q" if max(record.nbytes, record.header) >= WIDE else "I"
    return pack(f"<4sI2{size}", b"PK\x07\x08", record.crc, record.nbytes, record.nbytes)


def _central(record: _LaidRecord) -> bytes:
    nbytes, header = min(record.nbytes, WIDE), min(record.header, WIDE)
    wide = _wide_field(record.nbytes, record.header)
    lengths = (len(record.name), len(wide), 0)
    numbers = (0, 0, _FLAGS, 0, 0, 0, record.crc, nbytes, nbytes, *lengths, 0, 0, 0, header)
    return CENTRAL.pack(b"PK\x01\x02", *numbers) + record.name + wide


def _end(count: int, directory: int, nbytes: int) -> bytes:
    """The end records; those of eight bytes are always there."""
    return (
        END64.pack(b"PK\x06\x06", END64.size - 12, _MADE_BY, _NEEDED, 0, 0, count, count, nbytes, directory)
        + END64_LOCATOR.pack(b"PK\x06\x07", 0, directory + nbytes, 1)
        + END.pack(b"PK\x05\x06", 0, 0, *(min(count, 0xFFFF),) * 2, min(nbytes, WIDE), min(directory, WIDE), 0)
    )
