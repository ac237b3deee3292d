"""The bill of a plan: what it will read, write and need, before anything is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import prod

from msgspec import Struct

from reshard.dtypes import ITEMSIZE
from reshard.index import ZEROS
from reshard.layout.box import hull_of
from reshard.planning.blocks import Blocks
from reshard.planning.plan import Move, Plan, PlannedFile, PlannedTensor, Task
from reshard.planning.shared import COPIED, shared_of, with_same_bytes, without_shared
from reshard.planning.steps import Piece
from reshard.planning.tasks import MAX_FILES, Near, Places, groups, places_of, tasks

_BASE_MEMORY_NBYTES = 96 << 20
BUFFERS_A_WORKER = 3
"""A block being put together, a read that is wider or strided, and a write that is strided or cast."""


class Bill(Struct, frozen=True):
    """Numbers of a plan; bytes are of tensors where not said otherwise.

    Attributes:
        needed_nbytes: bytes of source tensors that the target depends on, each counted once.
        read_nbytes: bytes that will be read; more than needed where a group of files takes a narrow part of long rows.
            Of what lies between parts of a tensor that is parted none count: others are made of it by the same read;
            all of it, each time, where files take their bytes front to back, as uploads do.
        written_nbytes: bytes that will be written, headers included; the disk space that the target takes.
        linked_files: files that share the bytes of an equal one (``--replicas link``).
        shared_nbytes: of what is written, what files share with the source's, and so take no space for.
        largest_file_nbytes, smallest_file_nbytes: the balance of the target.
        block_nbytes: bytes that a worker reads and writes at a time, at most.
        memory_nbytes: an upper bound of the buffers and the program.
    """

    source_files: int
    source_nbytes: int
    target_files: int
    tensors: int
    needed_nbytes: int
    read_nbytes: int
    written_nbytes: int
    linked_files: int
    largest_file_nbytes: int
    smallest_file_nbytes: int
    tasks: int
    workers: int
    block_nbytes: int
    memory_nbytes: int
    dropped: dict[str, int]
    absent: dict[str, int]
    warnings: tuple[str, ...]
    shared_nbytes: int = 0


def make_bill(
    plan: Plan,
    workers: int,
    block_nbytes: int,
    *,
    link_replicas: bool = False,
    max_files: int = MAX_FILES,
    others_nbytes: int = 0,
    checksum: bool = True,
    front_to_back: bool = False,
) -> Bill:
    """``others_nbytes``: what connections to object storage, and parts on their way there, take in memory.

    ``checksum``: all that is written is hashed, and so read. ``front_to_back``: files take their bytes in this order
    only.
    """
    sizes = [plan.forms[f.form].nbytes for f in plan.files]
    made = groups(plan, link_replicas=link_replicas, max_files=max_files)
    linked = [(len(same) - 1, plan.forms[same[0].form].nbytes) for group in made for same in group]
    counting = ReadCount(plan, block_nbytes, front_to_back=front_to_back)
    read_nbytes = shared_nbytes = 0
    if plan.shared_block_nbytes:
        of_tasks = tasks(plan, link_replicas=link_replicas, max_files=max_files, together="in any order")
        read_nbytes, shared_nbytes = _with_shared(plan, of_tasks, 0 if checksum else block_nbytes)
    if checksum or not plan.shared_block_nbytes:
        read_nbytes = sum(counting.of([same[0] for same in group]) for group in made)
    left: dict[str, dict[str, int]] = {"dropped": {}, "absent": {}}
    for out in plan.left_out:
        left[out.fate][out.reason] = len(out.names)
    return Bill(
        source_files=len(plan.sources),
        source_nbytes=sum(s.nbytes for s in plan.sources),
        target_files=len(plan.files) + (0 if plan.part else len(plan.closing)),
        tensors=len({slot.tensor for form in {f.form for f in plan.files} for slot in plan.forms[form].slots}),
        needed_nbytes=counting.needed(),
        read_nbytes=read_nbytes,
        written_nbytes=plan.nbytes - sum(twins * nbytes for twins, nbytes in linked),
        linked_files=sum(twins for twins, _ in linked),
        largest_file_nbytes=max(sizes, default=0),
        smallest_file_nbytes=min(sizes, default=0),
        tasks=len(made),
        workers=workers,
        block_nbytes=block_nbytes,
        memory_nbytes=_BASE_MEMORY_NBYTES + workers * BUFFERS_A_WORKER * block_nbytes + others_nbytes,
        dropped=left["dropped"],
        absent=left["absent"],
        warnings=plan.warnings,
        shared_nbytes=shared_nbytes,
    )


def _with_shared(plan: Plan, made: Iterable[Task], block_nbytes: int) -> tuple[int, int]:
    """What is read in blocks where nothing is hashed, 0 without blocks, and what files share with the source's."""
    read_nbytes = shared_nbytes = 0
    for task in made:
        moves = with_same_bytes(task.moves)
        found = shared_of(moves, plan.shared_block_nbytes)
        shared_nbytes += sum(run.nbytes for runs in found.values() for run in runs)
        if block_nbytes:
            shared = {n: runs for n, runs in found.items() if not task.files[n].checksums}
            held = {n: [(run.offset, run.end) for run in runs] for n, runs in shared.items()}
            rest = without_shared(moves if held else (), held)
            whole = rest.whole if held else task.moves  # a task that shares nothing moves all as it is
            read_nbytes += rest.runs_nbytes + sum(sum(reads(move, block_nbytes)) for move in whole)
    return read_nbytes, 0 if plan.shared_block_nbytes == COPIED else shared_nbytes


