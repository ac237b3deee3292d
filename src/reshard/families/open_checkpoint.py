"""Opening a checkpoint of any family."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from reshard.errors import CheckpointError, UsageError, some
from reshard.families.family import Family
from reshard.families.ours import refuse_unfinished_target
from reshard.families.registry import listing, recognised
from reshard.families.source import NO_ITERATIONS, Source
from reshard.planning.catalog import Catalog
from reshard.storage.machine import uncollected

_NOT_TAKEN = {
    "strategy": ("a strategy was given, and {} describes itself", "leave --src-strategy out"),
    "iteration": NO_ITERATIONS,
    "frozen": ("--frozen is for optimizers that number their parameters, and this is {}", "leave --frozen out"),
    "select": ("--select chooses among files of rank folders, and this is {}", "leave --select out"),
    "suffix": ("--suffix chooses among weight files by their names, and this is {}", "leave --suffix out"),
}
"""What is said of what a user asks for and a family has no use for."""


@uncollected()
def open_source(source: Source) -> Catalog:
    """Read headers and strategy. Raises InputError with what is missing or contradictory, UsageError for what the
    source's family does not take.
    """
    there = listing(source.path)
    try:
        family = recognised(there, source.family)
        _check_taken(source, family, there.path)
        found = family.read(there, source)
    except CheckpointError:
        refuse_unfinished_target(there.path)  # which is why it lacks what it lacks
        raise
    warnings = (*found.warnings, *_withheld(found))
    return replace(found, kind=family.name, warnings=warnings, places=(there.path,))


def _withheld(found: Catalog) -> Iterator[str]:
    """What is there and cannot be given: of what is counted it is no part."""
    for why in dict.fromkeys(found.withheld.values()):
        names = [name for name, of_name in found.withheld.items() if of_name == why]
        yield f"{some(names)}: {why}"


def _check_taken(source: Source, family: Family, path: str) -> None:
    unasked = Source(source.path)
    for field, (fault, hint) in _NOT_TAKEN.items():
        if field not in family.takes and getattr(source, field) != getattr(unasked, field):
            raise UsageError(fault.format(family.name), path, hint)
