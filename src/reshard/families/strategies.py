"""Strategies by path or URL: what ``strategy`` reads, from wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

from reshard.layout.stages import Strategy
from reshard.storage.storage import is_url, join
from reshard.storage.storages import content_of, storage_of
from reshard.strategy import folder as local
from reshard.strategy.file import StrategyFile
from reshard.strategy.folder import AnyPath


def read_strategy(given: str | Path | Strategy) -> Strategy:
    """Read a strategy file (.ckpt or .json) or a folder of per-rank files; one that was read already is what it is.

    Raises StrategyError, StorageError.
    """
    return given if isinstance(given, Strategy) else local.read_strategy(_path(given))


def merge_stages(folder: str | Path) -> StrategyFile:
    """The per-rank files of a folder as one file of all stages, names as ``0-name``. Raises StrategyError."""
    return local.merge_stages(_path(folder))


def merged_file(path: str | Path) -> tuple[str, bytes]:
    """A strategy as one file, its suffix and content: a folder's stages merged, a file as it is."""
    given = _path(path)
    if not given.is_dir():
        return ".json" if given.suffix == ".json" else ".ckpt", local.bytes_of(given)
    merged = local.merge_stages(given)
    return f".{merged.kind}", local.encode(merged, current_stage=1)


def _path(path: str | Path) -> AnyPath:
    return _Remote(str(path).rstrip("/")) if is_url(str(path)) else Path(path)


class _Remote:
    """A URL with those manners of a path that reading strategies needs. A file is fetched once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = url.rpartition("/")[2]
        self.suffix = f".{self.name.rpartition('.')[2]}" if "." in self.name else ""

    def __str__(self) -> str:
        return self._url

    def is_dir(self) -> bool:
        if self.suffix in local.SUFFIXES:  # as over http(s), where nobody can tell
            return False
        there = storage_of(self._url).entry(self._url)
        return there is not None and there.folder

    def iterdir(self) -> Iterator[_Remote]:
        """The files of the folder; those that may be strategies are fetched, many at once."""
        storage = storage_of(self._url)
        entries = storage.entries(self._url)
        files = [_Remote(join(self._url, e.name)) for e in entries if not e.folder]
        with ThreadPoolExecutor(storage.at_once) as pool:
            list(pool.map(_Remote.read_bytes, (f for f in files if f.suffix in local.SUFFIXES)))
        return iter(files)

    def read_bytes(self) -> bytes:
        return self._content

    @cached_property
    def _content(self) -> bytes:
        return content_of(self._url)
