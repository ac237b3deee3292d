"""What a search for weight files gives, and a file of a folder on the way to it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from reshard.errors import CheckpointError, UsageError
from reshard.families.torch_names import weight_names
from reshard.formats.registry import format_of
from reshard.planning.identity import hash_of
from reshard.storage.storage import Entry, join

Select = Literal["natural", "name", "mtime", "step"]
SELECTS: tuple[Select, ...] = ("natural", "name", "mtime", "step")


def as_select(text: str) -> Select:
    """The rule of this name. Raises UsageError."""
    for rule in SELECTS:
        if rule == text:
            return rule
    raise UsageError(f"--select {text!r}", hint=f"one of: {', '.join(SELECTS)}")


class Found(Struct, frozen=True):
    """Files with the rank that each belongs to; all of rank 0 where ``distributed`` is False.

    Attributes:
        newest_ns: when the last of them changed.
        index: the index that chose them, "" without one.
        holders: the file that the index says each tensor is to be taken from.
        total_nbytes: of all tensors, as the index says; None where none does.
        empty: ranks whose folder holds no weight file.
    """

    path: str
    files: tuple[tuple[int, str], ...]
    distributed: bool
    warnings: tuple[str, ...] = ()
    newest_ns: int = 0
    index: str = ""
    holders: Mapping[str, str] = {}
    total_nbytes: float | None = None
    empty: tuple[int, ...] = ()

    @property
    def told_by(self) -> Mapping[str, str]:
        """The index by name, with a hash of what it says, wherever its folder lies."""
        if not self.index:
            return {}
        folder, name = posixpath.split(self.index)
        files = {path: posixpath.relpath(path, folder or ".") for path in set(self.holders.values())}
        return {name: hash_of([(tensor, files[path]) for tensor, path in sorted(self.holders.items())])}

    @property
    def whole(self) -> bool:
        """Whether it is one full checkpoint without a strategy's word: full files, or rank_0 where no other rank is."""
        return not self.distributed or ([rank for rank, _ in self.files] == [0] and not self.empty)


class WeightFile(Struct, frozen=True):
    """A file of a folder whose name is that of weights."""

    folder: str
    entry: Entry

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def path(self) -> str:
        return join(self.folder, self.name)

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def format(self) -> str:
        form = format_of(self.name)
        return form.name if form else ""


def name_below(root: str, path: str) -> str:
    """What a file is called in its checkpoint, which may be the file itself.

    >>> name_below("ckpt", "ckpt/rank_0/m.ckpt"), name_below("ckpt/m.ckpt", "ckpt/m.ckpt")
    ('rank_0/m.ckpt', 'm.ckpt')
    """
    return path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]


def weights(folder: str, entries: Iterable[Entry]) -> list[WeightFile]:
    """Those of a folder's files. A name that begins with a dot is none: macOS leaves a ``._`` twin of each file."""
    files = [WeightFile(folder, e) for e in entries if not e.folder and e.name[0] != "." and format_of(e.name)]
    taken = weight_names(f.name for f in files)
    return [f for f in files if f.name in taken]


def with_suffix(path: str, files: list[WeightFile], suffix: str) -> list[WeightFile]:
    """Files whose name ends in ``suffix`` before its extension; a number in the name is not cut in two."""
    if not suffix:
        return files
    cut = r"(?<!\d)" if suffix[0].isdigit() else ""
    found = [p for p in files if re.search(rf"{cut}{re.escape(suffix)}$", p.stem)]
    if not found:
        raise CheckpointError(f"no file whose name ends in {suffix!r} (of {len(files)} files)", path, "check --suffix")
    return found


def refuse_dangling(files: Iterable[WeightFile]) -> None:
    """A link that leads nowhere is a missing file. Raises CheckpointError naming them."""
    gone = [file.path for file in files if file.entry.dangling]
    if gone:
        raise CheckpointError(
            "links that lead to nothing:\n" + "\n".join(gone),
            hint="bring the files that they lead to (a cache that was pruned? download again), or remove the links",
        )
