"""Doctor: what this machine offers a conversion, and what stands in its way."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from reshard._version import __version__
from reshard.errors import ReshardError
from reshard.ops.checkup import Checkup, checkup
from reshard.storage.disk import Disk, exchange
from reshard.storage.machine import auto_workers, filesystem, is_network, memory_limit_nbytes
from reshard.storage.storage import is_url
from reshard.storage.storages import storage_of

_EXTRAS = {"obstore": "cloud", "ray": "ray"}
_FEW_FILES = 4096
_LEAST_MEMORY_NBYTES = 512 << 20
_RELATIONS = {">=": lambda a, b: a >= b, "<": lambda a, b: a < b, "==": lambda a, b: a == b}


class Machine(Struct, frozen=True):
    """What the process has. ``open_files``: at once, and what it may raise that to, as all other commands do;
    ``memory_limit_nbytes``: of its control group.
    """

    system: str
    cores: int
    workers: int
    page_nbytes: int
    memory_nbytes: int
    memory_available_nbytes: int | None
    memory_limit_nbytes: int | None
    open_files: int
    most_open_files: int


class FolderFacts(Struct, frozen=True):
    """Where files lie or would go. ``looked_at``: the deepest folder of the path that is there.

    What only a written file can tell (``links``: reflink, hardlink or none; ``exchanges``: two names in one step) is
    None where we may not write.
    """

    path: str
    looked_at: str
    filesystem: str
    network: bool
    free_nbytes: int
    nbytes: int
    writable: bool
    links: str | None
    exchanges: bool | None


class Store(Struct, frozen=True):
    """An object store; ``fault``: why it did not answer, "" where it did."""

    path: str
    fault: str


class Health(Struct, frozen=True):
    """All that was found. ``extras``: version or "" where absent; ``problems``: what will make conversions fail."""

    reshard: str
    python: str
    packages: Mapping[str, str]
    extras: Mapping[str, str]
    machine: Machine
    folders: tuple[FolderFacts, ...]
    stores: tuple[Store, ...]
    checkpoints: tuple[Checkup, ...]
    problems: tuple[str, ...]


def examine(paths: Iterable[str]) -> Health:
    """Look at the machine, at the file systems of paths, and at the checkpoints that lie there. In folders that may be
    written a small file is made and removed.

    Args:
        paths: none for the machine and the current folder's file system.
    """
    asked = tuple(paths)
    paths = asked or (".",)
    packages, missing = _packages()
    on_disk = [path for path in paths if not is_url(path)]
    machine = _machine(on_disk)
    folders = tuple(map(_folder, on_disk))
    stores = tuple(_store(path) for path in paths if path not in on_disk)
    python = f"{platform.python_version()} ({sys.executable})"
    silent = {store.path for store in stores if store.fault}
    checkpoints = tuple(filter(None, (checkup(path) for path in asked if path not in silent)))
    problems = (*missing, *_problems(machine), *(f"{s.path}: {s.fault}" for s in stores if s.fault))
    problems += tuple(str(fault) for found in checkpoints for fault in found.faults)
    extras = {name: _version(name) for name in _EXTRAS}
    return Health(__version__, python, packages, extras, machine, folders, stores, checkpoints, problems)


def extra_of(name: str) -> str:
    """What to install for an optional package.

    >>> extra_of("obstore")
    'reshard[cloud]'
    """
    return f"reshard[{_EXTRAS[name]}]"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> tuple[dict[str, str], tuple[str, ...]]:
    """The packages that we need with their versions, and what is wrong with them."""
    try:
        needed = [r for r in metadata.requires("reshard") or () if "extra ==" not in r]
    except metadata.PackageNotFoundError:  # run from a tree that is not installed
        needed = []
    found: dict[str, str] = {}
    wrong = []
    for requirement in needed:
        name = re.split(r"[<>=! ;\[]", requirement)[0]
        found[name] = _version(name)
        if not fits(found[name], requirement):
            wrong.append(f"{name} {found[name] or 'is absent'}: {requirement} is needed")
    return found, tuple(wrong)


def fits(version: str, requirement: str) -> bool:
    """Whether a version is in the range that a requirement states.

    >>> fits("1.26.4", "numpy<3,>=1.24"), fits("3.0", "numpy<3,>=1.24"), fits("", "numpy")
    (True, False, False)
    """
    bounds = re.findall(r"(>=|<|==)([\d.]+)", requirement.partition(";")[0])
    return bool(version) and all(_RELATIONS[relation](_key(version), _key(bound)) for relation, bound in bounds)


def _key(version: str) -> tuple[int, ...]:
    numbers = tuple(map(int, re.findall(r"\d+", version.partition("+")[0])))
    return (*numbers, 0, 0, 0)[:3]


def _machine(on_disk: list[str]) -> Machine:
    page = os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Machine(
        f"{platform.system()} {platform.release()} {platform.machine()}",
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        auto_workers(on_disk),
        page,
        page * os.sysconf("SC_PHYS_PAGES"),
        _available_nbytes(),
        memory_limit_nbytes(),
        soft,
        hard,
    )


def _available_nbytes() -> int | None:
    try:
        found = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _problems(machine: Machine) -> list[str]:
    found = []
    if sys.byteorder != "little":
        found.append("the processor is big-endian: weight files are little-endian")
    if 0 <= machine.most_open_files < _FEW_FILES:
        found.append(
            f"at most {machine.most_open_files:,} files may be open at once: merging as many ranks fails (ulimit -Hn)"
        )
    limit = machine.memory_limit_nbytes
    if limit is not None and limit < _LEAST_MEMORY_NBYTES:
        found.append(f"the memory limit of {limit:,} bytes is below {_LEAST_MEMORY_NBYTES:,}: give --max-memory")
    return found


def _folder(path: str) -> FolderFacts:
    looked_at = Path(path).absolute()
    while not looked_at.is_dir():
        looked_at = looked_at.parent
    status = os.statvfs(looked_at)
    kind = filesystem(looked_at)
    links, exchanges = _tried(looked_at)
    block = status.f_frsize
    return FolderFacts(
        path, str(looked_at), kind, is_network(kind), status.f_bavail * block, status.f_blocks * block,
        links is not None, links, exchanges,
    )  # fmt: skip


def _tried(folder: Path) -> tuple[str | None, bool | None]:
    """How files are linked there, and whether names change places; None where nothing may be written."""
    try:
        with tempfile.TemporaryDirectory(prefix=".reshard-doctor-", dir=folder) as place:
            a, b = os.path.join(place, "a"), os.path.join(place, "b")
            for path in (a, b):
                Path(path).write_bytes(bytes(4096))
            try:
                links: str = Disk().link(a, os.path.join(place, "c"), fsync=False)
            except ReshardError:
                links = "none"
            return links, exchange(a, b)
    except OSError:
        return None, None


def _store(path: str) -> Store:
    try:
        storage_of(path).entry(path)
    except ReshardError as error:
        return Store(path, error.message)
    return Store(path, "")
