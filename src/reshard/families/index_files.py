"""Checkpoints named by a file: an index of parts, or one of our manifests."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

from reshard.errors import CheckpointError
from reshard.formats.registry import format_of
from reshard.storage.storage import join
from reshard.storage.storages import content_of

_MANIFEST = re.compile(r"(.*?)/?\.reshard/(?:[^/]+/)?manifest\.json")


class Named(Struct, frozen=True):
    """``files`` with the rank that each belongs to, below ``folder``."""

    folder: str
    files: tuple[tuple[int, str], ...]
    distributed: bool


def read_named(path: str) -> Named:
    """The files that an index or a manifest names. Raises CheckpointError for any other JSON."""
    manifest = _MANIFEST.fullmatch(path)
    if manifest is None:
        folder = path.rpartition("/")[0] or "."
        return Named(folder, tuple((0, join(folder, name)) for name in sorted(parts_named(path))), distributed=False)
    folder = manifest[1] or "."
    content = _read_json(path)
    try:
        told = [(int(f["rank"]), str(f["path"])) for f in content["files"] if format_of(f["path"])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"not a manifest: {error!r}", path) from None
    distributed = any(name.startswith("rank_") for _, name in told)
    return Named(folder, tuple((rank, join(folder, name)) for rank, name in sorted(told)), distributed)


def parts_named(index: str) -> set[str]:
    """The files that an index says its tensors lie in. Raises CheckpointError."""
    content = _read_json(index)
    named = content.get("weight_map", content) if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError("not an index of weight files: no map of tensors to files", index)
    return set(named.values())


def _read_json(path: str) -> Any:
    try:
        return json.loads(content_of(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"not an index of weight files: {error}", path) from None
