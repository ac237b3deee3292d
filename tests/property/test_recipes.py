"""Tensors made of others by recipes are what NumPy makes, however their sources are cut, stored and scaled."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from random_boxes import BLOCK_NBYTES, Store, assert_moved, back, store, targets, tilings, turned

from making import array, dtype_named
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.names.dims import Axes, Dims, parsed, section_of
from reshard.names.linking import SharedDims, at_index, link_of
from reshard.names.maker import Maker
from reshard.planning.assembly import assembled
from reshard.planning.catalog import Held, Loose, Scales, Shard, Tensor
from reshard.planning.plan import Move, PlannedTensor
from reshard.planning.steps import Piece, Scaled, Step
from thorough import examples

EXAMPLES = examples(30)
blocks = st.sampled_from(BLOCK_NBYTES)
SIZES = {"kv": 2, "group": 2, "head": 4, "hidden": 6, "key": 1, "value": 1, "ffn": 5, "gate": 1, "up": 1}
SIZES |= {"experts": 3, "half": 2, "two": 2, "heads": 4, "nope": 6, "vocab": 7, "rank": 3}
MADE_OF = {"q_rows": ("heads", "head"), "k_rows": ("kv", "head"), "v_rows": ("kv", "head"), "rope": ("half", "two")}
AXES = Axes(SIZES, MADE_OF)
FUSED = {
    "grouped": ("(kv group+key+value head) hidden", {"group": None, "key": None, "value": None}),
    "joined": ("(q_rows+k_rows+v_rows) hidden", {"q_rows": None, "k_rows": None, "v_rows": None}),
    "interleaved": ("(ffn gate+up) hidden", {"gate": None, "up": None}),
    "halves": ("(gate+up ffn) hidden", {"gate": None, "up": None}),
    "latent": ("(heads nope+rope) rank", {"nope": None, "rope": "(heads two half) rank"}),
    "biases": ("(kv group+key+value head)", {"group": None, "key": None, "value": None}),
}


def shape_of(dims: Dims) -> tuple[int, ...]:
    return tuple(n for n in (AXES.size_of(dim) for dim in dims) if n is not None)


def joined(kind: str, parts: dict[str, np.ndarray]) -> np.ndarray:
    """What NumPy makes of the parts."""
    p = list(parts.values())
    match kind:
        case "grouped" | "biases":
            rest = p[0].shape[1:]
            return np.concatenate([x.reshape(2, -1, *rest) for x in p], 1).reshape(-1, *rest)
        case "joined" | "halves":
            return np.concatenate(p)
        case "interleaved":
            return np.stack(p, 1).reshape(-1, p[0].shape[-1])
        case "latent":
            nope, rope = p[0].reshape(4, 6, 3), p[1].reshape(4, 2, 2, 3).swapaxes(1, 2).reshape(4, 4, 3)
            return np.concatenate([nope, rope], 1).reshape(-1, 3)
    raise AssertionError(kind)


def tensor(place: Store, name: str, full: np.ndarray, order: tuple[int, ...] = ()) -> Tensor:
    made = turned(place.assembly(full.transpose(back(order))), order) if order else place.assembly(full)
    shards = tuple(Shard(p.box, (Held(p.file, p.extents, p.outer, p.order),)) for p in made.pieces)
    return Tensor(name, TensorSpec(full.dtype.name, full.shape), Loose(tuple(sorted(shards, key=lambda s: s.box))))


def dims_of(kind: str) -> tuple[Dims, dict[str, Dims]]:
    text, sections = FUSED[kind]
    whole = parsed(text)
    return whole, {s: parsed(given) if given else section_of(whole, s) for s, given in sections.items()}


def made_whole(kind: str, parts: dict[str, Tensor]) -> Tensor:
    whole, of_parts = dims_of(kind)
    links = [link_of(t.name, t.spec.shape, SharedDims(of_parts[s], whole, s), AXES) for s, t in parts.items()]
    some = next(iter(parts.values()))
    maker = Maker({t.name: t for t in parts.values()})
    return maker.made("whole", TensorSpec(some.spec.dtype, links[0][1]), [link for link, _ in links])


def made_parts(kind: str, whole: Tensor) -> dict[str, Tensor]:
    dims, of_parts = dims_of(kind)
    maker = Maker({whole.name: whole})
    made = {}
    for section, of_part in of_parts.items():
        link, shape = link_of(whole.name, whole.spec.shape, SharedDims(dims, of_part, section), AXES)
        made[section] = maker.made(section, TensorSpec(whole.spec.dtype, shape), [link])
    return made


def step_of(tensor: Tensor) -> Step:
    base = assembled(tensor)
    return Scaled(base, assembled(tensor.scales.of), tensor.scales.block) if tensor.scales else base


def check(tensor: Tensor, wanted: np.ndarray, place: Store, block: int, data: st.DataObject) -> None:
    assert tensor.spec.shape == wanted.shape
    step, dtype = step_of(tensor), wanted.dtype.name
    viewed = wanted.reshape(step.base.shape)
    boxes = data.draw(tilings(Box.whole(step.base.shape)))
    assert_moved(Move("w", step, dtype, targets(boxes, wanted.itemsize)), viewed, place.files(), block)
    real = data.draw(tilings(Box.whole(wanted.shape)))[0]
    planned = PlannedTensor("w", TensorSpec(dtype, wanted.shape), step)
    assert sum(p.box.size for p in planned.in_view(Piece(0, real, ()))) == real.size


def of_parts(kind: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    _, dims = dims_of(kind)
    return {s: array(shape_of(d), dtype, seed) for seed, (s, d) in enumerate(dims.items())}


kinds = st.sampled_from(sorted(FUSED))


@EXAMPLES
@given(kinds, blocks, st.data())
def test_parts_become_one_and_parts_again(kind: str, block: int, data: st.DataObject) -> None:
    arrays = of_parts(kind)
    with store(data) as place:
        parts = {s: tensor(place, s, a) for s, a in arrays.items()}
        whole = made_whole(kind, parts)
        check(whole, joined(kind, arrays), place, block, data)
        for section, made in made_parts(kind, whole).items():
            check(made, arrays[section], place, block, data)


@EXAMPLES
@given(st.sampled_from(("grouped", "interleaved")), blocks, st.data())
def test_one_way_of_fusing_becomes_another(kind: str, block: int, data: st.DataObject) -> None:
    """What is read in one way and written in the other goes over parts that nobody writes."""
    other = {"grouped": "joined", "interleaved": "halves"}[kind]
    renamed = dict(zip(FUSED[kind][1], FUSED[other][1], strict=True))
    if data.draw(st.booleans()):
        kind, other, renamed = other, kind, {b: a for a, b in renamed.items()}
    arrays = of_parts(kind)
    with store(data) as place:
        parts = made_parts(kind, tensor(place, "whole", joined(kind, arrays)))
        again = {renamed[s]: replace(t, name=renamed[s]) for s, t in parts.items()}
        check(made_whole(other, again), joined(other, {renamed[s]: a for s, a in arrays.items()}), place, block, data)


@EXAMPLES
@given(st.sampled_from(("(experts hidden) (gate+up ffn)", "experts hidden (gate+up ffn)")), blocks, st.data())
def test_experts_are_stacked_and_turned_and_back(text: str, block: int, data: st.DataObject) -> None:
    whole, part = parsed(text), parsed("ffn hidden")
    arrays = {(e, s): array((5, 6), "bfloat16", 2 * e + (s == "up")) for e in range(3) for s in ("gate", "up")}
    wanted = np.stack([np.concatenate([arrays[e, "gate"].T, arrays[e, "up"].T], -1) for e in range(3)])
    wanted = wanted.reshape(shape_of(whole))
    with store(data) as place:
        tensors = {key: tensor(place, f"{key}", a) for key, a in arrays.items()}
        links = []
        for (e, s), t in tensors.items():
            link, shape = link_of(t.name, t.spec.shape, SharedDims(part, whole, s, "experts"), AXES)
            links.append((at_index(link, t.name, e), shape))
        maker = Maker({t.name: t for t in tensors.values()})
        made = maker.made("w1", TensorSpec("bfloat16", links[0][1]), [link for link, _ in links])
        check(made, wanted, place, block, data)
        stored = tensor(place, "w1", wanted)
        for (e, s), a in arrays.items():
            for source in (made, stored):
                link, shape = link_of("w1", source.spec.shape, SharedDims(whole, part, s, "experts"), AXES)
                link = at_index(link, "w1", e)
                again = Maker({"w1": source}).made("x", TensorSpec("bfloat16", shape), [link])
                check(again, a, place, block, data)


def scaled(
    place: Store, name: str, codes: np.ndarray, block: tuple[int, ...], seed: int, *, turn: bool = False
) -> tuple[Tensor, np.ndarray]:
    """A tensor of codes with scales, and its products."""
    counts = tuple(-(-n // b) for n, b in zip(codes.shape, block, strict=True))
    scales = array(counts, "float32", seed)
    wide = scales
    for dim, n in enumerate(block):
        wide = np.repeat(wide, n, dim)
    with np.errstate(all="ignore"):
        product = codes.astype(np.float32) * wide[tuple(slice(n) for n in codes.shape)]
        product = product.astype(dtype_named("bfloat16"))
    product[np.isnan(product)] = np.nan
    of = tensor(place, f"{name} scales", scales, order=tuple(range(scales.ndim))[::-1] if turn else ())
    return replace(tensor(place, name, codes), cast_to="bfloat16", scales=Scales(of, block)), product


@EXAMPLES
@given(kinds, st.sampled_from(("float8_e4m3fn", "int8")), blocks, st.data())
def test_codes_keep_their_scales(kind: str, dtype: str, block: int, data: st.DataObject) -> None:
    """Blocks that fit neither heads nor parts; joined, parted again."""
    arrays = of_parts(kind, dtype)
    sizes = tuple(data.draw(st.sampled_from((1, 2, 3, 4, 8, 64))) for _ in next(iter(arrays.values())).shape)
    with store(data) as place:
        turn = data.draw(st.booleans())
        both = {s: scaled(place, s, a, sizes, seed, turn=turn) for seed, (s, a) in enumerate(arrays.items())}
        whole = made_whole(kind, {s: t for s, (t, _) in both.items()})
        products = {s: p for s, (_, p) in both.items()}
        check(whole, joined(kind, products), place, block, data)
        for section, made in made_parts(kind, whole).items():
            check(made, products[section], place, block, data)
        source, product = scaled(place, "fused", joined(kind, arrays), sizes, 9, turn=turn)
        parts = parted(kind, product)
        for section, made in made_parts(kind, source).items():
            check(made, parts[section], place, block, data)


def parted(kind: str, whole: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of a fused tensor, found by fusing their places."""
    numbered, at = {}, 0
    for section, a in of_parts(kind).items():
        numbered[section] = np.arange(at, at + a.size, dtype=np.int64).reshape(a.shape)
        at += a.size
    places = np.argsort(joined(kind, numbered).reshape(-1))
    flat = whole.reshape(-1)[places]
    return {section: flat[n.reshape(-1)].reshape(n.shape) for section, n in numbered.items()}
