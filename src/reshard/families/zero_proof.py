"""A proof that costs a few small reads: below stage 3 the model's own 16-bit weights are the masters, rounded.

Files of two saves have the same shapes, and parameters in another order often have, too. Their first numbers tell.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from reshard.errors import CheckpointError
from reshard.families.tensor_parallel import RankSlice
from reshard.families.torch_parts import TorchPart
from reshard.families.zero_files import ModelStates, OptimizerStates
from reshard.formats.torch_values import TensorRef
from reshard.storage.storages import storage_of

_ELEMENTS = 256
_INFINITE = 0x7F800000
_TENSORS = 8
_UNSIGNED = {"bfloat16": "H", "float16": "H", "float32": "I"}
_Bits = list[int]


def check_copies(
    model: ModelStates, ranks: Sequence[OptimizerStates], found: Mapping[str, RankSlice], warnings: list[str]
) -> None:
    """Raises CheckpointError where most of the weights that are looked at are not their masters; a few are told.

    An element may be off by one in its last bit: some optimizers round at random.
    """
    chosen = [name for name in _chosen(model) if name in found and found[name].spec.dtype == "float32"]
    wrong = differing(model, [states.part for states in ranks], [found[name] for name in chosen])
    if not wrong:
        return
    what = f"the optimizer's weights are not those of {model.part.file.name}, rounded: {', '.join(wrong)}"
    if 2 * len(wrong) >= len(chosen):
        raise CheckpointError(
            what,
            ranks[0].part.path,
            "files of two saves lie together, or parameters in another order than param_shapes say: bring those of one",
        )
    warnings.append(f"{ranks[0].part.path}: {what}")


def differing(model: ModelStates, holders: Sequence[TorchPart], masters: Sequence[RankSlice]) -> list[str]:
    """Those of the parameters whose masters, in fp32, are not the model's own weights, rounded.

    ``holders``: the files that may hold masters.
    """
    parts = {part.number: part for part in holders}
    module = model.module or {}
    told = [
        one
        for one in masters
        if one.spec.dtype == "float32" and one.name in module and module[one.name].dtype in _UNSIGNED
    ]
    with ThreadPoolExecutor(storage_of(model.part.path).at_once) as pool:
        wrong = list(pool.map(lambda master: _differs(model, parts, master), told))
    return [master.name for master, differs in zip(told, wrong, strict=True) if differs]


def _chosen(model: ModelStates) -> list[str]:
    """Of each group the last parameter and the first, which are where all others must be for these to be right."""
    module = model.module or {}
    ends: list[str] = []
    for group in model.shapes:
        there = [n for n, shape in group.items() if n in module and module[n].shape == shape and module[n].size]
        ends += [there[-1], there[len(there) // 2], there[0]] if there else []
    return [n for n in dict.fromkeys(ends) if module[n].dtype in _UNSIGNED][:_TENSORS]


def _differs(model: ModelStates, parts: Mapping[int, TorchPart], master: RankSlice) -> bool:
    """Whether most of the first elements are others."""
    copy = (model.module or {})[master.name]
    first = master.shards[0]
    if any(first.box.start) or not first.held or first.held[0].file not in parts:
        return False
    held, count = first.held[0], min(first.box.size, _ELEMENTS)
    masters = parts[held.file].bytes_of(held.extents, 4 * count)
    numbers = zip(_bits(masters, "float32"), _rounded(masters, copy), strict=True)
    wanted = [rounded if bits & 0x7FFFFFFF <= _INFINITE else None for bits, rounded in numbers]  # NaN has many bits
    there = _bits(model.part.content(copy, count), copy.dtype)
    pairs = ((a, b) for a, b in zip(wanted, there, strict=True) if a is not None)
    return sum(abs(_order(a, copy) - _order(b, copy)) > 1 for a, b in pairs) * 2 > count


def _rounded(masters: bytes, copy: TensorRef) -> _Bits:
    """The bits of fp32 numbers in the copy's dtype, rounded to the nearest, to even where two are as near."""
    bits = _bits(masters, "float32")
    if copy.dtype == "float32":
        return bits
    if copy.dtype == "bfloat16":
        return [(b + 0x7FFF + (b >> 16 & 1)) >> 16 & 0xFFFF for b in bits]
    return [_half(number) for (number,) in struct.iter_unpack("<f", masters)]


def _half(number: float) -> int:
    try:
        return int.from_bytes(struct.pack("<e", number), "little")
    except OverflowError:
        return 0xFC00 if number < 0 else 0x7C00


def _bits(content: bytes, dtype: str) -> _Bits:
    return [b for (b,) in struct.iter_unpack("<" + _UNSIGNED[dtype], content)]


def _order(bits: int, copy: TensorRef) -> int:
    """Of numbers that follow one another, numbers that do."""
    sign = 0x80000000 if copy.dtype == "float32" else 0x8000
    return sign - bits if bits & sign else bits
