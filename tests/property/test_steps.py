"""Whatever a tensor is made of, each target box is what NumPy makes, bit for bit: any tiling on both sides."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from random_boxes import BLOCK_NBYTES, assert_moved, back, moved, shapes, store, targets, tilings, turned

from making import array, dtype_named
from reshard.dtypes import ITEMSIZE
from reshard.index import Extent, TensorSpec
from reshard.layout.box import Box
from reshard.moving import elements, steps
from reshard.planning.plan import Move, PlannedTensor
from reshard.planning.steps import Piece, Scaled
from thorough import examples

EXAMPLES = examples(38)
blocks = st.sampled_from(BLOCK_NBYTES)
DTYPES = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn", "int64")


def cast(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype(dtype_named(dtype))


@EXAMPLES
@given(shapes, st.sampled_from(DTYPES), st.sampled_from(("", "float32", "bfloat16", "float16")), blocks, st.data())
def test_pieces_of_any_kind(shape: tuple[int, ...], dtype: str, to: str, block: int, data: st.DataObject) -> None:
    """Shards in boxes that are larger, in several of one file, zeros; dims in any order; cast."""
    to = dtype if dtype in ("int8", "int64") else to or dtype
    full = array(shape, dtype)
    with store(data) as place:
        base = place.assembly(full, zeros=True)
        if data.draw(st.booleans()):
            order = tuple(data.draw(st.permutations(range(len(shape)))))
            base, full = turned(base, order), full.transpose(order)
        boxes = data.draw(tilings(Box.whole(base.shape)))
        move = Move("w", base, to, targets(boxes, dtype_named(to).itemsize))
        assert_moved(move, cast(full, to), place.files(), block)


@EXAMPLES
@given(
    st.tuples(st.integers(0, 2), st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from((*DTYPES, "float6_e2m3fn_x4", "complex128")),
    st.data(),
)
def test_dims_in_another_order_in_tiles_of_any_size(shape: tuple[int, ...], dtype: str, data: st.DataObject) -> None:
    full = array((*shape, ITEMSIZE[dtype]), "uint8")
    order = data.draw(st.permutations(range(3)))
    out = np.zeros(full.size, np.uint8)
    made = Box.whole(tuple(shape[d] for d in order))
    counts = data.draw(tilings(made))[0]
    tile = {"_TILE_ROWS": data.draw(st.integers(1, 3)), "_TILE_COLUMNS": data.draw(st.integers(1, 5))}
    with patch.multiple(elements, **tile, _FEW=data.draw(st.integers(0, 4))):
        whole = (memoryview(full.reshape(-1)), made)
        elements.copy_between((memoryview(out), made), whole, counts, dtype, back(order))
    turned_full = full.transpose(*order, 3)
    wanted = np.zeros_like(turned_full)
    part = counts.within(made)
    wanted[part] = turned_full[part]
    assert out.tobytes() == wanted.tobytes()


@EXAMPLES
@given(
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
    st.sampled_from(("float8_e4m3fn", "float8_e5m2", "int8")),
    st.sampled_from(("bfloat16", "float32", "float16")),
    st.sampled_from(("float32", "bfloat16", "float8_e8m0fnu")),
    blocks,
    st.data(),
)
def test_scaled(shape: tuple[int, ...], dtype: str, to: str, of_scale: str, block: int, data: st.DataObject) -> None:
    """Blocks that do not divide the shape, one for all, one a row or a column; counted in fp32, rounded once."""
    block_shape = tuple(data.draw(st.sampled_from((1, 2, 3, 4, n))) for n in shape)
    counts = tuple(-(-n // b) for n, b in zip(shape, block_shape, strict=True))
    full, scales = array(shape, dtype), array(counts, of_scale, 1)
    wide = scales.astype(np.float32)
    for dim, n in enumerate(block_shape):
        wide = np.repeat(wide, n, dim)
    wide = wide[tuple(slice(n) for n in shape)]
    with np.errstate(all="ignore"):
        wanted = np.asarray(cast(full.astype(np.float32) * wide, to))
        wanted[np.isnan(wanted)] = np.nan
    with store(data) as place:
        step = Scaled(place.assembly(full), place.assembly(scales), block_shape)
        if shape and data.draw(st.booleans()):
            order = tuple(data.draw(st.permutations(range(len(shape)))))
            step = Scaled(turned(step.of, order), turned(step.scale, order), tuple(block_shape[d] for d in order))
            wanted = wanted.transpose(order)
        boxes = data.draw(tilings(Box.whole(wanted.shape)))
        with patch.object(steps, "_CHUNK", data.draw(st.sampled_from((1, 5, 131072)))):
            assert_moved(Move("w", step, to, targets(boxes, wanted.itemsize)), wanted, place.files(), block)


@EXAMPLES
@given(st.lists(st.sampled_from((1, 2, 3, 4, 6, 12)), max_size=3).map(tuple), blocks, st.data())
def test_put_together_in_a_view(shape: tuple[int, ...], block: int, data: st.DataObject) -> None:
    """Some dims counted as several, whatever the boxes of the target part."""
    view = tuple(f for n in shape for f in data.draw(st.permutations([d for d in (2, 3, 2) if n == 12] or [n])))
    full = array(shape, "float32")
    with store(data) as place:
        base = place.assembly(full.reshape(view))
        tensor = PlannedTensor("w", TensorSpec("float32", shape), base)
        boxes = data.draw(tilings(Box.whole(shape)))
        files = place.files()
        for box in boxes:
            pieces = tensor.in_view(Piece(0, box, (Extent(0, box.size * 4),)))
            out = bytearray(box.size * 4)
            parts = [replace(p, file=n, extents=(Extent(0, p.box.size * 4),)) for n, p in enumerate(pieces)]
            for made, piece in zip(moved(Move("w", base, "float32", tuple(parts)), files, block), pieces, strict=True):
                content, at = made.tobytes(), 0
                for extent in piece.extents:
                    out[extent.offset : extent.end] = content[at : at + extent.nbytes]
                    at += extent.nbytes
            assert bytes(out) == full[box.within(Box.whole(shape))].tobytes()
