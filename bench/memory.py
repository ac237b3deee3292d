"""Free memory that stays with a virtual machine, so that what runs second does not pay for what ran first.

Linux gives large runs of free pages back to the host (free page reporting), which takes several times the copying to
bring them again. One page held in every megabyte and a half leaves no run that is large enough. Pages that lie in
pipes are held where they are; others the kernel would move together.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

_REPORTING = Path("/sys/module/page_reporting")
_STEP_NBYTES = 384 * mmap.PAGESIZE  # what is reported are runs of 512 pages or more
_SPARE_NBYTES = 1 << 30
_PIPE_PAGES = 256  # the most that an ordinary user's pipe may hold
_SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ, linux/fcntl.h


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


@contextmanager
def kept(nbytes: int) -> Iterator[None]:
    """Keep so much free memory here, or as much as there is; nothing where none would go away."""
    nbytes = min(nbytes, _free_nbytes() - _SPARE_NBYTES) if _REPORTING.exists() else 0
    with ExitStack() as pipes:
        if nbytes > 0:
            with mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
                memory.madvise(mmap.MADV_NOHUGEPAGE)
                np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
                starts = range(0, nbytes, _STEP_NBYTES)
                for i in range(0, len(starts), _PIPE_PAGES):
                    _hold(memory, starts[i : i + _PIPE_PAGES], pipes)
        yield


def _hold(memory: mmap.mmap, starts: range, pipes: ExitStack) -> None:
    """Put the pages that begin at these places into a pipe. Raises OSError."""
    ends = os.pipe()
    for end in ends:
        pipes.callback(os.close, end)
    fcntl.fcntl(ends[1], _SET_PIPE_SIZE, _PIPE_PAGES * mmap.PAGESIZE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    vectors = (_Vector * len(starts))(*(_Vector(base + start, mmap.PAGESIZE) for start in starts))
    libc = ctypes.CDLL(None, use_errno=True)
    taken = libc.vmsplice(ends[1], vectors, ctypes.c_size_t(len(vectors)), 0)
    if taken != len(starts) * mmap.PAGESIZE:
        raise OSError(ctypes.get_errno(), "vmsplice")


def _free_nbytes() -> int:
    found = re.search(r"MemFree:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    return int(found[1]) << 10 if found else 0
