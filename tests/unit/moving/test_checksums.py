from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import RunError
from reshard.index import Checksum, Extent
from reshard.moving.checksums import CrcSums, crc32_joined
from thorough import examples


@examples(25)
@given(first=st.binary(max_size=300), second=st.binary(max_size=300))
def test_joined_sums_are_those_of_the_whole(first: bytes, second: bytes) -> None:
    assert crc32_joined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


@pytest.mark.parametrize("nbytes", [1 << 20, (8 << 20) + 3])
def test_joined_sums_of_long_parts(nbytes: int) -> None:
    data = b"abc" * nbytes
    assert crc32_joined(zlib.crc32(data[:-nbytes]), zlib.crc32(data[-nbytes:]), nbytes) == zlib.crc32(data)


def test_parts_may_come_in_any_order() -> None:
    data = bytes(range(256)) * 3
    places = (Checksum(Extent(10, 700), (720, 730)), Checksum(Extent(0, 720), (724,), big_endian=True))
    sums = CrcSums(places)
    for start, stop in [(500, 710), (0, 10), (710, 720), (10, 30), (30, 500)]:
        sums.add(start, stop - start, zlib.crc32(data[start:stop]))
    inner, outer = zlib.crc32(data[10:710]), zlib.crc32(data[:720])
    assert sums.stated(720, bytes(20)) == (
        inner.to_bytes(4, "little") + outer.to_bytes(4, "big") + bytes(2) + inner.to_bytes(4, "little") + bytes(6)
    )
    assert [sums.awaited(*piece) for piece in ((0, 10), (710, 10), (720, 1), (725, 5), (730, 1))] == [
        False, False, True, False, True,
    ]  # fmt: skip


class Places(list[tuple[int, Checksum]]):
    def __iter__(self) -> Iterator[tuple[int, Checksum]]:
        raise AssertionError("all places are looked through for each piece")


def test_places_are_found_without_looking_through_all() -> None:
    sums = CrcSums([Checksum(Extent(start, 10), (start + 10,)) for start in range(0, 100, 20)])
    sums._places = Places(sums._places)
    sums.add(60, 10, 7)
    assert sums.awaited(70, 10)
    assert sums.stated(70, bytes(10)) == (7).to_bytes(4, "little") + bytes(6)


def test_a_sum_of_bytes_that_were_not_written_is_refused() -> None:
    sums = CrcSums((Checksum(Extent(0, 20), (20,)),))
    sums.add(0, 10, 1)
    with pytest.raises(RunError, match="bytes 10 to 20"):
        sums.stated(20, bytes(4))
