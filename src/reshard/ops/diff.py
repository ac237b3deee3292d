"""Compare two checkpoints of any layouts and formats, value by value, without merging either."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ITEMSIZE
from reshard.errors import DifferenceError, UsageError, counted, listed
from reshard.families.open_checkpoint import open_source
from reshard.families.probe import agreements
from reshard.families.replicas import shown_values
from reshard.families.source import Source, source_at
from reshard.families.strategies import read_strategy
from reshard.hints import of_target
from reshard.index import ZEROS
from reshard.moving.mover import Mover
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources, files_of
from reshard.names.wishes import Naming
from reshard.ops.observer import Observer
from reshard.planning.assembly import assembled, every_copy, of_first_holders
from reshard.planning.blocks import Access
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.names import NameRules, is_state
from reshard.planning.plan import Move, PlannedTensor
from reshard.planning.steps import Piece
from reshard.storage.machine import auto_workers
from reshard.storage.storages import storage_of

_BLOCK_NBYTES = 4 << 20
_DISK_THREADS = 4


class Difference(Struct, frozen=True):
    """``index`` is the first element that differs, in the full tensor; ``a`` and ``b`` what either side has there.

    ``untold``: a side has it and nothing says what it is; ``a`` or ``b`` says why.
    """

    name: str
    kind: Literal["only in A", "only in B", "type or shape", "value", "incomplete", "untold"]
    a: str = ""
    b: str = ""
    index: tuple[int, ...] = ()
    where: str = ""

    def __str__(self) -> str:
        if self.kind == "value":
            return f"{self.name}{list(self.index)}: {self.a} in A, {self.b} in {self.where}"
        if self.kind == "untold":
            return f"{self.name}: untold in {'A' if self.a else 'B'}: {self.a or self.b}"
        return f"{self.name}: {self.kind}" + (f": {self.a} in A, {self.b} in B" if self.b else "")


class Comparison(Struct, frozen=True):
    """``tensors`` and ``nbytes`` are what was compared by value; bytes count every shard of B that was read.

    Attributes:
        hint: what makes two comparable whose names are of different conventions.
    """

    tensors: int
    nbytes: int
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...] = ()
    hint: str = ""

    @property
    def equal(self) -> bool:
        return not self.differences

    def lines(self) -> list[str]:
        return [str(d) for d in self.differences]


def diff(
    a: str | Path | Source, b: str | Path | Source, rules: NameRules | None = None, observer: Observer | None = None
) -> Comparison:
    """Compare two checkpoints; ``rules`` say which names, and rename those of A. Raises InputError for broken ones."""
    ours, theirs = (open_source(source_at(side)) for side in (a, b))
    return _compare(ours, theirs, rules or NameRules(), "", observer or Observer(), replicas=False)


def verify_content(
    src: str | Path | Source,
    dst: str | Path | Source,
    rules: NameRules | None = None,
    dtype: str = "",
    observer: Observer | None = None,
    naming: Naming | None = None,
) -> Comparison:
    """Prove that every shard in every file of ``dst`` is what ``src`` has there, and that nothing lacks or was added.

    Both sides are known by the headers of their files alone, whatever a manifest says. Optimizer states that the
    strategy of ``dst`` does not know may be absent. With ``naming``, ``src`` counts as another convention has it.

    Raises DifferenceError listing what differs.
    """
    src, dst = source_at(src), source_at(dst)
    source = open_source(replace(src, trust_manifest=False))
    with of_target():
        target = open_source(replace(dst, trust_manifest=False))
    rules = rules or NameRules()
    if naming and naming.changes:
        source, rules = _renamed(source, (src, dst), naming, rules), NameRules()
    found = _compare(source, target, rules, dtype, observer or Observer(), replicas=True)
    excused = [
        d.name
        for d in found.differences
        if d.kind == "only in A" and is_state(d.name) and target.expected and d.name not in target.expected
    ]
    faults = [str(d) for d in found.differences if d.name not in excused]
    if faults:
        raise DifferenceError(
            f"{counted(len(faults), 'tensor')} that differ (A is {src.path}, B is {dst.path}):\n" + listed(faults),
            dst.path,
            found.hint,
        )
    said = (
        (f"{len(excused)} optimizer states are not in {dst.path}, whose strategy does not have them",)
        if excused
        else ()
    )
    return Comparison(found.tensors, found.nbytes, (), (*found.warnings, *said))


def _renamed(source: Catalog, sides: tuple[Source, Source], naming: Naming, rules: NameRules) -> Catalog:
    """The source as the target has it, whose configuration may lie beside it."""
    from reshard.ops.naming import beside_of, models, renamed

    src, dst = sides
    if naming.dst and not (naming.model or naming.dst_model):
        naming = replace(naming, dst_model=beside_of(dst.path))
    strategy = read_strategy(dst.strategy) if dst.strategy else None
    return renamed(source, naming, models(src.path, naming), rules, strategy).catalog


def _compare(a: Catalog, b: Catalog, rules: NameRules, dtype: str, observer: Observer, *, replicas: bool) -> Comparison:
    idle = rules.idle({*a.tensors, *a.texts, *b.tensors, *b.texts})
    ours = {name: a.tensors[old] for name, old in rules.called(a.tensors).items()}
    if a.tensors and not ours:
        raise UsageError("\n".join(("no tensor is left to compare", *idle)), hint="check --include and --exclude")
    theirs = {n: t for n, t in b.tensors.items() if not rules.narrow or n in ours}
    differences = [Difference(n, "only in A") for n in ours if n not in theirs]
    differences += [Difference(n, "only in B") for n in theirs if n not in ours]
    differences += _texts(a, b, rules)
    differences += [Difference(n, "untold", a=a.withheld[old]) for n, old in rules.called(a.withheld).items()]
    differences += [Difference(n, "untold", b=why) for n, why in b.withheld.items() if rules.takes(n)]
    moves: list[Move] = []
    varied = {n for n, same in agreements(a, a.compared()).items() if not same}
    for name, tensor in ours.items():
        if name not in theirs:
            continue
        planned, other = of_first_holders(name, tensor, dtype), theirs[name]
        if planned.spec != other.spec:
            differences.append(Difference(name, "type or shape", str(planned.spec), str(other.spec)))
        elif tensor.shards.missing() or other.shards.missing():
            differences.append(Difference(name, "incomplete"))
        elif tensor.name in varied:
            differences += _varied(a, tensor, b, other)
        else:
            targets = every_copy(other) if replicas or other.compared else assembled(other).pieces
            moves.append(_move(planned, targets))
    nbytes = sum(_nbytes(m) for m in moves)
    observer.start("comparing", nbytes)
    try:
        with ThreadPoolExecutor(_threads(a, b)) as pool:
            compared = pool.map(lambda move: _values(move, a, b, observer), moves)
            differences += [d for d in compared if d is not None]
    finally:
        observer.end()
    apart = any(each.kind == "only in A" for each in differences) and any(d.kind == "only in B" for d in differences)
    told = _told_of_names(a, b) if apart else ""
    return Comparison(len(moves), nbytes, tuple(differences), (*a.warnings, *b.warnings, *idle), told)


def _told_of_names(a: Catalog, b: Catalog) -> str:
    from reshard.names.regroup import whose_names  # with all recipes

    ours, theirs = whose_names(a), whose_names(b)
    if not (ours and theirs) or ours == theirs:
        return ""
    return f"A has names of {ours}, B of {theirs}: reshard verify A B --dst-names {theirs} compares what they hold"


def _move(planned: PlannedTensor, targets: Sequence[Piece]) -> Move:
    """What A has for pieces of B, in the view in which A's are put together."""
    if planned.spec.shape != planned.step.base.shape:
        if any(piece.order or piece.outer for piece in targets):
            raise UsageError(
                f"{planned.name}: B holds it in another order than A, which is told under other names",
                hint="compare the numbers of reshard fingerprint --dst-names",
            )
        targets = [each for piece in targets for each in planned.in_view(piece)]
    return Move(planned.name, planned.step, planned.spec.dtype, tuple(targets))


