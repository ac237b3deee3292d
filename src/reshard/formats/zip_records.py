"""Records of a zip file: where the bytes of each lie, from its central directory.

Source: PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5. Read on its own terms, since a checkpoint needs little of it and
asks for more than a general reader gives: duplicates and overlaps are refused, and where records lie is known without
a read for each, for one may cost a round trip.
"""

from __future__ import annotations

import zlib
from struct import Struct as Layout

from msgspec import Struct

from reshard.errors import FormatError
from reshard.formats.base import ByteRanges

_TAIL_NBYTES = 65536 + 22  # an end record with the longest comment
END = Layout("<4s4H2LH")
END64_LOCATOR = Layout("<4sLQL")
END64 = Layout("<4sQ2H2L4Q")
CENTRAL = Layout("<4s6H3L5H2L")
LOCAL = Layout("<4s5H3L2H")
_MAX_DIRECTORY_NBYTES = 1 << 30
_WITH_DESCRIPTOR = 8
_ENCRYPTED = 1
WIDE = 0xFFFFFFFF  # from here on, numbers are in a zip64 field
_ALIGNMENTS = (64, 4096)
STORED, DEFLATED = 0, 8
ZIP_MARK = b"PK\x03\x04"
_METHODS = {DEFLATED: "deflate", 9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz"}
_CUT = "the file is cut short or damaged: copy it again"


class ZipRecord(Struct, frozen=True):
    """An entry of a zip file.

    Attributes:
        start: where its bytes begin in the file.
        nbytes, packed_nbytes: its length, and the length that it has in the file.
        method: how it is packed; 0 is not at all.
        crc: the CRC-32 of its bytes; 0 where none was given.
    """

    name: str
    start: int
    nbytes: int
    packed_nbytes: int
    method: int
    crc: int

    @property
    def packing(self) -> str:
        return _METHODS.get(self.method, f"method {self.method}")


class _DirectoryEntry(Struct, frozen=True):
    """As the central directory has it."""

    name: str
    name_nbytes: int
    flags: int
    method: int
    crc: int
    packed_nbytes: int
    nbytes: int
    header: int


def zip_records(source: ByteRanges) -> dict[str, ZipRecord]:
    """The records of a zip file by name, in order of the file. Raises FormatError."""
    start, directory, count = _directory(source)
    entries = sorted(_entries(directory, count), key=lambda entry: entry.header)
    found: dict[str, ZipRecord] = {}
    for entry, after in zip(entries, [*(e.header for e in entries[1:]), start], strict=True):
        if entry.name in found:
            raise FormatError(f"the record {entry.name!r} is there twice", hint="nobody can tell which one is meant")
        if entry.flags & _ENCRYPTED:
            raise FormatError(f"the record {entry.name!r} is encrypted", hint="unpack it with its password")
        if entry.method == STORED and entry.nbytes != entry.packed_nbytes:
            raise FormatError(f"the record {entry.name!r} has two lengths", hint=_CUT)
        at = _likely_start(entry, after) or _stated_start(source, entry)
        if at + entry.packed_nbytes > after:
            raise FormatError(f"the record {entry.name!r} runs into what follows it, at byte {after}", hint=_CUT)
        found[entry.name] = ZipRecord(entry.name, at, entry.nbytes, entry.packed_nbytes, entry.method, entry.crc)
    return found


def read_record(source: ByteRanges, record: ZipRecord, most: int) -> bytes:
    """The bytes of a record, unpacked and checked against its CRC-32. Raises FormatError for more than ``most``."""
    if record.method not in (STORED, DEFLATED):
        raise FormatError(f"the record {record.name!r} is compressed ({record.packing})", hint="zip it with -0")
    nbytes = max(record.nbytes, record.packed_nbytes)
    if nbytes > most:
        raise FormatError(f"the record {record.name!r} has {nbytes:,} bytes, expected are {most:,} at most")
    content = source.read(record.start, record.packed_nbytes)
    if record.method == DEFLATED:
        content = _inflated(content, record)
    if len(content) != record.nbytes or (record.crc and zlib.crc32(content) != record.crc):
        raise FormatError(f"the record {record.name!r} does not have the CRC-32 that the file states", hint=_CUT)
    return content


def _inflated(packed: bytes, record: ZipRecord) -> bytes:
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, record.nbytes + 1)
    except zlib.error as error:
        raise FormatError(f"the record {record.name!r} cannot be unpacked: {error}", hint=_CUT) from None


