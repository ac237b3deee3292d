"""The seam of families: what kind of checkpoint lies at a path, and what it holds."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from reshard.families.source import Source
from reshard.planning.catalog import Catalog
from reshard.storage.storage import Entry, join


class Listing(Struct, frozen=True):
    """What lies at a path: a file or a folder, and the folder's entries."""

    path: str
    there: Entry
    entries: tuple[Entry, ...] = ()

    @property
    def folder(self) -> bool:
        return self.there.folder

    def entry(self, name: str) -> Entry | None:
        """The folder's entry of this name."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def at(self, name: str) -> str:
        """The path of an entry."""
        return join(self.path, name)


class Family(Protocol):
    """A kind of checkpoint, by the files that it consists of. Holds no state."""

    @property
    def name(self) -> str:
        """What ``--from`` calls it."""
        ...

    @property
    def takes(self) -> frozenset[str]:
        """Which of ``strategy``, ``iteration``, ``select``, ``suffix``, ``frozen`` of a source it understands."""
        ...

    def recognises(self, there: Listing) -> bool:
        """Whether this is one, by names and first bytes. Two families that recognise one place have to be told apart
        by the user.
        """
        ...

    def read(self, there: Listing, source: Source) -> Catalog:
        """All that is there, from headers and small files. ``family`` of the catalog says in words what wrote it.

        Raises InputError with what is missing or contradictory.
        """
        ...