def _threads(*sides: Catalog) -> int:
    """Few on a disk, which the comparison itself keeps up with."""
    paths = [f.path for side in sides for f in side.files[:1]]
    return auto_workers(paths) if any(storage_of(path).remote for path in paths) else _DISK_THREADS


def _nbytes(move: Move) -> int:
    return sum(p.box.size for p in move.targets) * ITEMSIZE[move.dtype]


def _texts(a: Catalog, b: Catalog, rules: NameRules) -> list[Difference]:
    ours = {name: set(a.texts[old].values()) for name, old in rules.called(a.texts).items()}
    theirs = {n: set(t.values()) for n, t in b.texts.items() if not rules.narrow or n in ours}
    return [
        Difference(n, "type or shape", str(sorted(ours.get(n, ()))), str(sorted(theirs.get(n, ()))))
        for n in sorted(ours.keys() | theirs.keys())
        if ours.get(n) != theirs.get(n) and not (theirs.get(n, set()) and theirs[n] <= ours.get(n, set()))
    ]


def _varied(a: Catalog, tensor: Tensor, b: Catalog, other: Tensor) -> list[Difference]:
    """A single value that differs from rank to rank: each of B's must be one of A's."""
    ours, theirs = _all_values(a, tensor), _all_values(b, other)
    if theirs <= ours:
        return []
    return [Difference(tensor.name, "type or shape", f"{len(ours)} different values", "another value")]


