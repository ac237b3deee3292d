"""Tensors that are parts of others, or made of several: pieces say it, whatever the cut on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from random_boxes import BLOCK_NBYTES, assert_moved, store, targets, tilings

from making import array
from reshard.index import ZEROS, cut_extents
from reshard.layout.box import Box
from reshard.layout.cover import boxes_of_range
from reshard.layout.tensor import Layout, Sharding
from reshard.planning.plan import Move
from reshard.planning.steps import Assembly, Piece
from thorough import examples

EXAMPLES = examples(15)
blocks = st.sampled_from(BLOCK_NBYTES)
small = st.integers(1, 4)


class Link(Struct, frozen=True):
    """``box`` of a part lies in the whole ``shift`` further on; ``lead`` is its index in dims that the part lacks."""

    part: int
    box: Box
    shift: tuple[int, ...]
    lead: tuple[int, ...] = ()

    def lifted(self, box: Box) -> Box:
        start = (a + s for a, s in zip(box.start, self.shift, strict=True))
        stop = (b + s for b, s in zip(box.stop, self.shift, strict=True))
        return Box((*self.lead, *start), (*(n + 1 for n in self.lead), *stop))

    def lowered(self, box: Box) -> Box:
        lead = len(self.lead)
        start = (a - s for a, s in zip(box.start[lead:], self.shift, strict=True))
        return Box(tuple(start), tuple(b - s for b, s in zip(box.stop[lead:], self.shift, strict=True)))


class Regrouping(Struct, frozen=True):
    """Some parts, the whole that NumPy makes of them, and the links that should say the same."""

    parts: Sequence[np.ndarray]
    whole: np.ndarray
    links: Sequence[Link]


def rows(part: int, start: int, stop: int, to: int, width: int) -> Link:
    return Link(part, Box((start, 0), (stop, width)), (to - start, 0))


@st.composite
def grouped_qkv(draw: st.DrawFn) -> Regrouping:
    """Per KV group its queries, its key, its value."""
    groups, of_group, size, width = draw(small), draw(small), draw(small), draw(small)
    q = array((groups * of_group * size, width), "bfloat16", 1)
    k, v = (array((groups * size, width), "bfloat16", seed) for seed in (2, 3))
    by_group = (a.reshape(groups, -1, size, width) for a in (q, k, v))
    whole = np.concatenate(list(by_group), 1).reshape(-1, width)
    links, at = [], 0
    for group in range(groups):
        for part, heads in ((0, of_group), (1, 1), (2, 1)):
            n = heads * size
            links.append(rows(part, group * n, (group + 1) * n, at, width))
            at += n
    return Regrouping((q, k, v), whole, links)


@st.composite
def concatenated(draw: st.DrawFn) -> Regrouping:
    """Along any dim, of parts of any size."""
    ndim = draw(st.integers(1, 3))
    dim = draw(st.integers(0, ndim - 1))
    shape = [draw(small) for _ in range(ndim)]
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    parts = [array((*shape[:dim], n, *shape[dim + 1 :]), "float32", i) for i, n in enumerate(sizes)]
    links, at = [], 0
    for number, part in enumerate(parts):
        shift = tuple(at if d == dim else 0 for d in range(ndim))
        links.append(Link(number, Box.whole(part.shape), shift))
        at += part.shape[dim]
    return Regrouping(parts, np.concatenate(parts, dim), links)


@st.composite
def fused_a_shard(draw: st.DrawFn) -> Regrouping:
    """Rows of each part cut evenly, and fused on each rank after the cut."""
    ranks, width = draw(small), draw(small)
    parts = [array((ranks * draw(small), width), "float16", seed) for seed in range(3)]
    whole = np.concatenate([p[r * len(p) // ranks : (r + 1) * len(p) // ranks] for r in range(ranks) for p in parts])
    links, at = [], 0
    for rank in range(ranks):
        for number, part in enumerate(parts):
            n = len(part) // ranks
            links.append(rows(number, rank * n, (rank + 1) * n, at, width))
            at += n
    return Regrouping(parts, whole, links)


@st.composite
def interleaved(draw: st.DrawFn) -> Regrouping:
    """Gate and up by rows or by columns: one of each in turn."""
    shape = (draw(small), draw(small))
    dim = draw(st.integers(0, 1))
    parts = [array(shape, "bfloat16", seed) for seed in range(2)]
    made = list(shape)
    made[dim] *= 2
    whole = np.stack(parts, dim + 1).reshape(made)
    links = []
    for n in range(shape[dim]):
        for number in range(2):
            start, stop = [0, 0], list(shape)
            start[dim], stop[dim] = n, n + 1
            shift = [0, 0]
            shift[dim] = n + number
            links.append(Link(number, Box(tuple(start), tuple(stop)), tuple(shift)))
    return Regrouping(parts, whole, links)


@st.composite
def stacked(draw: st.DrawFn) -> Regrouping:
    """Experts on a new leading dim, or on two."""
    lead = tuple(draw(small) for _ in range(draw(st.integers(1, 2))))
    shape = tuple(draw(small) for _ in range(draw(st.integers(0, 2))))
    at = list(np.ndindex(lead))
    parts = [array(shape, "float32", seed) for seed in range(len(at))]
    whole = np.stack(parts).reshape(*lead, *shape)
    return Regrouping(parts, whole, [Link(i, Box.whole(shape), (0,) * len(shape), index) for i, index in enumerate(at)])


regroupings = st.one_of(grouped_qkv(), concatenated(), fused_a_shard(), interleaved(), stacked())


@EXAMPLES
@given(regroupings, blocks, st.data())
def test_fusing(case: Regrouping, block: int, data: st.DataObject) -> None:
    whole = case.whole
    with store(data) as place:
        parts = [place.assembly(part) for part in case.parts]
        pieces = [
            Piece(p.file, link.lifted(p.box & link.box), p.extents, link.lifted(p.stored))
            for link in case.links
            for p in parts[link.part].pieces
            if (p.box & link.box).size
        ]
        made = Assembly(whole.dtype.name, whole.shape, tuple(pieces))
        boxes = data.draw(tilings(Box.whole(whole.shape)))
        assert_moved(Move("w", made, made.dtype, targets(boxes, whole.itemsize)), whole, place.files(), block)


@EXAMPLES
@given(regroupings, blocks, st.data())
def test_taking_apart(case: Regrouping, block: int, data: st.DataObject) -> None:
    with store(data) as place:
        whole = place.assembly(case.whole)
        moves = []
        for number, part in enumerate(case.parts):
            links = [link for link in case.links if link.part == number]
            pieces = tuple(p for link in links for p in taken(link, whole.pieces, part.itemsize))
            boxes = data.draw(tilings(Box.whole(part.shape)))
            made = Assembly(part.dtype.name, part.shape, pieces)
            moves.append(Move("w", made, made.dtype, targets(boxes, part.itemsize)))
        files = place.files()
        for move, part in zip(moves, case.parts, strict=True):
            assert_moved(move, part, files, block)


def taken(link: Link, pieces: Sequence[Piece], itemsize: int) -> list[Piece]:
    """The pieces of a part: of what holds more indices of the leading dims, the bytes of its own."""
    made, lead = [], len(link.lead)
    for piece in pieces:
        found = piece.box & link.lifted(link.box)
        if found.size:
            stored = piece.stored
            own = Box((*link.lead, *stored.start[lead:]), (*(n + 1 for n in link.lead), *stored.stop[lead:]))
            at = own.place_in(stored)
            assert at is not None
            extents = cut_extents(piece.extents, at * itemsize, own.size * itemsize)
            made.append(Piece(piece.file, link.lowered(found), extents, link.lowered(own)))
    return made


def cut_flat(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    """Ranges that make up 0 to ``size``: of ranks, and of what each keeps apart."""
    return list(pairwise(sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=6))})))


@EXAMPLES
@given(
    st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=3),
    st.integers(0, 3),
    blocks,
    st.data(),
)
def test_flat_partitions(shapes: list[tuple[int, ...]], padding: int, block: int, data: st.DataObject) -> None:
    """Tensors one after the other in one flat buffer, padded; each rank has some ranges of it."""
    tensors = [array(shape, "float32", seed) for seed, shape in enumerate(shapes)]
    gap = np.full(padding, 7, np.float32)
    flat = np.concatenate([part for t in tensors for part in (t.reshape(-1), gap)])
    with store(data) as place:
        held = [(a, b, *place.put(flat[a:b].tobytes())) for a, b in cut_flat(data.draw, flat.size)]
        files, at = place.files(), 0
        for tensor in tensors:
            pieces = []
            for start, stop, file, extents in held:
                first = max(start, at)
                for box in boxes_of_range(tensor.shape, first - at, min(stop, at + tensor.size) - at):
                    pieces.append(Piece(file, box, cut_extents(extents, (first - start) * 4, box.size * 4)))
                    first += box.size
            made = Assembly("float32", tensor.shape, tuple(pieces))
            boxes = data.draw(tilings(Box.whole(tensor.shape)))
            assert_moved(Move("w", made, "float32", targets(boxes, 4)), tensor, files, block)
            at += tensor.size + padding


@EXAMPLES
@given(regroupings, st.integers(0, 5), blocks, st.data())
def test_padding(case: Regrouping, more: int, block: int, data: st.DataObject) -> None:
    """Zeros behind dim 0, as a vocabulary is padded, cut by a layout."""
    full = case.whole if case.whole.ndim else case.whole.reshape(1)
    parts = data.draw(st.integers(1, 3))
    more += -(len(full) + more) % parts
    padded = np.concatenate([full, np.zeros((more, *full.shape[1:]), full.dtype)])
    with store(data) as place:
        base = place.assembly(full)
        zeros = Box((len(full), *(0,) * (full.ndim - 1)), padded.shape)
        pieces = (*base.pieces, Piece(ZEROS, zeros, ())) if zeros.size else base.pieces
        layout = Layout(padded.shape, Sharding((2, parts), ((0,), *((),) * (full.ndim - 1))))
        boxes = [layout.box(rank) for rank in range(2 * parts)]
        made = Assembly(base.dtype, padded.shape, pieces)
        assert_moved(Move("w", made, made.dtype, targets(boxes, full.itemsize)), padded, place.files(), block)


@EXAMPLES
@given(st.lists(st.integers(0, 5), max_size=4).map(tuple), st.data())
def test_boxes_of_a_range_are_its_elements_in_order(shape: tuple[int, ...], data: st.DataObject) -> None:
    numbered = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    start = data.draw(st.integers(0, numbered.size))
    stop = data.draw(st.integers(0, numbered.size))
    boxes = boxes_of_range(shape, start, stop)
    found = [n for box in boxes for n in numbered[box.within(Box.whole(shape))].reshape(-1)]
    assert found == list(range(start, stop))
    assert len(boxes) <= max(2 * len(shape) - 1, 1)
    assert all(box.size for box in boxes)
