"""Codes with scales → tensors that are their products, where every tool keeps them: whole, by channel or by block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from reshard.dtypes import ALIASES, FLOATING
from reshard.errors import CheckpointError, listed
from reshard.index import TensorSpec
from reshard.layout.view import Shape
from reshard.names.model import ModelFile
from reshard.planning.catalog import Scales, Tensor, seen_as
from reshard.planning.quantised import Quantised, owner_of, quantised

_USUAL = 128
_OF_ACTIVATIONS = {"input", "output", "act", "activation", "activations", "k", "v", "q", "kv", "ascales"}
_OF_WEIGHTS = {"weight", "weights", "scale", "scales", "qscale", "inv"}
"""Words of scales that weights are multiplied by: any other says that codes mean something else."""
_PLAIN = {"fp8", "fbgemm_fp8", "mxfp8", "compressed-tensors", "modelopt", "quark", "gemma"}
"""Values of ``quant_method`` whose codes are numbers, where they look so: others keep them as a kernel wants them."""
_FP8 = {"fp8", "mxfp8"}
_EXPONENTS = "float8_e8m0fnu"
_TURNED = ("quantization_config.transform_config.config_groups", "quantization_config.algo_config")
_NO_NAMES = {"qweight", "data", "qdata", "codes", "packed", "quantized", "compressed"}
_OF_CACHE = {"q_scale", "k_scale", "v_scale", "kv_scale"}
_ACTIVATIONS = "scales of activations"
_WHY = "scales, which the weights are multiplied by"


def dequantised(
    tensors: Mapping[str, Tensor], files: Sequence[ModelFile], takes: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The tensors without scales, and by reason the names that are left out.

    Args:
        takes: whether codes of a name are wanted; of others the scales are left out, and nothing else is done.

    Raises CheckpointError listing codes whose scales are missing, or are of a kind that is not known.
    """
    made = dict(tensors)
    dropped: dict[str, list[str]] = {}
    faults: list[str] = []

    def leave_out(why: str, names: Iterable[str]) -> None:
        for name in names:
            dropped.setdefault(why, []).append(name)
            del made[name]

    dtype = _dtype(files)
    strange = list(_strange(files))
    groups = quantised({name: tensor.spec.dtype for name, tensor in tensors.items()})
    some_wanted = False
    for group in groups.values():
        if not any(map(takes, group.codes)):
            leave_out("scales of what is left out", group.beside)
            continue
        some_wanted = True
        try:
            codes, scale, others = _members(group)
            made[codes] = _scaled(tensors[codes], tensors[scale], dtype, files)
        except CheckpointError as error:
            faults.append(error.message)
            continue
        leave_out(_WHY, [scale])
        leave_out(_ACTIVATIONS, others)
    if some_wanted:
        leave_out(_ACTIVATIONS, _of_cache(made, files))
    faults += _without_scales(made, takes)
    if some_wanted and strange:
        faults = strange
    elif not groups:
        faults += [
            f"quant_method {method} of {where}, and no codes are known by their names"
            for where, method in _methods(files)
        ]
    if faults:
        raise CheckpointError("weights that cannot be dequantised:\n" + listed(faults))
    return made, {why: tuple(names) for why, names in dropped.items() if names}


def _dtype(files: Sequence[ModelFile]) -> str:
    """What the model is computed in: its configuration says so, else bfloat16."""
    for file in files:
        said = file.values.get("torch_dtype") or file.values.get("dtype")
        if file.hub and isinstance(said, str) and ALIASES.get(said, said) in FLOATING:
            return ALIASES.get(said, said)
    return "bfloat16"


def _methods(files: Sequence[ModelFile]) -> Iterator[tuple[str, str]]:
    """By what configurations say that weights are quantised."""
    for file in files:
        if method := file.values.get("quantization_config.quant_method"):
            yield file.where, str(method)


def _strange(files: Sequence[ModelFile]) -> Iterator[str]:
    """What configurations say of codes that are more than numbers."""
    for where, method in _methods(files):
        if method not in _PLAIN:
            yield f"quant_method {method} of {where}: what its codes mean is not known"
    for file in files:
        turned = next((key for key, value in file.values.items() if key.startswith(_TURNED) and value), "")
        if turned:
            yield f"{turned} of {file.where}: weights are turned before they are quantised, which is not undone"


def _tells_exponents(files: Sequence[ModelFile]) -> bool:
    """Whether configurations tell that the bytes of scales are powers of two."""
    own = (value for file in files for key, value in file.values.items() if key.startswith("quantization_config"))
    return any(isinstance(value, str) and re.search("mxfp8|ue8m0", value.lower()) for value in own)


def _without_scales(made: Mapping[str, Tensor], takes: Callable[[str], bool]) -> Iterator[str]:
    for name, tensor in made.items():
        if tensor.spec.dtype.startswith("float8") and tensor.scales is None and takes(name):
            yield f"{name}: {tensor.spec.dtype}, and no scale stands beside it"


