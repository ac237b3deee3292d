"""How Megatron's tensor-parallel and expert-parallel ranks cut tensors, by the names that these have on a rank.

Facts: Megatron-Core 0.16.1, both layer specs. Gated layers are cut so that each rank holds its gate, then its up rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import prod
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, PlanError, listed
from reshard.layout.box import Box
from reshard.planning.names import folded

Shape = tuple[int, ...]
Way = Literal["rows", "columns", "gated", "whole"]
"""``gated``: of the rows' halves each is cut by itself."""

MULTI_TOKEN = "mtp."
_ROWS = re.compile(
    r".*(?:(?:word_embeddings|output_layer|linear_q|linear_kv|linear_q_proj|linear_q_up_proj|linear_kv_up_proj|eh_proj)"
    r"\.weight|linear_qkv\.(?:weight|bias)|linear_q\.bias|linear_kv\.bias|softmax_offset)"
)
_FIRST = re.compile(r".*linear_fc1\.(?:weight|bias)(?:_[wv])?")
_COLUMNS = re.compile(r".*(?:linear_proj|linear_fc2)\.weight")
_DOWN = re.compile(r"(.*)linear_(q|kv)_down_proj\.weight")
_WHOLE = re.compile(
    r".*(?:norm\w*\.(?:weight|bias)|layer_norm_(?:weight|bias)|linear_proj\.bias|linear_fc2\.bias|router\.\w+"
    r"|gate_weight|position_embeddings\.weight|tokentype_embeddings\.weight|inv_freq)"
)
_EXPERT = re.compile(
    r"(.*mlp\.experts\.)(?:local_experts\.(\d+)\.(linear_fc[12]\.\w+)|(linear_fc[12]\.(?:weight|bias))(\d+))"
)
_PARTED = re.compile(r".*\.(?:mixer|self_attention)\.(?:in_proj|conv1d)\.(?:weight|bias)(\.\w+)?")
"""Of state spaces and linear attention: a rank holds one tensor, the distributed form has each of its parts."""
_GROUPED = re.compile(r"(.*mlp\.experts\.)weight([12])")


class RankCounts(Struct, frozen=True):
    """How many ranks there are of each kind."""

    tensor: int
    stages: int
    experts: int


class HeldBox(Struct, frozen=True):
    """A box of a tensor that a rank holds.

    Attributes:
        name: of the tensor, of all experts where it is of one.
        shape: of the whole tensor.
        start, stop: elements of the rank's own tensor, row-major, that are ``outer``.
        order: which dim of the tensor each of their dims is; ``()`` where they are its own.
    """

    name: str
    shape: Shape
    box: Box
    start: int
    stop: int
    outer: Box
    order: tuple[int, ...] = ()


def parts(name: str, shapes: Mapping[str, Shape], sizes: RankCounts, at: RankCounts) -> Iterator[HeldBox]:
    """Where what a rank calls ``name`` lies in the whole.

    Args:
        shapes: of all that the rank holds of the layer, by name.
        at: the rank's numbers.

    Raises:
        CheckpointError: nothing says how it is cut.
    """
    grouped = _GROUPED.fullmatch(name)
    if grouped:
        yield from _of_grouped(name, grouped, shapes, (sizes, at))
        return
    expert = _EXPERT.fullmatch(name)
    for part in _cut(name, shapes[name], way_of(name, shapes, sizes.tensor), (sizes.tensor, at.tensor)):
        if expert is None:
            yield part
            continue
        here = _local_experts(expert[1], tuple(shapes))
        number = at.experts * here + int(expert[2] or expert[5])
        whole = replace(part, name=f"{expert[1]}experts.{expert[3] or expert[4]}")
        yield _leading(whole, number, here * sizes.experts)


def leading(part: HeldBox, number: int, size: int, name: str) -> HeldBox:
    """The part as one of a stack of so many."""
    return replace(_leading(part, number, size), name=name)


def way_of(name: str, shapes: Mapping[str, Shape], ranks: int) -> Way:
    """How tensor-parallel ranks cut what they call so. Raises CheckpointError where nothing says it."""
    plain = _plain(name)
    if ranks == 1 or _WHOLE.fullmatch(plain):
        return "whole"
    if _FIRST.fullmatch(plain):
        return "gated" if _is_gated(name, shapes) else "rows"
    if down := _DOWN.fullmatch(plain):
        return "whole" if _is_repeated(down, shapes) else "rows"
    if _ROWS.fullmatch(plain):
        return "rows"
    if _COLUMNS.fullmatch(plain):
        return "columns"
    raise CheckpointError(
        f"{name}: {ranks} tensor-parallel ranks hold it, and it is not known how they cut it",
        hint="save it with Megatron as torch_dist, which says how each tensor lies",
    )


def embeds_again(names: Iterable[str]) -> bool:
    """Whether a later stage embeds tokens, too: its multi-token layers do."""
    return any(name.startswith(MULTI_TOKEN) for name in names)


def refuse_other_form(names: Iterable[str], *, parted: bool) -> None:
    """Raises PlanError for what the other of Megatron's forms has in parts or as one: their sizes are told by neither.

    Args:
        parted: the form to be written has parts, as ``torch_dist``.
    """
    others = [name for name in names if (match := _PARTED.fullmatch(name)) and bool(match[1]) != parted]
    if others:
        form, has = ("torch_dist", "parts of each") if parted else ("a rank", "one tensor of the parts")
        raise PlanError(
            f"{form} has {has} of these, which is not made here:\n" + listed(folded(others)),
            hint="save it with Megatron in the form that you need",
        )


