"""Quantised weights: codes that are numbers only together with the scales, zero points and maps beside them.

Names differ from tool to tool and agree in what they are made of: the layer, perhaps ``weight``, and words such as
``scale`` or ``zero_point``. So a tensor's owner is its name without such words, and codes belong with what has the
same owner.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from functools import lru_cache

from msgspec import Struct

_SCALES = frozenset({
    "scale", "scales", "qscale", "scaling", "scb", "absmax", "codebook", "codebooks", "wscale", "wscales", "ascales",
    "suh", "svh", "su", "sv", "centroids", "tables", "tables2", "vals", "bitmask",
})  # fmt: skip
"""Words of what codes are multiplied by, looked up in or spread by: beside narrow numbers they tell of codes."""

_BESIDE = _SCALES | {
    "zero", "zeros", "zp", "point", "qzeros", "wzeros", "offset", "idx", "perm", "invperm", "groups", "map", "state",
    "statistics", "amax", "shape", "format", "deq", "dequant", "quant", "prequant", "smooth", "bitsandbytes",
    "shift", "qbiases", "offsets", "hadamard", "mcg", "mul1", "sf", "invert",
}  # fmt: skip
_CODES = frozenset({
    "weight", "weights", "qweight", "packed", "qdata", "data", "codes", "blocks", "qidxs", "trellis", "indices",
    "compressed", "quantized",
})  # fmt: skip
_TABLES = frozenset({"absmax", "codebook", "codebooks", "centroids", "tables", "tables2", "bitmask"})
"""Beside these any weights are codes, also where their bytes are kept as those of floats."""
_QUALIFIERS = frozenset({
    "input", "output", "act", "activation", "activations", "inv", "g", "k", "v", "q", "kv", "w", "global", "nested",
    "nf4", "fp4", "ub", "max", "pre", "bias", "per", "tensor", "channel", "token", "group", "block", "factor",
    "factors", "and", "in", "row", "col", "dense", "res", "outlier", "forward", "backward", "matrix", "rowmajor",
    "double",
})  # fmt: skip
_WRAPPERS = frozenset({
    "matmul", "quant_op", "_layer", "_handler", "_weight_quantizer", "_input_quantizer", "weight_quantizer",
    "input_quantizer", "output_quantizer",
})  # fmt: skip
"""Components between a layer and its scales that name no layer of their own, in quantised cells of MindSpore's and
modules of ModelOpt's.
"""

_NARROW = ("float8", "float6", "float4", "int8", "uint8", "int4", "uint4", "int2", "uint2")
_PACKED = _CODES - {"data", "blocks"}
_NEVER_NUMBERS = frozenset({"qweight", "compressed"})
_SEPARATOR = re.compile(r"[_\W]+")


class Quantised(Struct, frozen=True):
    """The tensors of one layer's quantised weights: raw ``codes`` and what stands ``beside`` them."""

    codes: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.codes, *self.beside)


@lru_cache(maxsize=4096)
def _words(component: str) -> list[str]:
    if component in ("W_q", "q_weight"):
        return ["qweight"]
    return [word for word in _SEPARATOR.split(component.lower()) if word]


def owner_of(name: str) -> str:
    """The layer that codes and scales of these names belong to.

    >>> owner_of("layers.0.up.weight"), owner_of("layers.0.up.weight_scale_inv"), owner_of("layers.0.up.qzeros")
    ('layers.0.up', 'layers.0.up', 'layers.0.up')
    >>> owner_of("experts.down_proj_blocks"), owner_of("experts.down_proj_scales"), owner_of("up.weight.absmax")
    ('experts.down_proj', 'experts.down_proj', 'up')
    """
    *layer, last = re.split(r"[.:/]", name)
    while True:
        words = _words(last)
        if last not in _WRAPPERS:
            if not any(word in _BESIDE or word in _CODES for word in words):
                return ".".join((*layer, last))
            own = [w for w in words if not (w in _BESIDE or w in _CODES or w in _QUALIFIERS or w.isdigit())]
            if own:
                return ".".join((*layer, "_".join(own)))
        if not layer:
            return ""
        *layer, last = layer


def _last_words(name: str) -> list[str]:
    """Of what a name ends with, and of the table that it is the weight of, where it is one."""
    *layer, last = re.split(r"[.:/]", name)
    table = _words(layer[-1]) if layer and last == "weight" else []
    return [*_words(last), *(word for word in table if word == "centroids")]


def _is_beside(name: str) -> bool:
    return any(word in _BESIDE for word in _last_words(name))


def _may_be_codes(name: str, dtype: str) -> bool:
    """By dtype: numbers of a byte or less; wider integers where the name says that several codes are packed in each;
    whatever a name says to be codes.
    """
    if dtype.startswith(_NARROW):
        return True
    words = _words(name.rsplit(".", 1)[-1])
    return any(word in _PACKED if dtype.startswith(("int", "uint")) else word in _NEVER_NUMBERS for word in words)


def _words_beside(beside: Iterable[str]) -> set[str]:
    return {word for name in beside for word in _last_words(name)}


def quantised(dtypes: Mapping[str, str]) -> dict[str, Quantised]:
    """Quantised weights by owner, from the names and dtypes of a checkpoint's tensors."""
    if not any(_may_be_codes(name, dtype) for name, dtype in dtypes.items()):
        return {}
    codes: dict[str, list[str]] = {}
    beside: dict[str, list[str]] = {}
    for name in filter(_is_beside, dtypes):
        beside.setdefault(owner_of(name), []).append(name)
    tables = {owner for owner, names in beside.items() if _words_beside(names) & _TABLES}
    for name, dtype in dtypes.items():
        if not _is_beside(name) and (_may_be_codes(name, dtype) or (tables and _is_coded(name, tables))):
            codes.setdefault(owner_of(name), []).append(name)
    return {
        owner: Quantised(tuple(found), tuple(beside[owner]))
        for owner, found in codes.items()
        if _words_beside(beside.get(owner, ())) & _SCALES
    }


def _is_coded(name: str, tables: Set[str]) -> bool:
    """Whether a tensor of any dtype is the weights of a layer that has tables."""
    return owner_of(name) in tables and any(word in _PACKED for word in _last_words(name))


_TOOLS = {
    "bitsandbytes": ("absmax", "scb"), "EXL3": ("trellis",), "HIGGS": ("tables", "tables2"), "HQQ": ("w_q",),
    "AQLM": ("codebooks",), "VPTQ": ("centroids",), "SpQR": ("vals",), "MLX": ("qbiases",), "quanto": ("_data",),
    "FP-Quant": ("hadamard",), "torchao": ("qdata",), "compressed-tensors": ("packed", "bitmask"),
}  # fmt: skip
"""Words that the names of one tool alone have."""


def quantiser(names: Iterable[str]) -> str:
    """Whose names these are; "" where several tools use them.

    >>> quantiser(["q.qweight", "q.qzeros", "q.scales", "q.g_idx"]), quantiser(["q.weight", "q.weight.absmax"])
    ('GPTQ', 'bitsandbytes')
    >>> quantiser(["q.trellis", "q.suh", "q.svh"]), quantiser(["q.weight", "q.scales", "q.tables", "q.tables2"])
    ('EXL3', 'HIGGS')
    """
    names = list(names)
    last = {name.rsplit(".", 1)[-1] for name in names}
    if {"qweight", "qzeros"} <= last:
        return "GPTQ" if "g_idx" in last else "AWQ"
    words = {word for name in names for word in _last_words(name)} | {name.lower() for name in last}
    return next((tool for tool, own in _TOOLS.items() if words & {*own}), "")
