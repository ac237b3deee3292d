"""LoRA merge: weights with their low-rank adapters added, into one full checkpoint or any layout, on the way."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ALIASES
from reshard.errors import PlanError, UsageError, listed
from reshard.families.open_checkpoint import open_source
from reshard.families.probe import agreements
from reshard.families.registry import listing
from reshard.names.wishes import HUB, MEGATRON, Asked, Naming
from reshard.ops.adapters import AdapterAt, Joined, fitting, joined, layers_of, model_of, own_config
from reshard.ops.convert import Conversion, execute, named, plan_from, refuse_lone_rank
from reshard.ops.observer import Observer
from reshard.ops.options import OF_MEGATRON, Options
from reshard.ops.scaling import AlphaRank, LoraConfig, Scaling, parse_scaling, read_config
from reshard.planning.catalog import Catalog, is_viewed
from reshard.planning.lora_experts import FusedExperts, fused_experts, one_by_one
from reshard.planning.lora_made import as_made
from reshard.planning.lora_values import Combination, How, combination_named
from reshard.planning.names import NameRules
from reshard.planning.plan import Plan


def lora_config(
    scaling: str = "",
    alpha: float | None = None,
    rank: int | None = None,
    config: str = "",
    adapter: str = "",
    *,
    initial: bool = False,
) -> LoraConfig:
    """The one source of scaling that was given. Raises UsageError for none and for several.

    An adapter that PEFT saved brings its own ``adapter_config.json``: it says the scaling when nothing else is given,
    and in any case what else counts. Raises InputError where it is of a kind that is not merged.

    Args:
        initial: the adapter that its training began with is given, too.
    """
    given = [bool(scaling), alpha is not None or rank is not None, bool(config)]
    if sum(given) > 1:
        raise UsageError("several sources of scaling", hint="one of --scaling, --lora-alpha with --lora-rank, --config")
    said: Scaling | None = parse_scaling(scaling) if scaling else None
    if alpha is not None or rank is not None:
        if alpha is None or rank is None or rank < 1:
            raise UsageError("--lora-alpha and --lora-rank go together, the rank above 0")
        said = AlphaRank(alpha, rank)
    own = own_config(adapter)
    if config and config != own:
        made = read_config(config, initial=initial)
        return _with_own(made, read_config(own, made.scaling, initial=initial)) if own else made
    if own:
        return read_config(own, said, initial=initial)
    if said is not None:
        return LoraConfig(said)
    if adapter:
        listing(adapter)  # one that is not there has no configuration either
    raise UsageError(
        "no scaling was given, and a wrong one makes a wrong model",
        hint="--adapter with a folder that has its adapter_config.json; or --scaling alpha/rank, as 16/8; or "
        "--lora-alpha and --lora-rank; or --config adapter_config.json",
    )


def _with_own(config: LoraConfig, own: LoraConfig) -> LoraConfig:
    """What an adapter's own configuration says, its scaling apart; the other's word goes first."""
    return replace(
        own,
        scaling=config.scaling,
        transposed=config.transposed,
        told_by={**own.told_by, **config.told_by},
        tokens=config.tokens or own.tokens,
        parameters=config.parameters or own.parameters,
        dora=config.dora or own.dora,
    )


class Opened(Struct, frozen=True):
    """A merge of which all headers are read: its base as it was given, and the options that are left to do."""

    base: Catalog
    joined: Joined
    options: Options


def open_merge(
    src: str | Path,
    options: Options,
    adapters: Sequence[AdapterAt],
    combination: Combination = "cat",
    *,
    allow_nan: bool = False,
) -> Opened:
    """The base, the adapters and what becomes of weights, under the names that the target gets. Raises InputError."""
    source = open_source(options.source(src))
    naming, layers = options.naming_of(source), layers_of(adapters)
    base, left = _under_their_names(source, str(src), replace(options, naming=naming), layers)
    told = (naming.src_model, naming.model, naming.dst_model)
    own_names = left.naming.changes or naming.dst in ("", HUB)
    how = How(combination_named(combination), allow_nan, model_of(base, told), own_names)
    fused = fused_experts(base.tensors, layers)
    made = joined(replace(base, tensors={**base.tensors, **{n: f.tensor for n, f in fused.items()}}), adapters, how)
    if fused or left.naming.changes or any(is_viewed(made.merge.tensors[name]) for name in made.merge.changed):
        made, left = _named_after(made, str(src), left, fused)
    if left.along:
        from reshard.ops.model_files import corrected

        left = replace(left, along=corrected(left.along, made.merge.config))
    return Opened(source, made, left)


def _under_their_names(source: Catalog, src: str, options: Options, layers: Collection[str]) -> tuple[Catalog, Options]:
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


def _named_after(made: Joined, src: str, options: Options, fused: Mapping[str, FusedExperts]) -> tuple[Joined, Options]:
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


def plan_merge(merge: Opened, dst: str | Path) -> Plan:
    """Make the plan of a merge of what is open. Raises PlanError."""
    refuse_lone_rank(merge.base, str(dst), merge.options)
    return plan_from(merge.joined.source, str(dst), merge.options, merge.joined.merge)


def plan_lora(
    src: str | Path,
    dst: str | Path,
    config: LoraConfig | Sequence[AdapterAt],
    options: Options | None = None,
    adapter: str | Path = "",
    *,
    combination: Combination = "cat",
    allow_nan: bool = False,
) -> Plan:
    """Make the plan of a merge; nothing is written. Arguments are those of ``merge_lora``.

    Raises:
        PlanError: A without B or base, shapes that do not fit, slices that no file holds: all that is wrong.
    """
    if not isinstance(config, LoraConfig) and adapter:
        raise UsageError("an adapter besides the adapters", hint="merge_lora(src, dst, [AdapterAt(...), ...])")
    adapters = [AdapterAt(str(adapter), config)] if isinstance(config, LoraConfig) else config
    merge = open_merge(src, options or Options(), adapters, combination, allow_nan=allow_nan)
    return plan_merge(merge, dst)


def merge_lora(
    src: str | Path,
    dst: str | Path,
    config: LoraConfig | Sequence[AdapterAt],
    options: Options | None = None,
    adapter: str | Path = "",
    observer: Observer | None = None,
    *,
    combination: Combination = "cat",
    allow_nan: bool = False,
) -> Conversion:
    """Write ``src`` with its LoRA weights (or those of ``adapter``) added; they and optimizer states stay behind.

    Args:
        config: from ``lora_config``; or adapters, each with its own.
        combination: how several are put together.
        allow_nan: sums that are NaN or infinite are written, too, and told.

    Raises:
        InputError: before anything is written, what does not fit; meanwhile, a NaN or infinity that did not go in.
    """
    options = options or Options()
    made = plan_lora(src, dst, config, options, adapter, combination=combination, allow_nan=allow_nan)
    return execute(made, dst, options, observer or Observer())