def dim_cut(name: str, *, transformer_engine: bool, ranks: int) -> int | None:
    """The dim that tensor-parallel ranks cut, of a layer's tensor or of one expert's; None where each holds all of it.

    Raises CheckpointError where that is not known.
    """
    if _DOWN.fullmatch(name):
        return None if transformer_engine else 0
    if _FIRST.fullmatch(name):
        return 0
    way = way_of(name, {}, ranks)
    return None if way == "whole" else 1 if way == "columns" else 0


def _plain(name: str) -> str:
    """The name without an expert's number behind it."""
    return re.sub(r"(?<=weight|.\.bias)\d+$", "", name)


def _is_gated(name: str, shapes: Mapping[str, Shape]) -> bool:
    """A gate and its up projection have twice the rows that the layer after them has columns."""
    if name.endswith(("_w", "_v")):
        return False
    after = re.sub(r"linear_fc1\.(weight|bias)", "linear_fc2.weight", name)
    if after not in shapes:
        raise CheckpointError(f"{name}: {after} is not there, which tells whether it is a gate with its up projection")
    return shapes[name][0] == 2 * shapes[after][1]


def _is_repeated(down: re.Match[str], shapes: Mapping[str, Shape]) -> bool:
    """Whether all ranks hold all rows of a down projection: as many as the up projection has columns, and those for
    positions.
    """
    rows = shapes[down[0]][0]
    up = shapes.get(f"{down[1]}linear_{down[2]}_up_proj.weight")
    if up is None:
        raise CheckpointError(f"{down[0]}: without its up projection nothing says whether it is cut")
    return rows > up[1] if down[2] == "kv" else rows == up[1]


def _cut(name: str, shape: Shape, way: Way, ranks: tuple[int, int]) -> Iterator[HeldBox]:
    """The parts of one tensor. ``ranks``: how many, and which one it is."""
    count, rank = ranks
    dim = 1 if way == "columns" else 0
    if way == "whole" or dim >= len(shape):
        if way != "whole":
            raise CheckpointError(f"{name}: of shape {list(shape)}, and it is to be cut in dim {dim}")
        yield HeldBox(name, shape, Box.whole(shape), 0, prod(shape), Box.whole(shape))
        return
    halves = 2 if way == "gated" else 1
    if shape[dim] % halves:
        raise CheckpointError(f"{name}: {shape[dim]} rows are no two halves")
    each = shape[dim] // halves
    whole = _with(shape, dim, shape[dim] * count)
    size = prod(shape) // halves
    for half in range(halves):
        start = (half * count + rank) * each
        box = Box(_with((0,) * len(shape), dim, start), _with(shape, dim, start + each))
        yield HeldBox(name, whole, box, half * size, (half + 1) * size, box)


def _of_grouped(
    name: str, found: re.Match[str], shapes: Mapping[str, Shape], ranks: tuple[RankCounts, RankCounts]
) -> Iterator[HeldBox]:
    """Experts that lie in one tensor, each transposed: (experts, hidden, rows) or (experts, columns, hidden)."""
    sizes, at = ranks
    before, which = found[1], int(found[2])
    router = shapes.get(f"{before.removesuffix('experts.')}router.weight")
    if router is None or router[0] % sizes.experts:
        raise CheckpointError(f"{name}: without the router's weights nothing says how many experts it holds")
    here = router[0] // sizes.experts
    hidden, inner = router[1], prod(shapes[name]) // here // router[1]
    if here * hidden * inner != prod(shapes[name]):
        raise CheckpointError(
            f"{name}: of shape {list(shapes[name])}, which are not {here} experts of {hidden} columns"
        )
    other = prod(shapes.get(f"{before}weight{3 - which}", ())) // here // hidden
    full = f"{before}experts.linear_fc{which}.weight"
    shape = (inner, hidden) if which == 1 else (hidden, inner)
    gated = which == 1 and inner == 2 * other
    way: Way = "whole" if sizes.tensor == 1 else "columns" if which == 2 else "gated" if gated else "rows"
    for expert in range(here):
        first = expert * hidden * inner
        for part in _cut(full, shape, way, (sizes.tensor, at.tensor)):
            turned = _turned(part, shape, first, way)
            yield _leading(turned, at.experts * here + expert, here * sizes.experts)


def _turned(part: HeldBox, shape: Shape, first: int, way: Way) -> HeldBox:
    """A part of an expert that lies transposed: halves of its rows are not apart from one another."""
    outer = part.box
    if way == "gated":
        shift = part.box.start[0] - (part.start * shape[0] // prod(shape))
        outer = Box((shift, 0), (shift + shape[0], shape[1]))
    return replace(part, start=first, stop=first + prod(shape), outer=outer, order=(1, 0))


def _leading(part: HeldBox, number: int, size: int) -> HeldBox:
    def before(box: Box) -> Box:
        return Box((number, *box.start), (number + 1, *box.stop))

    order = (0, *(dim + 1 for dim in part.order)) if part.order else ()
    return replace(part, shape=(size, *part.shape), box=before(part.box), outer=before(part.outer), order=order)


@lru_cache(maxsize=64)  # each of a layer's experts asks
def _local_experts(before: str, names: tuple[str, ...]) -> int:
    """How many experts a rank holds of a layer."""
    found = {int(match[2] or match[5]) for name in names if (match := _EXPERT.fullmatch(name)) and match[1] == before}
    if found != set(range(len(found))):
        raise CheckpointError(f"{before}: its experts are numbered {sorted(found)}, not from 0")
    return len(found)


def _with(place: Shape, dim: int, value: int) -> Shape:
    return (*place[:dim], value, *place[dim + 1 :])
