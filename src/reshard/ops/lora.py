"""LoRA merge: weights with their low-rank adapters added, into one full checkpoint or any layout, on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec.structs import replace

from reshard.errors import PlanError, UsageError, listed
from reshard.families.open_checkpoint import open_source
from reshard.families.source import Source
from reshard.formats.registry import format_of
from reshard.index import ZEROS
from reshard.ops.convert import Conversion, execute, plan_from
from reshard.ops.observer import Observer
from reshard.ops.options import Options
from reshard.ops.scaling import AlphaRank, LoraConfig, own_orientation, parse_scaling, read_config
from reshard.planning.catalog import Catalog, Held, Loose, Tensor
from reshard.planning.lora import lora_name, pair_factors
from reshard.planning.plan import Plan
from reshard.storage.storage import join
from reshard.storage.storages import storage_of

_PEFT_CONFIG = "adapter_config.json"


def lora_config(
    scaling: str = "", alpha: float | None = None, rank: int | None = None, config: str = "", adapter: str = ""
) -> LoraConfig:
    """The one source of scaling that was given. Raises UsageError for none and for several.

    An adapter that PEFT saved brings its own ``adapter_config.json``: it says the scaling when nothing else is given,
    and in any case whether this is plain LoRA. Raises InputError where it is not.
    """
    given = [bool(scaling), alpha is not None or rank is not None, bool(config)]
    if sum(given) > 1:
        raise UsageError("several sources of scaling", hint="one of --scaling, --lora-alpha with --lora-rank, --config")
    own = _own_config(adapter)
    transposed, told_by = own_orientation(own) if own and own != config else (False, {})
    if scaling:
        return LoraConfig(parse_scaling(scaling), transposed, told_by=told_by)
    if alpha is not None or rank is not None:
        if alpha is None or rank is None or rank < 1:
            raise UsageError("--lora-alpha and --lora-rank go together, the rank above 0")
        return LoraConfig(AlphaRank(alpha, rank), transposed, told_by=told_by)
    if config or own:
        made = read_config(config or own)
        return replace(made, told_by={**told_by, **made.told_by})
    raise UsageError(
        "no scaling was given, and a wrong one makes a wrong model",
        hint="--scaling alpha/rank, as 16/8; or --lora-alpha and --lora-rank; or --config adapter_config.json",
    )


def _own_config(adapter: str) -> str:
    """The ``adapter_config.json`` in an adapter's folder, or beside its file; "" without one."""
    folder = adapter if format_of(adapter) is None else adapter.rpartition("/")[0] or "."
    own = join(folder, _PEFT_CONFIG)
    return own if adapter and storage_of(own).entry(own) is not None else ""


def plan_lora(
    src: str | Path, dst: str | Path, config: LoraConfig, options: Options | None = None, adapter: str | Path = ""
) -> Plan:
    """Make the plan of a merge; nothing is written.

    Raises:
        PlanError: A without B or base, shapes that do not fit, slices that no file holds: all that is wrong.
    """
    options = options or Options()
    return plan_lora_of(open_with_adapter(src, options, adapter), dst, config, options)


def open_with_adapter(src: str | Path, options: Options, adapter: str | Path = "") -> Catalog:
    """The base, and the adapter's factors with it. Raises InputError."""
    source = open_source(options.source(src))
    return _joined(source, open_source(Source(str(adapter)))) if adapter else source


def plan_lora_of(source: Catalog, dst: str | Path, config: LoraConfig, options: Options) -> Plan:
    """As ``plan_lora``, of what is open already."""
    merge = pair_factors(source.tensors, config.rules())
    source = replace(source, told_by={**source.told_by, **config.told_by})
    return plan_from(source, str(dst), options, merge)


def merge_lora(
    src: str | Path,
    dst: str | Path,
    config: LoraConfig,
    options: Options | None = None,
    adapter: str | Path = "",
    observer: Observer | None = None,
) -> Conversion:
    """Write ``src`` with its LoRA weights (or those of ``adapter``) added; they and optimizer states stay behind.

    Args:
        config: from ``lora_config``.

    Raises:
        InputError: before anything is written, what does not fit; meanwhile, a NaN or infinity that did not go in.
    """
    options = options or Options()
    made = plan_lora(src, dst, config, options, adapter)
    return execute(made, dst, options, observer or Observer())


def _joined(base: Catalog, adapter: Catalog) -> Catalog:
    """One catalog of both; the adapter holds factors alone. Raises PlanError."""
    others = [name for name in adapter.tensors if lora_name(name) is None]
    if others:
        raise PlanError(
            "the adapter holds more than LoRA factors:\n" + listed(others),
            hint="such tensors would replace or extend the base, which a LoRA merge does not do",
        )
    twice = [name for name in adapter.tensors if name in base.tensors]
    if twice:
        raise PlanError("the base has LoRA weights of the same names:\n" + listed(twice), hint="leave --adapter out")
    moved: Mapping[str, Tensor] = {n: _renumbered(t, len(base.files)) for n, t in adapter.tensors.items()}
    told_by = {**base.told_by, **{f"adapter's {name}": content for name, content in adapter.told_by.items()}}
    return replace(base, files=(*base.files, *adapter.files), tensors={**base.tensors, **moved}, told_by=told_by)


def _renumbered(tensor: Tensor, files: int) -> Tensor:
    """The same tensor, its files counted after ``files`` others."""

    def counted_on(held: Held) -> Held:
        return held if held.file == ZEROS else replace(held, file=held.file + files)

    shards = (replace(shard, held=tuple(map(counted_on, shard.held))) for shard in tensor.shards)
    return replace(tensor, shards=Loose(tuple(shards)), known=True)
