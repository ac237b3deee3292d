"""The files that a task reads."""

from __future__ import annotations

import threading

from reshard.errors import CheckpointError, RunError
from reshard.index import ZEROS
from reshard.planning.blocks import Access
from reshard.planning.plan import SourceFile
from reshard.storage.storage import ReadFile
from reshard.storage.storages import storage_of

_STILL = "start again when nothing writes it"


class Sources:
    """The source files of a task, each opened when first read, and checked to be the file that was planned."""

    def __init__(self, files: tuple[SourceFile, ...]) -> None:
        self._files = files
        self._open: dict[int, ReadFile] = {}
        self._lock = threading.Lock()
        self.read_nbytes = 0

    def read_into(self, access: Access, buffer: memoryview) -> None:
        """Fill the buffer, with zeros where no file holds them."""
        if access.file == ZEROS:
            buffer[:] = bytes(len(buffer))
            return
        file = self._file(access.file)
        at = 0
        for extent in access.ranges:
            part = buffer[at : at + extent.nbytes]
            file.read_into(extent.offset, part)
            if extent.coded is not None:
                part[:] = extent.coded.decoded(bytes(part))
            at += extent.nbytes
        if at != len(buffer):
            raise RunError(f"{at} bytes for {len(buffer)} that are wanted", self._files[access.file].path)
        with self._lock:
            self.read_nbytes += at

    def _file(self, number: int) -> ReadFile:
        with self._lock:
            file = self._open.get(number)
        if file is not None:
            return file
        planned = self._files[number]
        file = storage_of(planned.path).open(planned.path)  # not under the lock: a store is far away
        with self._lock:
            kept = self._open.setdefault(number, file)
        if kept is not file:
            file.close()
        if (kept.nbytes, kept.mtime_ns) != (planned.nbytes, planned.mtime_ns):
            raise CheckpointError("the file changed after it was planned", planned.path, _STILL)
        return kept

    def check(self, number: int) -> None:
        """Raises CheckpointError where a file is not the one that was planned."""
        self._file(number)

    def check_unchanged(self) -> None:
        """Raises CheckpointError where a file was written to while it was read."""
        with self._lock:
            for number, file in self._open.items():
                if file.changed():
                    raise CheckpointError("the file changed while it was read", self._files[number].path, _STILL)

    def close(self) -> None:
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()
