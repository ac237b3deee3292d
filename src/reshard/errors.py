"""Every deliberate error of reshard.

    ReshardError                  exit
    ├── UsageError                 2    the command or call is wrong
    ├── InputError                 3    what was given to read is wrong
    │   ├── FormatError                 a weight file is broken or of a kind that we do not read
    │   ├── StrategyError               a strategy file or folder is broken, incomplete or mixed
    │   ├── LayoutError                 a tensor cannot be cut as its layout says
    │   ├── CheckpointError             the files do not make a whole checkpoint
    │   └── PlanError                   some target byte has no agreed source
    ├── StorageError               4    no space, no permission, an I/O fault
    ├── RunError                   5    a worker failed while bytes moved
    └── DifferenceError            1    a verification or comparison found a difference

Built-in exceptions that reach the user are bugs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_RANKS_NAMED = 8
_NAMED = 4
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_INSTALLED_DOCS = os.path.join(os.path.dirname(__file__), "docs")


def docs_page(page: str) -> str:
    """The file of a page of the documentation: it is installed with the package, and lies beside a tree under work."""
    return f"{_INSTALLED_DOCS if os.path.isdir(_INSTALLED_DOCS) else 'docs'}/{page}.md"


class ReshardError(Exception):
    """Root of the tree: what was seen and expected, where, and what to do next."""

    exit_code = 3

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message, where, hint)
        self.message = message
        self.where = where
        self.hint = hint

    @property
    def docs(self) -> str:
        """Where the documentation tells of errors of this class."""
        return f"{docs_page('reference/errors')}#{type(self).__name__.lower()}"

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class UsageError(ReshardError):
    """The command or the call is wrong: options that contradict, a target that is not empty."""

    exit_code = 2


class InputError(ReshardError):
    """What was given to read is wrong."""


class FormatError(InputError):
    """A weight file is broken, or of a kind that we do not read or cannot write."""


class StrategyError(InputError):
    """A strategy file or folder is broken, incomplete or mixed."""


class LayoutError(InputError):
    """A tensor cannot be cut as its layout says."""


class CheckpointError(InputError):
    """The files found do not make one whole checkpoint."""


class PlanError(InputError):
    """Some target byte has no source, or no agreed one."""


class StorageError(ReshardError):
    """No space, no permission, or an I/O fault."""

    exit_code = 4


class RunError(ReshardError):
    """A worker failed while bytes moved."""

    exit_code = 5


class DifferenceError(ReshardError):
    """A verification or a comparison found a difference."""

    exit_code = 1


@contextmanager
def located(where: str) -> Iterator[None]:
    """Wrong input that is found meanwhile is told with where it lies, unless that is known better."""
    try:
        yield
    except InputError as error:
        raise type(error)(error.message, error.where or where, error.hint) from None


@contextmanager
def reported(path: object) -> Iterator[None]:
    """Turn the system's errors into ours, with the file and what to do."""
    try:
        yield
    except OSError as error:
        raise translated(error, str(path)) from error
    except ValueError:
        if "\0" not in str(path):
            raise
        raise CheckpointError("no file has a NUL in its name", str(path).replace("\0", "\\0")) from None


def translated(error: OSError, path: str) -> ReshardError:
    """The system's error as ours."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"no space: {said}", path, "free some space, then run again with --resume")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"not allowed: {said}", path, "check owner and mode of the file and its folder")
    if error.errno == errno.ENOTDIR:
        return CheckpointError("no such file or folder: a file stands where its folder would be", path)
    if error.errno in (errno.ENOENT, errno.ELOOP):
        return CheckpointError("no such file or folder", path)
    if error.errno == errno.EISDIR:
        return CheckpointError("a folder, expected a file", path, "give the file that is meant")
    if error.errno == errno.ENXIO:
        return CheckpointError("a socket or a device, not a file", path)
    if error.errno == errno.ENAMETOOLONG:
        return StorageError(f"not allowed: {said}", path, "choose a shorter name")
    if error.errno == errno.EFBIG:
        return StorageError(said, path, "allow this process larger files (ulimit -f), or choose another file system")
    if error.errno == errno.EMFILE:
        return StorageError(said, path, "allow this process more open files (ulimit -n, RLIMIT_NOFILE)")
    return StorageError(said, path, "check the disk; run again with --resume")


def as_ours(error: BaseException) -> ReshardError:
    """What a program says of an error that is none of ours: of a file and of what runs out the system's word, else a
    bug.
    """
    if isinstance(error, OSError) and (error.filename or error.errno in _DISK):  # of a stream no name is told
        return translated(error, str(error.filename or ""))
    if isinstance(error, FileNotFoundError):  # only the current folder is asked for without a name
        return UsageError("the current folder is gone", hint="go to one that is there: cd")
    hint = "a bug in reshard; --debug shows where"
    if isinstance(error, MemoryError) or str(error) == "can't start new thread":
        hint = "allow this process more memory and threads (ulimit -v, ulimit -u), or give it fewer --workers"
    return RunError(f"{type(error).__name__}: {error}", hint=hint)


def listed(faults: list[str], limit: int = 8) -> str:
    """Faults one per line, the first ``limit`` of them; the rest counted.

    >>> print(listed(["a", "b", "c"], limit=2))
    a
    b
    and 1 more
    """
    shown = faults[:limit]
    if len(faults) > limit:
        shown = [*shown, f"and {len(faults) - limit:,} more"]
    return "\n".join(shown)


def some(names: Sequence[str]) -> str:
    """The first few names, and a mark of more.

    >>> some(["a", "b"]), some("abcdef")
    ('a, b', 'a, b, c, d …')
    """
    return ", ".join(names[:_NAMED]) + (" …" if names[_NAMED:] else "")


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "file"), counted(2000, "file"), counted(2, "entry")
    ('1 file', '2,000 files', '2 entries')
    """
    several = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else several}"


def named_ranks(ranks: Sequence[int]) -> str:
    """Ranks in words, the first few of them; the rest counted.

    >>> named_ranks([3]), named_ranks(range(10))
    ('rank 3', 'ranks 0, 1, 2, 3, 4, 5, 6, 7 and 2 more')
    """
    more = f" and {len(ranks) - _RANKS_NAMED} more" if len(ranks) > _RANKS_NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks[:_RANKS_NAMED]))}{more}"
