"""Merges of bases that get other names in the same pass: done under the names that the adapters have."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from reshard.dtypes import ALIASES
from reshard.errors import PlanError, listed
from reshard.families.probe import agreements
from reshard.names.wishes import HUB, MEGATRON, Asked, Naming
from reshard.ops.adapters import Joined, fitting
from reshard.ops.convert import named
from reshard.ops.options import OF_MEGATRON, Options
from reshard.planning.catalog import Catalog
from reshard.planning.lora_experts import FusedExperts, one_by_one
from reshard.planning.lora_made import as_made
from reshard.planning.names import NameRules


def under_their_names(source: Catalog, src: str, options: Options, layers: Collection[str]) -> tuple[Catalog, Options]:
    """The base under those names, of all that it has on its way to the target's, that most ``layers`` of the adapters
    have; and what is left to do with it then. Codes are numbers by then.
    """
    naming = options.naming
    if naming.dequantize:
        source = _dequantised(source, src, naming)
        naming = replace(naming, dequantize=False)
        options = replace(options, naming=naming)
    fit = fitting(source.tensors, layers)
    if fit < len(layers) and options.to in OF_MEGATRON:
        naming = replace(naming, dst=MEGATRON)
        options = replace(options, naming=naming)
    if not naming.dst or fit == len(layers):
        return source, options
    ways = [_at_the_hub(source, src, options)] if naming.dst != HUB else []
    for there, left in (*ways, named(source, src, options)):
        found = fitting(there.tensors, layers)
        if found > fit:
            fit, source, options = found, there, left
    return source, options


def _dequantised(source: Catalog, src: str, naming: Naming) -> Catalog:
    from reshard.ops.naming import models, renamed

    return renamed(source, Naming(dequantize=True), models(src, naming), NameRules()).catalog


def _at_the_hub(source: Catalog, src: str, options: Options) -> tuple[Catalog, Options]:
    """Under Hugging Face's names, by which all others are told; nothing else is changed yet."""
    naming = options.naming
    to_hub = replace(
        naming, dst=HUB, asked=naming.src_asked, src_asked=Asked(), vocab_rows=None, tied="keep", files=False, ranks=0
    )
    there, _ = named(source, src, replace(options, naming=to_hub, dst_strategy=""))
    told_by = {("names on the way" if name == "names" else name): said for name, said in there.told_by.items()}
    left = replace(naming, src=HUB, src_asked=Asked())
    return replace(there, told_by=told_by), replace(options, names=NameRules(), naming=left)


def named_after(made: Joined, src: str, options: Options, fused: Mapping[str, FusedExperts]) -> tuple[Joined, Options]:
    """What is merged under the names that the target gets, and the options that are left to do.

    Args:
        fused: parameters that only the adapters have as one.
    """
    source, merge = made.source, made.merge
    changed = [tensor for tensor in source.compared() if tensor.name in merge.changed or tensor.name in merge.used]
    if differ := [name for name, same in agreements(source, changed).items() if not same]:
        raise PlanError("ranks hold different values of what is merged:\n" + listed(differ))
    alone, how = as_made(source, merge, ALIASES.get(options.dtype, options.dtype))
    there, left = named(one_by_one(alone, fused), src, options, merge.config)
    return Joined(there, how), left
