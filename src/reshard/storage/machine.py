"""What the machine suggests: how many workers, how fast they may go."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reshard.storage.storage import is_url

_NETWORK = frozenset({"nfs", "nfs4", "lustre", "ceph", "fuse.ceph", "glusterfs", "beegfs", "gpfs", "dpc", "cifs", "9p"})
_NETWORK_WORKERS = 16
_REMOTE_WORKERS = 32
_MOST_LOCAL_WORKERS = 8
_ASK_S = 0.2
_ESCAPED = re.compile(r"\\([0-7]{3})")  # as a space in a path is told


def filesystem(path: str | Path) -> str:
    """The type of the file system that a path lies on or would lie on, as ``ext4``; "" where nothing tells."""
    return _of_mount(Path(path), _mounts())[0]


def is_network(kind: str) -> bool:
    """Whether a file system of this type is reached through a network."""
    return kind in _NETWORK


def has_server_copies(path: str | Path) -> bool:
    """Whether a server lets its files be copied without sending them: NFS from 4.2 on."""
    kind, options = _of_mount(Path(path), _mounts())
    return kind in ("nfs", "nfs4") and "vers=4.2" in options.split(",")


def is_mount_point(path: str | Path) -> bool:
    """Whether something is mounted at a path, be it a folder of the same disk."""
    return os.path.realpath(path) in _mounts()


def memory_limit_nbytes() -> int | None:
    """What the control groups of this process let it take, the strictest of them; None without a limit."""
    limits = [_number(file) for file in _control_files()]
    return min((limit for limit in limits if limit is not None and limit < 1 << 60), default=None)


def _control_files() -> list[Path]:
    """The memory limit of this process's control group and of all groups around it."""
    root = Path("/sys/fs/cgroup")
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line.split(":", 2)[2] for line in groups if line.startswith("0::")), "/").lstrip("/")
    folder = root / own
    limits = (parent / "memory.max" for parent in (folder, *folder.parents) if parent.is_relative_to(root))
    return [root / "memory/memory.limit_in_bytes", *limits]


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def auto_workers(paths: Iterable[str]) -> int:
    """Threads that suit where the paths lie: one a core on a local disk, from two to eight; sixteen on a network, where
    a request waits more than it works; and thirty-two in object storage, where it waits longest.
    """
    paths = list(paths)
    if any(map(is_url, paths)):
        return _REMOTE_WORKERS
    mounts = _mounts()
    if any(_of_mount(Path(p), mounts)[0] in _NETWORK for p in paths):
        return _NETWORK_WORKERS
    return max(2, min(_MOST_LOCAL_WORKERS, os.cpu_count() or 2))


@contextmanager
def uncollected() -> Iterator[None]:
    """Plans are hundreds of thousands of small values and no circles; looking for circles takes a third of the time.
    Nor is what was made meanwhile looked through as soon as that is over: it counts as old.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.unfreeze()
            gc.enable()


@contextmanager
def set_aside() -> Iterator[None]:
    """The collector does not look through what exists by now, a plan above all, again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _mounts() -> dict[str, tuple[str, str]]:
    """Mount point → file system type and options, as Linux tells; empty elsewhere."""
    try:
        lines = os.fsdecode(Path("/proc/self/mounts").read_bytes()).splitlines()
    except OSError:
        return {}
    found = (words for words in map(str.split, lines) if len(words) > 3)
    return {_ESCAPED.sub(lambda m: chr(int(m[1], 8)), words[1]): (words[2], words[3]) for words in found}


def _of_mount(path: Path, mounts: dict[str, tuple[str, str]]) -> tuple[str, str]:
    resolved = path.absolute()
    return next((mounts[str(p)] for p in (resolved, *resolved.parents) if str(p) in mounts), ("", ""))


def paced(then: Callable[[int], None], nbytes_a_second: int) -> Callable[[int], None]:
    """Call ``then`` with every number of bytes, and wait as long as keeps all callers together below the rate. It is
    called with 0 meanwhile, and may end the wait by what it raises.
    """
    lock = threading.Lock()
    free_at = time.monotonic()

    def on_bytes(nbytes: int) -> None:
        nonlocal free_at
        then(nbytes)
        with lock:
            free_at = max(free_at, time.monotonic()) + nbytes / nbytes_a_second
            wait = free_at - time.monotonic()
        while wait > 0:
            time.sleep(min(wait, _ASK_S))
            wait -= _ASK_S
            then(0)

    return on_bytes
