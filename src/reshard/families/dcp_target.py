"""A folder for PyTorch's ``dcp.load``: ``__0_0.distcp`` and so on, balanced, and ``.metadata``, which tells of all."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import ClassVar

from msgspec import Struct

from reshard.errors import UsageError
from reshard.families.targets import AskedTarget
from reshard.formats.dcp_written import WrittenChunk, metadata_bytes
from reshard.formats.distcp import Distcp, items_of
from reshard.index import Extent, TensorSpec
from reshard.layout.stages import layout_of_full
from reshard.layout.tensor import Layout, Sharding
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Kept
from reshard.planning.plan import PlannedFile, SmallFile
from reshard.planning.target import Draft, Files, Texts

_MOST_FILES = 4096
_KeptLayouts = list[tuple[Kept, Layout]]


class DcpTarget(Struct, frozen=True):
    """``count`` files of about the same size. A tensor that is more than a file's part of the whole is cut."""

    count: int = 1
    name: ClassVar[str] = "dcp"
    strategy: ClassVar[None] = None

    def files(self, draft: Draft) -> Files:
        planned, metadata = chunked(draft, self.count, Objects(draft.texts(0)))
        return Files(draft.asked_for(planned), len(planned), (SmallFile(".metadata", metadata),))


class Objects(Struct, frozen=True):
    """What lies beside tensors: texts by name, and names of what is a list of nothing."""

    texts: Texts = ()
    empty: tuple[str, ...] = ()


def chunked(draft: Draft, count: int, objects: Objects, folder: str = "") -> tuple[list[PlannedFile], bytes]:
    """The files of all that is kept, and what ``.metadata`` says of them. Objects lie in the first.

    Args:
        folder: in which they are to lie, with its slash.
    """
    planned: list[PlannedFile] = []
    chunks: dict[str, tuple[TensorSpec, list[WrittenChunk]]] = {}
    places: dict[str, tuple[str, Extent]] = {}
    for number, held in enumerate(divided(draft.kept, count)):
        if not held:
            continue
        path, beside = f"__{number}_0.distcp", Objects() if planned else objects
        cuts = tuple(draft.cut(kept, layout, 0) for kept, layout in held)
        form = draft.form(cuts, beside.texts, Distcp(beside.empty), ())
        tensors = [draft.assembler.tensors[at] for at, _ in cuts]
        cut = {t.name: (t.spec, layout) for t, (_, layout) in zip(tensors, held, strict=True)}
        shards = {name: spec.of_shape(layout.shard_shape) for name, (spec, layout) in cut.items()}
        items = items_of(shards, dict(beside.texts), beside.empty)
        places |= {name: (path, items[name]) for name in (*dict(beside.texts), *beside.empty)}
        for name, (spec, layout) in cut.items():
            box = layout.box(number)
            chunks.setdefault(name, (spec, []))[1].append(WrittenChunk(box.start, box.shape, path, items[name]))
        planned.append(PlannedFile(len(planned), f"{folder}{path}", 0, number, form, number))
    return planned, metadata_bytes(chunks, places)


def dcp_asked(asked: AskedTarget, source: Catalog) -> DcpTarget:
    """Raises UsageError for a number of files that is none."""
    if not 0 <= asked.files <= _MOST_FILES:
        raise UsageError(f"--files {asked.files}", hint=f"a number from 1 to {_MOST_FILES:,}")
    return DcpTarget(asked.files or 1)


def divided(kept: Sequence[Kept], count: int) -> list[_KeptLayouts]:
    """What each file holds, in the order of the source: the largest first, each to the file that has the least."""
    total = sum(one.tensor.spec.nbytes for one in kept)
    loads = [0] * count
    chosen: dict[int, list[tuple[int, Layout]]] = {}
    for number in sorted(range(len(kept)), key=lambda n: -kept[n].tensor.spec.nbytes):
        spec = kept[number].tensor.spec
        layout = _layout(spec, count if spec.nbytes * count > total else 1, count)
        parts = max(layout.sharding.parts, default=1)
        for part in range(parts):
            file = min(range(part, count, parts), key=loads.__getitem__)
            loads[file] += spec.nbytes // parts
            chosen.setdefault(file, []).append((number, layout))
    return [[(kept[n], layout) for n, layout in sorted(chosen.get(f, ()), key=lambda c: c[0])] for f in range(count)]


def _layout(spec: TensorSpec, most: int, count: int) -> Layout:
    """A cut of the dim that divides best into as many parts as there are files, or a number that divides these."""
    parts = [gcd(size, most) if size else 1 for size in spec.shape]
    best = parts.index(max(parts)) if parts else 0
    if not parts or parts[best] == 1:
        return layout_of_full(Sharding.whole(count, len(spec.shape)), spec.shape)
    axes = tuple((0,) if dim == best else () for dim in range(len(parts)))
    return layout_of_full(Sharding((count // parts[best], parts[best]), axes), spec.shape)