def _all_values(source: Catalog, tensor: Tensor) -> set[bytes]:
    itemsize, nbytes = tensor.spec.itemsize, tensor.spec.nbytes
    with closing(Sources(files_of(source))) as files:
        return {
            bytes(files.shard_bytes(held, shard.box, itemsize, 0, nbytes))
            for shard in tensor.shards
            for held in shard.held
        }


def _values(move: Move, a: Catalog, b: Catalog, observer: Observer) -> Difference | None:
    ours, theirs = Sources(files_of(a)), Sources(files_of(b))
    scratch = Scratch()
    found: list[Difference] = []

    def compare(access: Access, data: memoryview) -> None:
        buffer = scratch.take("theirs", len(data))
        theirs.read_into(access, buffer)
        observer.advance(len(data))
        mine, other = np.frombuffer(data, np.uint8), np.frombuffer(buffer, np.uint8)
        if not np.array_equal(mine, other):
            found.append(_difference(move, access, mine, other, b))

    try:
        mover = Mover(move, ours, Scratch(), _BLOCK_NBYTES)
        for number in range(len(mover.blocks)):
            mover.run((number,), compare)
            if found:
                break
        ours.check_unchanged()
        theirs.check_unchanged()
    finally:
        ours.close()
        theirs.close()
    return min(found, key=lambda difference: difference.index, default=None)


_Bytes = npt.NDArray[np.uint8]


def _difference(move: Move, access: Access, mine: _Bytes, other: _Bytes, b: Catalog) -> Difference:
    itemsize = ITEMSIZE[move.dtype]
    at = int(np.flatnonzero(mine != other)[0]) // itemsize
    index = tuple(int(i) + s for i, s in zip(np.unravel_index(at, access.box.shape), access.box.start, strict=True))
    view, shape = move.step.base.shape, b.tensors[move.name].spec.shape
    if view != shape:  # which keeps the order of elements
        index = tuple(map(int, np.unravel_index(np.ravel_multi_index(index, view), shape)))
    texts = shown_values(move.dtype, [v[at * itemsize : (at + 1) * itemsize].tobytes() for v in (mine, other)])
    where = "no file, as zeros" if access.file == ZEROS else b.files[access.file].path
    return Difference(move.name, "value", texts[0], texts[1], index, where)
