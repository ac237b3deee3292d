"""What the ranks of a job tell one another, as small files in a folder that all of them see.

``rank_r.json`` is rank r's own: it says who it is and that it lives. ``generation.json`` is the leader's: it lists the
nonces of the ranks that make this run, so that what an earlier run left is never taken for a rank's word.
``<generation>/`` holds what was said since: ``failed_r.json``, and what the leader announces.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from reshard.auto.processes import Process
from reshard.errors import CheckpointError, InputError, ReshardError, RunError, StorageError, reported
from reshard.storage.disk import Disk

T = TypeVar("T")
_RANK = re.compile(r"rank_\d+\.json")
_FAILED = re.compile(r"failed_(\d+)\.json")
_GENERATION = re.compile(r"[0-9a-f]{16}")
_INTERRUPTED = 130


class Word(Struct, frozen=True):
    """A rank's own file.

    Attributes:
        nonce: of this start of the process alone.
        joined: whether the rank waits for the others; before, it looks alone whether there is anything to do together.
        generation: the one that the rank has accepted; "" before.
        beat: counts up while the process lives.
        progress: counts up while its work goes on.
        left: whether the rank has ended, and said how if not well.
    """

    rank: int
    nonce: str
    process: Process
    about: str
    joined: bool = False
    generation: str = ""
    beat: int = 0
    progress: int = 0
    left: bool = False


class Failure(Struct, frozen=True):
    """An error of one rank, for the others. ``seen_by`` is the rank that tells it of one that cannot."""

    rank: int
    message: str
    where: str = ""
    hint: str = ""
    exit_code: int = RunError.exit_code
    seen_by: int | None = None

    @staticmethod
    def of(rank: int, error: BaseException, seen_by: int | None = None) -> Failure:
        if isinstance(error, ReshardError):
            return Failure(rank, error.message, error.where, error.hint, error.exit_code, seen_by)
        if isinstance(error, KeyboardInterrupt):
            return Failure(rank, "interrupted", exit_code=_INTERRUPTED)
        return Failure(rank, f"{type(error).__name__}: {error}")


class Generation(Struct, frozen=True):
    """A run: its ranks' processes by rank. ``failure`` where the run ended before it began."""

    name: str
    nonces: dict[int, str]
    processes: dict[int, Process]
    failure: Failure | None = None


class RecordsFolder:
    """The records of all runs below one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def word(self, rank: int) -> Word | None:
        return self._read(self.path / f"rank_{rank}.json", Word)

    def words(self) -> list[Word]:
        """Of all ranks that ever said something here."""
        found = (self._read(self.path / name, Word) for name in self._names(self.path) if _RANK.fullmatch(name))
        return [word for word in found if word]

    def say(self, word: Word) -> None:
        self._write(self.path / f"rank_{word.rank}.json", word)

    def withdraw(self, rank: int) -> None:
        """Remove what a rank said, and the folder where nobody else said anything."""
        with suppress(OSError):
            (self.path / f"rank_{rank}.json").unlink()
            self.path.rmdir()
            self.path.parent.rmdir()

    def generation(self) -> Generation | None:
        return self._read(self.path / "generation.json", Generation)

    def announce(self, generation: Generation) -> None:
        with reported(self.path):
            (self.path / generation.name).mkdir(parents=True, exist_ok=True)
        self._write(self.path / "generation.json", generation)

    def forget_all_but(self, generation: str) -> None:
        """Remove what earlier runs said."""
        for name in self._names(self.path):
            if _GENERATION.fullmatch(name) and name != generation:
                shutil.rmtree(self.path / name, ignore_errors=True)

    def failures(self, generation: str) -> list[Failure]:
        """Errors of a run, the first rank's first."""
        ranks = sorted(int(m[1]) for m in map(_FAILED.fullmatch, self._names(self.path / generation)) if m)
        found = (self._read(self.path / generation / f"failed_{rank}.json", Failure) for rank in ranks)
        return [failure for failure in found if failure]

    def fail(self, generation: str, failure: Failure) -> None:
        """Tell an error; of two about one rank the first stays."""
        path = self.path / generation / f"failed_{failure.rank}.json"
        Disk().create_whole(str(path), msgspec.json.encode(failure), fsync=False)

    def tell(self, generation: str, name: str, value: object) -> None:
        self._write(self.path / generation / f"{name}.json", value)

    def told(self, generation: str, name: str, kind: type[T]) -> T | None:
        return self._read(self.path / generation / f"{name}.json", kind)

    def look_afresh(self) -> None:
        """Make a network file system forget what it remembers of the folder: it does so after a change of our own."""
        with suppress(OSError):
            probe = self.path / f".look-{id(self)}"
            probe.touch()
            probe.unlink()

    def _names(self, folder: Path) -> list[str]:
        try:
            return [p.name for p in folder.iterdir()]
        except OSError:
            return []

    def _write(self, path: Path, value: object) -> None:
        Disk().write_whole(str(path), msgspec.json.encode(value), fsync=False)

    def _read(self, path: Path, kind: type[T]) -> T | None:
        """A record; None where there is none yet, or none that this release can read: another will take its place."""
        try:
            with reported(path):
                return msgspec.json.decode(path.read_bytes(), type=kind)
        except (CheckpointError, StorageError, InputError, msgspec.MsgspecError, UnicodeDecodeError):
            return None


def nonces(words: Mapping[int, Word]) -> dict[int, str]:
    return {rank: word.nonce for rank, word in words.items()}
