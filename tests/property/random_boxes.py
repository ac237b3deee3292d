"""Random tilings of boxes, and tensors scattered over files: whatever a catalog may say of where elements lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import strategies as st
from msgspec.structs import replace

from making import array, dtype_named
from reshard.index import ZEROS, Extent
from reshard.layout.box import Box, ordered
from reshard.moving.mover import Mover
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources
from reshard.planning.blocks import Access
from reshard.planning.plan import Move, SourceFile
from reshard.planning.steps import Assembly, Piece

BLOCK_NBYTES = (1, 7, 24, 100, 1000, 1 << 20)


seeded = st.randoms(use_true_random=True)
"""What lies where is chosen by one drawn seed: a draw for each of thousands of choices takes longer than the test."""


def tilings(whole: Box, most: int = 6) -> st.SearchStrategy[list[Box]]:
    return seeded.map(lambda random: tiling(random, whole, most))


def tiling(random: Random, whole: Box, most: int = 6) -> list[Box]:
    """Boxes that tile ``whole``, in no grid and in any order."""
    boxes = [whole]
    for _ in range(random.randrange(most)):
        n = random.randrange(len(boxes))
        box = boxes[n]
        dims = [d for d, size in enumerate(box.shape) if size > 1]
        if dims:
            dim = random.choice(dims)
            at = random.randrange(box.start[dim] + 1, box.stop[dim])
            stop, start = list(box.stop), list(box.start)
            stop[dim] = start[dim] = at
            boxes[n : n + 1] = [Box(box.start, tuple(stop)), Box(tuple(start), box.stop)]
    random.shuffle(boxes)
    return boxes


shapes = st.lists(st.sampled_from((0, 1, 1, 2, 3, 4, 5, 7, 12)), max_size=4).map(tuple)


class Store:
    """Files that fill up with what is put there, bytes of no meaning in between."""

    def __init__(self, random: Random, folder: Path, files: int = 3) -> None:
        self._random = random
        self._folder = folder
        self._contents = [bytearray(b"\xee" * random.randrange(6)) for _ in range(files)]

    def put(self, data: bytes) -> tuple[int, tuple[Extent, ...]]:
        """The file that got the bytes, in one extent or in several that lie anywhere."""
        file = self._random.randrange(len(self._contents))
        content = self._contents[file]
        ends = sorted({*(self._random.randint(0, len(data)) for _ in range(self._random.randrange(3))), len(data)})
        parts = [(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]
        extents = {}
        for a, b in self._random.sample(parts, len(parts)):
            extents[a] = Extent(len(content), b - a)
            content += data[a:b] + b"\xee" * self._random.randrange(4)
        return file, tuple(extents[a] for a, _ in parts)

    def piece(self, full: np.ndarray, box: Box) -> Piece:
        """A box of ``full`` put somewhere, alone or as part of a larger box that may reach beyond the tensor."""
        outer = box
        if self._random.randrange(2):
            more = self._random.randrange
            outer = Box(tuple(a - more(3) for a in box.start), tuple(b + more(3) for b in box.stop))
        stored = array(outer.shape, full.dtype.name, seed=box.size)
        stored[box.within(outer)] = full[box.within(Box.whole(full.shape))]
        file, extents = self.put(stored.tobytes())
        return Piece(file, box, extents, None if outer == box else outer)

    def assembly(self, full: np.ndarray, *, zeros: bool = False) -> Assembly:
        """A tensor of pieces; with ``zeros`` some are zeros in no file, and ``full`` has them afterwards."""
        pieces = []
        for box in tiling(self._random, Box.whole(full.shape)):
            if zeros and self._random.randrange(4) == 0:
                full[box.within(Box.whole(full.shape))] = np.zeros((), full.dtype)
                pieces.append(Piece(ZEROS, box, ()))
            else:
                pieces.append(self.piece(full, box))
        return Assembly(full.dtype.name, full.shape, tuple(pieces))

    def files(self) -> tuple[SourceFile, ...]:
        made = []
        for i, content in enumerate(self._contents):
            path = self._folder / f"{i}.bin"
            path.write_bytes(content)
            made.append(SourceFile(str(path), len(content), path.stat().st_mtime_ns))
        return tuple(made)


def back(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes an order."""
    return tuple(order.index(dim) for dim in range(len(order)))


def turned(base: Assembly, order: tuple[int, ...]) -> Assembly:
    """The tensor with its dims in another order, of the same bytes."""
    pieces = (
        replace(
            piece,
            box=ordered(piece.box, order),
            outer=ordered(piece.outer, order) if piece.outer else None,
            order=back(order),
        )
        for piece in base.pieces
    )
    return replace(base, shape=tuple(base.shape[dim] for dim in order), pieces=tuple(pieces))


@contextmanager
def store(data: st.DataObject) -> Iterator[Store]:
    with TemporaryDirectory() as folder:
        yield Store(data.draw(seeded), Path(folder))


def targets(boxes: list[Box], itemsize: int) -> tuple[Piece, ...]:
    """Each box a file of its own."""
    return tuple(Piece(n, box, (Extent(0, box.size * itemsize),)) for n, box in enumerate(boxes))


def moved(move: Move, files: tuple[SourceFile, ...], block_nbytes: int) -> list[np.ndarray]:
    """What each target piece gets, of which every byte came once and in order."""
    out = [bytearray() for _ in move.targets]
    sources = Sources(files)

    def take(access: Access, data: memoryview) -> None:
        assert access.ranges[0].offset == len(out[access.piece])
        assert sum(e.nbytes for e in access.ranges) == len(data)
        out[access.piece] += data

    try:
        mover = Mover(move, sources, Scratch(), block_nbytes)
        mover.run(range(len(mover.blocks)), take)
    finally:
        sources.close()
    dtype = dtype_named(move.dtype)
    return [np.frombuffer(o, dtype).reshape(p.box.shape) for o, p in zip(out, move.targets, strict=True)]


def assert_moved(move: Move, wanted: np.ndarray, files: tuple[SourceFile, ...], block_nbytes: int) -> None:
    from making import same

    for got, piece in zip(moved(move, files, block_nbytes), move.targets, strict=True):
        part = np.ascontiguousarray(wanted[piece.box.within(Box.whole(wanted.shape))]).reshape(piece.box.shape)
        assert same(got, part), f"{piece.box}: {got} is not {part}"
