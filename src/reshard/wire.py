"""The little of the protobuf wire format that checkpoints and strategies need.

Source: protobuf.dev/programming-guides/encoding. A message is a run of (tag, value); the tag holds field number and
wire type.
"""

from __future__ import annotations

from collections.abc import Iterator

from reshard.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(value: int) -> bytes:
    """Encode an integer; a negative one as 64-bit two's complement, ten bytes long.

    >>> varint(300).hex(), len(varint(-1))
    ('ac02', 10)
    """
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3 | VARINT) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    return bytes_head(number, len(value)) + value


def bytes_head(number: int, nbytes: int) -> bytes:
    """What stands before ``nbytes`` bytes of field ``number``."""
    return varint(number << 3 | BYTES) + varint(nbytes)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The unsigned integer at ``at`` and the place after it. Raises FormatError."""
    if at < len(data) and data[at] < 128:  # most are of one byte
        return data[at], at + 1
    value = shift = 0
    while True:
        if at >= len(data):
            raise FormatError(f"message ends inside an integer at byte {at}")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise FormatError(f"integer of more than ten bytes at byte {at}")


def signed(value: int) -> int:
    """An unsigned 64-bit value as int64."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (field number, value) pairs of a message held in memory, in order. Raises FormatError."""
    at, end = 0, len(data)
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < 128 else read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == VARINT:
            value, at = read_varint(data, at)
        else:
            if kind == BYTES:
                nbytes, at = (data[at], at + 1) if at < end and data[at] < 128 else read_varint(data, at)
            elif kind in (FIXED64, FIXED32):
                nbytes = 8 if kind == FIXED64 else 4
            else:
                raise FormatError(f"wire type {kind} at byte {at}")
            stop = at + nbytes
            if stop > end:
                raise FormatError(f"field {number} of {nbytes} bytes at byte {at}, {end - at} are left")
            value, at = data[at:stop], stop
        if number == 0:
            raise FormatError(f"field number 0 at byte {at}")
        yield number, value


def packed_or_single(value: int | bytes) -> list[int]:
    """A repeated integer field's values, packed or not.

    >>> packed_or_single(bytes([1, 2])), packed_or_single(7)
    ([1, 2], [7])
    """
    if isinstance(value, int):
        return [value]
    out, at = [], 0
    while at < len(value):
        number, at = read_varint(value, at)
        out.append(number)
    return out
