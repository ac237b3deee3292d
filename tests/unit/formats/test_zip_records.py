from __future__ import annotations

import io
import zipfile

import pytest

from reshard.errors import FormatError
from reshard.formats.window import Window
from reshard.formats.zip_records import read_record, zip_records
from reshard.testing.formats import MemoryFile

CONTENTS = {"a/data.pkl": b"x" * 100, "a/data/0": bytes(range(256)) * 4, "a/empty": b""}


def made(method: int = zipfile.ZIP_STORED, comment: bytes = b"", before: bytes = b"", *, wide: bool = False) -> bytes:
    out = io.BytesIO(before)
    with zipfile.ZipFile(out, "a" if before else "w", method) as file:
        file.comment = comment
        for name, content in CONTENTS.items():
            with file.open(zipfile.ZipInfo(name) if method == 0 else name, "w", force_zip64=wide) as entry:
                entry.write(content)
    return out.getvalue()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("comment", [b"", b"a comment", b"c" * 65535])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_records_of_pythons_zipfile(method: int, comment: bytes, wide: bool) -> None:
    source = MemoryFile(made(method, comment, wide=wide))
    records = zip_records(source)
    assert {name: read_record(source, record, 2000) for name, record in records.items()} == CONTENTS


def test_a_window_is_a_file() -> None:
    content = made()
    source = Window(MemoryFile(b"before" + content + b"after"), 6, len(content))
    assert read_record(source, zip_records(source)["a/data/0"], 2000) == CONTENTS["a/data/0"]
    with pytest.raises(FormatError, match="bytes 6 to 2,006"):
        Window(MemoryFile(content), 6, 2000)


def test_more_than_expected_is_not_unpacked() -> None:
    source = MemoryFile(made(zipfile.ZIP_DEFLATED))
    with pytest.raises(FormatError, match="has 1,024 bytes"):
        read_record(source, zip_records(source)["a/data/0"], 1000)


def test_a_packing_that_is_not_read_is_told_whatever_its_length() -> None:
    source = MemoryFile(made(zipfile.ZIP_LZMA))
    record = zip_records(source)["a/data.pkl"]
    for most in (record.packed_nbytes - 1, 2000):
        with pytest.raises(FormatError, match=r"'a/data.pkl' is compressed \(lzma\)"):
            read_record(source, record, most)


def test_a_changed_byte_is_told() -> None:
    content = made().replace(b"xxxx", b"xxyx", 1)
    source = MemoryFile(content)
    with pytest.raises(FormatError, match="CRC-32"):
        read_record(source, zip_records(source)["a/data.pkl"], 1000)


def test_what_comes_before_a_zip_file_is_refused() -> None:
    with pytest.raises(FormatError):
        zip_records(Window(MemoryFile(b"PK" + made()), 0, len(made()) + 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.replace(b"a/empty", b"a/data/0"[:7]), ""),
        (lambda c: c[: len(c) // 2], "no directory of records"),
        (lambda c: c[:-30] + c[-22:], "the directory of records ends"),
        (lambda c: c.replace(b"PK\x01\x02", b"PK\x01\x09"), "is damaged"),
        (lambda c: c[:-14] + b"\x02\0\x02\0" + c[-10:], "2 records are announced"),
        (lambda c: c.replace(b"PK\x03\x04", b"PK\x03\x09"), "does not begin at byte"),
    ],
)
def test_damage_is_told(change: object, said: str) -> None:
    assert callable(change)
    if said:
        with pytest.raises(FormatError, match=said):
            zip_records(MemoryFile(change(made())))
