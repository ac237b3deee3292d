"""Checkpoints named by a file: an index of parts, or one of our manifests."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from msgspec import Struct

from reshard.errors import CheckpointError, FormatError, listed
from reshard.foreign import HEAD_NBYTES, foreign
from reshard.formats.registry import format_of
from reshard.storage.storage import join
from reshard.storage.storages import content_of

EXTRAS_NAME = "hyper_param.safetensors"
_MANIFEST = re.compile(r"(.*?)/?\.reshard/(?:[^/]+/)?manifest\.json")
_INDEX = re.compile(r"(.+[._-])?index\.json|(param_name_map|weight_map).*\.json", re.IGNORECASE)
_MINDSPORE_INDEX = re.compile(r"param_name_map.*\.json")


class Index(Struct, frozen=True):
    """An index of weight files: the path of the file that each tensor is to be taken from.

    ``total_nbytes``: of all tensors, as it says; None where it does not.
    """

    path: str
    folder: str
    holders: Mapping[str, str]
    total_nbytes: float | None

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.holders.values())))

    @property
    def extras(self) -> str:
        """What MindSpore keeps beside its parts and does not name; "" where there is none."""
        name = self.path.rpartition("/")[2]
        return join(self.folder, EXTRAS_NAME) if _MINDSPORE_INDEX.fullmatch(name) else ""

    @property
    def formats(self) -> set[str]:
        """Those of its files; "" for files that are not read."""
        return {form.name if (form := format_of(file)) else "" for file in self.files}


def read_index(path: str) -> Index:
    """Raises CheckpointError for any other JSON."""
    content = _read_json(path)
    named = content.get("weight_map", content) if isinstance(content, dict) else None
    bare = named is content  # any JSON of strings, as a small config.json, where they are no files of weights
    if not isinstance(named, dict) or not named or not all(_names_a_file(value, bare=bare) for value in named.values()):
        raise CheckpointError(
            "not an index of weight files: no map of tensors to files",
            path,
            "give the folder that it lies in, or the index of its weight files",
        )
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else ".")
    told = content.get("metadata")
    total = told.get("total_size") if isinstance(told, dict) else None
    holders = {name: join(folder, file) for name, file in named.items()}
    return Index(path, folder, holders, total if isinstance(total, int | float) else None)


def _names_a_file(value: Any, *, bare: bool) -> bool:
    return isinstance(value, str) and (format_of(value) is not None if bare else value != "")


def index_in(folder: str, names: Iterable[str], formats: Collection[str]) -> Index | None:
    """The index among the files of a folder, of any name; one of torch files only where there are no others.

    Args:
        formats: those of the weight files that lie right in the folder.

    Raises:
        CheckpointError: several that differ.
    """
    indexes = [read_index(join(folder, name)) for name in sorted(names) if _INDEX.fullmatch(name)]
    others = [index for index in indexes if index.formats != {"torch"}]
    ours = [index for index in others or indexes if "" not in index.formats]
    if not others and not set(formats) <= {"torch"}:
        return None
    ours = _by_their_own_names(ours)
    if any(index.holders != ours[0].holders for index in ours):
        raise CheckpointError(
            f"{len(ours)} indexes in one folder, of different files",
            folder,
            "name the one that is meant:\n" + listed([index.path for index in ours]),
        )
    return next(iter(ours or others or indexes), None)


def _by_their_own_names(indexes: Collection[Index]) -> list[Index]:
    """Without a map of MindSpore of files that another index names as well: MindFormers leaves one in a folder of
    Hugging Face that it loads, with the names that it gives to what is in the files.
    """
    named = {file for index in indexes if not index.extras for file in index.files}
    return [index for index in indexes if not index.extras or not named.issuperset(index.files)]


class OurFiles(Struct, frozen=True):
    """``files`` with the rank that each belongs to, below ``folder``, as we wrote them."""

    folder: str
    files: tuple[tuple[int, str], ...]
    distributed: bool


def manifest_at(path: str) -> OurFiles | None:
    """What one of our manifests names; None for another JSON by its place. Raises CheckpointError."""
    place = _MANIFEST.fullmatch(path)
    if place is None:
        return None
    folder = place[1] or "."
    content = _read_json(path)
    try:
        told = [(int(f["rank"]), str(f["path"])) for f in content["files"] if format_of(f["path"])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"not a manifest: {error!r}", path) from None
    distributed = any(name.startswith("rank_") for _, name in told)
    return OurFiles(folder, tuple((rank, join(folder, name)) for rank, name in sorted(told)), distributed)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What a map of JSON says. Raises ValueError for a key that is there twice: readers take either."""
    made = dict(pairs)
    for key, value in pairs if len(made) < len(pairs) else ():
        if made[key] != value:
            raise ValueError(f"{key!r} is said to be {str(value)[:80]!r} and {str(made[key])[:80]!r}")
    return made


def _read_json(path: str) -> Any:
    content = content_of(path)
    try:
        return json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        found = foreign(content[:HEAD_NBYTES])
        if found is not None and not content.lstrip().startswith((b"{", b"[")):
            raise FormatError(f"not an index of weight files: {found.what}", path, found.hint) from None
        raise CheckpointError(f"not an index of weight files: {error}", path) from None