def _of_cache(names: Iterable[str], files: Sequence[ModelFile]) -> list[str]:
    """Scales of keys and values, which lie with their attention, where configurations tell that there are such."""
    told = (key for file in files for key, value in file.values.items() if value)
    if not any(key.startswith("quantization_config.kv_cache") for key in told):
        return []
    return [name for name in names if name.rsplit(".", 1)[-1] in _OF_CACHE]


def _words(name: str) -> set[str]:
    return set(name.rsplit(".", 1)[-1].lower().replace("-", "_").split("_"))


def _members(group: Quantised) -> tuple[str, str, list[str]]:
    """Codes, their scale, and what else stands beside them and concerns other values."""
    layer = _words(owner_of(group.codes[0]))
    others = [name for name in group.beside if _words(name) & _OF_ACTIVATIONS]
    unknown = [n for n in group.beside if _words(n) - layer - _OF_WEIGHTS - {""} and n not in others]
    scales = [name for name in group.beside if name not in others and name not in unknown]
    if unknown:
        raise CheckpointError(
            f"{group.codes[0]}: {', '.join(unknown[:3])} beside it: what codes mean then is not known"
        )
    if len(group.codes) != 1 or len(scales) != 1:
        raise CheckpointError(
            f"{', '.join(group.codes[:3])} with {', '.join(scales[:3]) or 'no scale'}: one of each is known"
        )
    return group.codes[0], scales[0], others


def _scaled(codes: Tensor, scale: Tensor, dtype: str, files: Sequence[ModelFile]) -> Tensor:
    if scale.name.endswith("weight_scales") and codes.spec.dtype == "int8" and not [*_methods(files)]:
        raise CheckpointError(f"{codes.name}: EETQ calls scales {scale.name}, and keeps codes in an order of its own")
    if _words(codes.name) & _NO_NAMES:
        raise CheckpointError(f"{codes.name}: what the weight of these codes is called is not known")
    if not (codes.spec.dtype.startswith("float8") or codes.spec.dtype == "int8"):
        raise CheckpointError(f"{codes.name}: {codes.spec.dtype}, codes that are packed are not known")
    if codes.spec.dtype == "int8" and (scale.spec.dtype == _EXPONENTS or {m for _, m in _methods(files)} & _FP8):
        raise CheckpointError(f"{codes.name}: int8 beside fp8, two codes of 4 bits in a byte, which are not known")
    if scale.spec.dtype == "uint8" and codes.spec.dtype != "int8" and _tells_exponents(files):
        scale = replace(scale, spec=TensorSpec(_EXPONENTS, scale.spec.shape))
    if scale.spec.dtype not in FLOATING:
        raise CheckpointError(f"{scale.name}: {scale.spec.dtype} is no scale")
    shape = _counted(codes, scale)
    block = tuple(_block(codes, scale, dim, shape[dim], files) for dim in range(len(shape)))
    return replace(codes, cast_to=dtype, scales=Scales(seen_as(scale, shape), block))


def _counted(codes: Tensor, scale: Tensor) -> Shape:
    """The scale's shape with a dim for each of the codes'."""
    whole, given = codes.spec.shape, scale.spec.shape
    if all(n == 1 for n in given):
        return (1,) * len(whole)
    if len(given) == len(whole):
        return given
    if given == whole[: len(given)]:
        return (*given, *(1 for _ in whole[len(given) :]))
    if len(given) == 1 and given[0] == whole[-1]:
        return (*(1 for _ in whole[1:]), *given)
    raise CheckpointError(f"{scale.name}: {list(given)} are no scales of {codes.name} {list(whole)}")


def _block(codes: Tensor, scale: Tensor, dim: int, count: int, files: Sequence[ModelFile]) -> int:
    """How many elements of a dim have one scale."""
    n = codes.spec.shape[dim]
    if count == 1:
        return max(n, 1)
    if count == n:
        return 1
    told = list(_told(files, dim - len(codes.spec.shape)))
    for size in told or (_USUAL,):
        if -(-n // size) == count:
            return size
    if not told and n % count == 0 and (n // count) & (n // count - 1) == 0:
        return n // count
    blocks = f", and quantization_config tells blocks of {', '.join(map(str, told))}" if told else ": in what blocks?"
    raise CheckpointError(f"{scale.name}: {count} scales for {n} elements of dim {dim} of {codes.name}{blocks}")


def _told(files: Sequence[ModelFile], dim: int) -> Iterator[int]:
    """Sizes of blocks that configurations tell, for a dim counted from the last."""
    for file in files:
        for key, value in file.values.items():
            own, _, last = key.rpartition(".")
            if not own.startswith("quantization_config") or "activations" in own:
                continue
            if last in ("weight_block_size", "block_structure") and isinstance(value, list):
                value = value[dim] if len(value) >= -dim else None
            elif not last.endswith("group_size"):
                continue
            if type(value) is int and value > 0:
                yield value
