"""Buffers to work in."""

from __future__ import annotations

import mmap
import threading
from contextlib import suppress

_LEAST_NBYTES = 1 << 20


class Scratch(threading.local):
    """Buffers that a thread keeps, so that memory is neither zeroed nor faulted in again for every block."""

    def __init__(self) -> None:
        self._buffers: dict[str, memoryview] = {}
        self._known: dict[object, memoryview] = {}
        self._used = 0
        self._inner: Scratch | None = None

    @property
    def inner(self) -> Scratch:
        """Others, for what is made while these are in use."""
        if self._inner is None:
            self._inner = Scratch()
        return self._inner

    def take(self, use: str, nbytes: int) -> memoryview:
        """Bytes to write to; what they held before is lost."""
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < nbytes:
            buffer = self._buffers[use] = _memory(max(nbytes, _LEAST_NBYTES))
        return buffer[:nbytes]

    def known(self, content: object, nbytes: int, room: int) -> tuple[memoryview, bool]:
        """Bytes for a content of this name, and whether they have it already. As many contents are kept as there is
        ``room`` for.
        """
        if (found := self._known.get(content)) is not None:
            return found, True
        if self._used + nbytes > room:
            self._known.clear()
            self._used = 0
        buffer = self.take("known", max(nbytes, room))[self._used : self._used + nbytes]
        self._known[content] = buffer
        self._used += nbytes
        return buffer, False


def _memory(nbytes: int) -> memoryview:
    """Memory of this process alone, in huge pages where the system has them."""
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)
