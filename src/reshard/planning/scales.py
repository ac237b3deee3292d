"""What no conversion may do to quantised weights: cast or add to raw codes, round scales, or part the two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from msgspec import Struct

from reshard.dtypes import FLOATING
from reshard.errors import PlanError, listed
from reshard.layout.stages import Strategy
from reshard.planning.catalog import Tensor
from reshard.planning.decide import Kept
from reshard.planning.names import NameRules
from reshard.planning.quantised import Quantised, quantised, quantiser


class Wishes(Struct, frozen=True):
    """What a conversion is to do besides copying.

    Attributes:
        dtype: floating weights are cast to this; empty for no cast.
        target: the strategy of the target.
        summed: names of weights that LoRA weights are added to.
    """

    dtype: str = ""
    target: Strategy | None = None
    summed: Set[str] = frozenset()

    @property
    def names(self) -> frozenset[str] | None:
        """All that the target's strategy has; None without a strategy, when no name is unknown."""
        return self.target.names() if self.target else None

    def casts(self, dtype: str) -> bool:
        return bool(self.dtype) and dtype in FLOATING and dtype != self.dtype


def refuse_parted(source: Mapping[str, Tensor], kept: Sequence[Kept], wishes: Wishes) -> tuple[str, ...]:
    """Refuse what would make quantised weights mean something else. Gives warnings; raises PlanError that lists all."""
    if _all_as_they_are(source, kept, wishes):
        return ()
    dtypes = {name: tensor.spec.dtype for name, tensor in source.items()}
    found = quantised(dtypes)
    if found:
        faults = list(_faults(found, dtypes, kept, wishes))
        _refuse(faults, way_to_numbers(found.values(), dtypes))
    return _plain_fp8(kept, wishes)


def refuse_parted_by(rules: NameRules, source: Mapping[str, Tensor], convention: str = "") -> None:
    """Refuse to leave out, or to call otherwise, a part of what quantised weights are made of. Raises PlanError that
    lists all.

    Args:
        convention: whose names all get, where those have no place for scales.
    """
    dtypes = {name: tensor.spec.dtype for name, tensor in source.items()}
    if found := quantised(dtypes):
        names = {name: rules.renamed(name) for name in source if rules.takes(name)}
        faults = list(_parted(found, dtypes, names, None))
        if convention:
            kept = (group for group in found.values() if any(name in names for name in group.codes))
            faults = faults or [f"{g.codes[0]}: {convention} has no place for {g.beside[0]}" for g in kept]
        _refuse(faults, way_to_numbers(found.values(), dtypes))


def way_to_numbers(found: Iterable[Quantised], dtypes: Mapping[str, str]) -> str:
    """What makes numbers of codes, for a hint."""
    groups = list(found)
    plain = all(dtypes[name].startswith(("float8", "int8")) for group in groups for name in group.codes)
    plain = plain and not any(quantiser(group.names) for group in groups)
    how = "--dequantize multiplies them" if plain else "the tool that quantised them makes numbers of them"
    return f"codes and scales are copied together, unchanged; {how}"


def _refuse(faults: list[str], hint: str) -> None:
    if faults:
        raise PlanError("quantised weights mean nothing without their scales:\n" + listed(faults), hint=hint)


def _all_as_they_are(source: Mapping[str, Tensor], kept: Sequence[Kept], wishes: Wishes) -> bool:
    """Whether every tensor is taken along, unchanged and by its name: nobody need know then what belongs together."""
    if wishes.dtype or wishes.summed or len(kept) != len(source):
        return False
    known = wishes.names
    return all(each.name == each.tensor.name and (known is None or each.name in known) for each in kept)


def _faults(
    found: Mapping[str, Quantised], dtypes: Mapping[str, str], kept: Sequence[Kept], wishes: Wishes
) -> Iterator[str]:
    names = {each.tensor.name: each.name for each in kept}
    for group in found.values():
        if any(name in names for name in group.names):
            yield from _touched(group, dtypes, wishes)
    yield from _parted(found, dtypes, names, wishes.names)


def _parted(
    found: Mapping[str, Quantised], dtypes: Mapping[str, str], names: Mapping[str, str], known: Set[str] | None
) -> Iterator[str]:
    """What would reach the target without what it belongs to.

    Args:
        names: the new name of each that is kept.
        known: those that the target knows; None for all.
    """
    renamed = quantised({new: dtypes[name] for name, new in names.items()})
    owners = {name: owner for owner, group in renamed.items() for name in group.names}
    for group in found.values():
        here = {name: names[name] for name in group.names if name in names}
        if here:
            yield from _of_group_parted(group, here, owners, owners.keys() if known is None else known)


def _touched(group: Quantised, dtypes: Mapping[str, str], wishes: Wishes) -> Iterator[str]:
    """What a cast or a LoRA sum would change."""
    for name in group.codes:
        raw = f"{name}: raw codes, {dtypes[name]} with {group.beside[0]}"
        if name in wishes.summed:
            yield f"{raw}: LoRA weights cannot be added to them"
        elif wishes.casts(dtypes[name]):
            yield f"{raw}: --dtype {wishes.dtype} would take them for numbers"
    for name in group.beside:
        if wishes.casts(dtypes[name]):
            yield f"{name}: belongs to the raw codes {group.codes[0]}: --dtype {wishes.dtype} would change it"


def _of_group_parted(
    group: Quantised, here: Mapping[str, str], new_owners: Mapping[str, str], known: Set[str]
) -> Iterator[str]:
    first, *others = here.values()
    lost = [name for name in group.names if name not in here]
    unknown = [name for name in here.values() if name not in known]
    if lost:
        yield f"{next(iter(here))}: would go without {', '.join(lost[:4])}"
    elif first not in new_owners or any(new_owners.get(name) != new_owners[first] for name in others):
        yield f"{', '.join(here.values())}: by their new names they no longer belong together"
    elif unknown and len(unknown) < len(here):
        yield f"{', '.join(unknown[:4])}: the target's strategy has {group.codes[0]} and not this, or the reverse"


def _plain_fp8(kept: Iterable[Kept], wishes: Wishes) -> tuple[str, ...]:
    """A warning where fp8 without scales is cast: it is taken at its word."""
    cast = [k.name for k in kept if k.tensor.spec.dtype.startswith("float8") and wishes.casts(k.tensor.spec.dtype)]
    if not cast:
        return ()
    more = f" and {len(cast) - 1:,} more" if cast[1:] else ""
    return (f"fp8 with no scale beside it, cast as plain numbers: {cast[0]}{more}",)
