"""``--crc``: sources against the CRC-32 that they state, as MindSpore makes it for either format."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from reshard.dtypes import ITEMSIZE
from reshard.errors import CheckpointError, counted, listed
from reshard.formats.registry import format_named
from reshard.formats.window import Window
from reshard.index import Extent, StatedCrc, Stored
from reshard.interruption import proceed
from reshard.planning.catalog import Catalog, IndexedFile
from reshard.storage.storage import ReadFile
from reshard.storage.storages import opened
from reshard.storage.whole_file import crc32_of

_BLOCK_NBYTES = 8 << 20
_NOTE = "crc_num"
_MOST_ZEROS = 1 << 31
_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def check_crcs(source: Catalog) -> tuple[str, ...]:
    """A warning where files state no CRC-32. Raises CheckpointError naming every file, and record of one, that does not
    fit its own.
    """
    faults: list[str] = []
    silent = 0
    for file in source.files:
        proceed()
        with opened(file.path) as content:
            found = _faults(file, content)
        silent += found is None
        faults += found or ()
    if faults:
        raise CheckpointError("the CRC-32 does not fit the content:\n" + listed(faults), hint="copy these files again")
    return (f"--crc: {counted(silent, 'file')} of {len(source.files)} without a CRC-32 to check",) if silent else ()


def _faults(file: IndexedFile, opened: ReadFile) -> list[str] | None:
    """What does not have the CRC-32 that is stated of it; None for a file that states none."""
    note = file.contents.notes.get(_NOTE)
    if note is not None:
        return [] if any(str(crc) == note for crc in _of_tensors(file, opened)) else [file.path]
    stated = list(_stated(file, opened))
    wrong = (one.what for one in stated if one.crc != crc32_of(opened, one.of, _BLOCK_NBYTES))
    return [f"{file.path}: {what}" if what else file.path for what in wrong] if stated else None


def _stated(file: IndexedFile, opened: ReadFile) -> Iterator[StatedCrc]:
    """The sums that a file states, or those of the files within it."""
    form = format_named(file.format)
    if not file.within:
        yield from form.crcs(opened)
    for name, extent in file.within:
        for one in form.crcs(Window(opened, extent.offset, extent.nbytes)):
            yield StatedCrc(f"{name}, {one.what}", Extent(extent.offset + one.of.offset, one.of.nbytes), one.crc)


def _of_tensors(file: IndexedFile, opened: ReadFile) -> Iterator[int]:
    """What the CRC-32 of a safetensors may be: over names and bytes in the order of names; of MindSpore, which takes
    an integer without dims for so many zeros, or of others, which take its bytes. Of all that lies in the file: an
    index may pass over some of it.
    """
    tensors = sorted(format_named(file.format).read_index(opened).tensors.items())
    odd = any(_is_integer(stored) for _, stored in tensors)
    for zeros in (True, False) if odd else (False,):
        crc = 0
        for name, stored in tensors:
            proceed()
            crc = zlib.crc32(name.encode(), crc)
            crc = _of_zeros(opened, stored, crc) if zeros and _is_integer(stored) else _of_bytes(opened, stored, crc)
        yield crc


def _is_integer(stored: Stored) -> bool:
    return not stored.spec.shape and stored.spec.dtype in _INTEGERS


def _of_bytes(opened: ReadFile, stored: Stored, crc: int) -> int:
    for extent in stored.extents:
        crc = crc32_of(opened, extent, _BLOCK_NBYTES, crc)
    return crc


def _of_zeros(opened: ReadFile, stored: Stored, crc: int) -> int:
    """``bytes`` of such an array in Python: NumPy says that it is a number, and a number stands for so many zeros."""
    content = opened.read(stored.extents[0].offset, ITEMSIZE[stored.spec.dtype])
    count = int.from_bytes(content, "little", signed=stored.spec.dtype.startswith("int"))
    if not 0 <= count <= _MOST_ZEROS:  # MindSpore could not have saved it
        return _of_bytes(opened, stored, crc)
    block = bytes(min(count, _BLOCK_NBYTES))
    for at in range(0, count, _BLOCK_NBYTES):
        crc = zlib.crc32(block[: count - at], crc)
    return crc
