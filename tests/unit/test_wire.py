from __future__ import annotations

import pytest

from reshard.errors import FormatError
from reshard.wire import bytes_field, bytes_head, fields, packed_or_single, read_varint, signed, varint, varint_field

MAX = (1 << 64) - 1


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varint(value: int, encoded: str) -> None:
    assert varint(value).hex() == encoded


@pytest.mark.parametrize("value", [0, 1, 127, 128, 1 << 32, (1 << 63) - 1, MAX])
def test_varint_there_and_back(value: int) -> None:
    assert read_varint(b"x" + varint(value) + b"y", 1) == (value, 1 + len(varint(value)))


@pytest.mark.parametrize("value", [-1, -(1 << 63), 0, 5])
def test_negative_numbers_there_and_back(value: int) -> None:
    assert signed(read_varint(varint(value), 0)[0]) == value


def test_fields_in_order() -> None:
    message = varint_field(1, 7) + bytes_field(2, b"ab") + varint_field(1, 8) + bytes_field(16, b"")
    assert list(fields(message)) == [(1, 7), (2, b"ab"), (1, 8), (16, b"")]


def test_fixed_width_fields_are_passed_over_whole() -> None:
    message = b"\x09" + bytes(range(8)) + b"\x15" + bytes(range(4)) + varint_field(3, 1)
    assert list(fields(message)) == [(1, bytes(range(8))), (2, bytes(range(4))), (3, 1)]


def test_head_announces_the_content() -> None:
    assert bytes_head(3, 300) + b"x" * 300 == bytes_field(3, b"x" * 300)


@pytest.mark.parametrize(
    "broken",
    [
        b"\x80",  # ends inside the tag
        b"\x08\x80",  # ends inside the value
        b"\x08" + b"\xff" * 10 + b"\x01",  # more than ten bytes
        b"\x0a\x05abc",  # announces five
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # announces 2**64 - 1
        b"\x09abc",  # a fixed64 of three bytes
        b"\x0b",  # a group
        b"\x0f",  # no wire type at all
        b"\x00\x01",  # field number 0
    ],
)
def test_broken_messages(broken: bytes) -> None:
    with pytest.raises(FormatError):
        list(fields(broken))


def test_repeated_numbers_packed_or_not() -> None:
    assert packed_or_single(5) == [5]
    assert packed_or_single(b"") == []
    assert packed_or_single(varint(300) + varint(1)) == [300, 1]
