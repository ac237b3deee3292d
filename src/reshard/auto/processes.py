"""Processes by what tells them apart for good, and whether one of this machine still lives."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from reshard.errors import RunError


class Process(Struct, frozen=True):
    """A process.

    Attributes:
        host: the machine's name, for messages.
        space: the machine since it was started and the process numbers that can be seen in it; "" where unknown.
        began: the machine's clock when the process began: a number may be given again.
    """

    host: str
    space: str
    pid: int
    began: str

    def began_after(self, other: Process) -> bool:
        """Whether it is known to have begun later than another of this machine."""
        return _can_be_seen(self) and _can_be_seen(other) and int(self.began) >= int(other.began)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    return _process(os.getpid())


def _process(pid: int) -> Process:
    status = _status(pid)
    return Process(socket.gethostname(), _space() if status else "", pid, status[1] if status else "")


def launcher() -> Process:
    """The process that started this one."""
    return _process(os.getppid())


def is_dead(process: Process) -> bool:
    """Whether a process is known to be over; of another machine, or one that sees other processes, nobody knows."""
    return _can_be_seen(process) and not _runs(process)


def is_alive(process: Process) -> bool:
    """Whether a process is known to run: not everybody of whom ``is_dead`` knows nothing."""
    return _can_be_seen(process) and _runs(process)


def _can_be_seen(process: Process) -> bool:
    return bool(process.space) and process.space == _space()


def _runs(process: Process) -> bool:
    status = _status(process.pid)
    return status is not None and status[0] not in "ZX" and status[1] == process.began


def _space() -> str:
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _status(pid: int) -> tuple[str, str] | None:
    """State and time of beginning of a process; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def ended(rank: int, process: Process) -> RunError:
    """What is said of a process of the job that is known to be over."""
    return RunError(
        f"rank {rank} ({process}) ended without a word", hint="was it killed, perhaps for want of memory? see its log"
    )