def _directory(source: ByteRanges) -> tuple[int, bytes, int]:
    """Where the central directory starts, its bytes, and how many entries it has."""
    base = max(0, source.nbytes - _TAIL_NBYTES)
    tail = source.read(base, source.nbytes - base)
    place = tail.rfind(b"PK\x05\x06")
    while place >= 0 and place + END.size + int.from_bytes(tail[place + 20 : place + 22], "little") != len(tail):
        place = tail.rfind(b"PK\x05\x06", 0, place)
    if place < 0:
        raise FormatError(f"file has {source.nbytes:,} bytes and no directory of records at its end", hint=_CUT)
    _, _, _, _, count, nbytes, start, _ = END.unpack_from(tail, place)
    end = base + place
    if place >= END64_LOCATOR.size and tail.startswith(b"PK\x06\x07", place - END64_LOCATOR.size):
        _, _, at, _ = END64_LOCATOR.unpack_from(tail, place - END64_LOCATOR.size)
        if at + END64.size > end - END64_LOCATOR.size:
            raise FormatError("the directory's end record lies outside of the file", hint=_CUT)
        mark, *_, count, nbytes, start = END64.unpack(source.read(at, END64.size))
        if mark != b"PK\x06\x06":
            raise FormatError(f"no end record of the directory at byte {at}", hint=_CUT)
        end = at
    if start + nbytes != end:
        raise FormatError(f"the directory of records ends at byte {start + nbytes:,} instead of {end:,}", hint=_CUT)
    if nbytes > _MAX_DIRECTORY_NBYTES:
        raise FormatError(f"its directory of records has {nbytes:,} bytes")
    return start, tail[start - base : end - base] if start >= base else source.read(start, nbytes), count


def _entries(data: bytes, count: int) -> list[_DirectoryEntry]:
    entries: list[_DirectoryEntry] = []
    at = 0
    while at < len(data):
        if len(data) - at < CENTRAL.size:
            raise FormatError("the directory of records ends within an entry", hint=_CUT)
        mark, _, _, flags, method, _, _, crc, packed, nbytes, name_nbytes, extra_nbytes, comment_nbytes, *_, header = (
            CENTRAL.unpack_from(data, at)
        )
        names = at + CENTRAL.size
        extra = names + name_nbytes
        at = extra + extra_nbytes + comment_nbytes
        if mark != b"PK\x01\x02" or at > len(data):
            raise FormatError(f"entry {len(entries)} of the directory of records is damaged", hint=_CUT)
        try:
            name = data[names:extra].decode()
        except UnicodeDecodeError:
            raise FormatError(f"the name of record {len(entries)} is not UTF-8") from None
        sizes = _wide(data[extra : extra + extra_nbytes], [nbytes, packed, header])
        entries.append(_DirectoryEntry(name, name_nbytes, flags, method, crc, sizes[1], sizes[0], sizes[2]))
    if len(entries) != count:
        raise FormatError(f"{count:,} records are announced, the directory has {len(entries):,}", hint=_CUT)
    return entries


def _wide(extra: bytes, sizes: list[int]) -> list[int]:
    """The sizes, those that do not fit four bytes from the zip64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, nbytes = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        at += 4
        if kind == 1:
            wide = [extra[at + i : at + i + 8] for i in range(0, nbytes - 7, 8)]
            for place, size in enumerate(sizes):
                if size == WIDE and wide:
                    sizes[place] = int.from_bytes(wide.pop(0), "little")
        at += nbytes
    return sizes


def _likely_start(entry: _DirectoryEntry, after: int) -> int:
    """Where a record begins by two rules that do not know of each other: its bytes end before their descriptor and
    the next header, and begin where torch aligns them to, after a header with one field of padding. 0 where these
    disagree, or the writer was another.
    """
    wide = entry.header >= WIDE or entry.nbytes >= WIDE
    descriptor = 0
    if entry.flags & _WITH_DESCRIPTOR and entry.nbytes:
        descriptor = 24 if wide else 16
    by_end = after - descriptor - entry.packed_nbytes
    least = entry.header + LOCAL.size + entry.name_nbytes + 4
    if wide:
        least += 4 + 16 * (entry.nbytes >= WIDE) + 8 * (entry.header >= WIDE)
    return by_end if any(-(-least // n) * n == by_end for n in _ALIGNMENTS) else 0


def _stated_start(source: ByteRanges, entry: _DirectoryEntry) -> int:
    """Where a record begins as its own header says."""
    if entry.header + LOCAL.size > source.nbytes:
        raise FormatError(f"the record {entry.name!r} lies outside of the file", hint=_CUT)
    mark, *_, name_nbytes, extra_nbytes = LOCAL.unpack(source.read(entry.header, LOCAL.size))
    if mark != b"PK\x03\x04":
        raise FormatError(f"the record {entry.name!r} does not begin at byte {entry.header}", hint=_CUT)
    start: int = entry.header + LOCAL.size + name_nbytes + extra_nbytes
    return start