class ReadCount:
    """Counts what read groups of a plan read, once for all tensors that lie alike and are cut alike: layers repeat."""

    def __init__(self, plan: Plan, block_nbytes: int, *, front_to_back: bool = False) -> None:
        self._plan = plan
        self._front_to_back = front_to_back
        self._block_nbytes = block_nbytes
        self._known: dict[object, int] = {}
        self._near = Near()
        numbers: dict[object, int] = {}
        examples = plan.examples
        found = [numbers.setdefault(_deciding(tensor), len(numbers)) for tensor in examples]
        self._examples = dict(zip(found, examples, strict=True))
        self._kinds = list(map(found.__getitem__, plan.alike.kinds))

    def of(self, files: Iterable[PlannedFile]) -> int:
        """Bytes that a task of these files reads."""
        return sum(count * self._read(kind, places) for kind, places, count in self._alike(files))

    def needed(self) -> int:
        """Bytes of source tensors that all files of the plan depend on, each counted once."""
        total = 0
        for kind, places, count in self._alike(self._plan.files):
            tensor = self._examples[kind]
            elements = min(prod(tensor.spec.shape), sum(self._covered(*place) for place in places))
            total += count * elements * ITEMSIZE[tensor.step.base.dtype]
        return total

    def _covered(self, layout: int, ranks: tuple[int, ...]) -> int:
        """Elements that some of these ranks hold."""
        key = (layout, ranks)
        if key not in self._known:
            cut = self._plan.layouts[layout]
            cells = cut.sharding.cells()
            self._known[key] = len({cells[rank] for rank in ranks}) * prod(cut.shard_shape)
        return self._known[key]

    def _alike(self, files: Iterable[PlannedFile]) -> Iterator[tuple[int, Places, int]]:
        """The kinds of tensors that files hold, by which layouts and ranks, and how many are alike in both."""
        places, held = places_of(self._plan, files)
        alike = Counter(zip(map(self._kinds.__getitem__, held), held.values(), strict=True))
        return ((kind, places[number], count) for (kind, number), count in alike.items())

    def _read(self, kind: int, places: Places) -> int:
        """Bytes that are read of one tensor."""
        if (kind, places) not in self._known:
            tensor = self._examples[kind]
            boxes = [self._plan.layouts[layout].box(rank) for layout, ranks in places for rank in ranks]
            targets = tuple(piece for box in dict.fromkeys(boxes) for piece in tensor.in_view(Piece(0, box, ())))
            step = self._near.needed(kind, tensor.step, hull_of(target.box for target in targets))
            move = Move("", step, tensor.spec.dtype, targets)
            self._known[kind, places] = sum(reads(move, self._block_nbytes, front_to_back=self._front_to_back))
        return self._known[kind, places]


def _deciding(tensor: PlannedTensor) -> tuple[object, ...]:
    """What decides how much is read of a tensor, besides where it goes."""
    base = tensor.step.base
    pieces = [(piece.box, piece.outer, piece.order, piece.file == ZEROS) for piece in base.pieces]
    return *pieces, base.shape, base.dtype, tensor.spec.shape, tensor.spec.dtype, len(tensor.step.beside)


def reads(move: Move, block_nbytes: int, *, front_to_back: bool = False) -> Iterator[int]:
    """Bytes read from each source piece: its rows within the hull of the targets, as wide as they lie together in
    the file; of a piece of something larger, its own: the others are made of the same read, save where files take their
    bytes ``front_to_back``.
    """
    blocks = Blocks(move, block_nbytes)
    base = blocks.base
    read_elements: Counter[int] = Counter()
    if front_to_back and any(piece.outer for piece in base.pieces):
        for number in range(len(blocks)):
            for read in blocks[number].reads:
                read_elements[read.piece] += read.box.size
    for number, piece in enumerate(base.pieces):
        part = (piece.box & blocks.hull).shape
        wide = (
            part if piece.order or piece.outer else (*part[: blocks.split + 1], *piece.stored.shape[blocks.split + 1 :])
        )
        elements = read_elements[number] if piece.outer and front_to_back else prod(wide)
        yield 0 if piece.file == ZEROS else elements * ITEMSIZE[base.dtype]
