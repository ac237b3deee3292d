"""Names: what becomes of each tensor under another convention's, and by which rule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from reshard.families.open_checkpoint import open_source
from reshard.names.naming import convention_of
from reshard.names.wishes import HUB
from reshard.ops.naming import models, renamed
from reshard.ops.options import Options
from reshard.planning.names import layer_pattern


class Becoming(Struct, frozen=True):
    """A tensor of the source, what it is made into, and the rules, one a stage."""

    name: str
    targets: tuple[str, ...]
    rules: tuple[str, ...]


class NamesTold(Struct, frozen=True):
    """``src``, ``dst``: the conventions; ``dropped``: names that are left out, by reason."""

    src: str
    dst: str
    tensors: tuple[Becoming, ...]
    dropped: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]


def told(src: str | Path, options: Options, *, guess: bool = False) -> NamesTold:
    """
    Args:
        guess: take Hugging Face's for the target's convention, and MindFormers' core of what is Hugging Face's already.

    Raises InputError as the conversion would.
    """
    source = open_source(options.source(src))
    naming = options.naming
    if guess:
        here = naming.src or convention_of(source.tensors)
        naming = replace(naming, dst="mcore" if here == HUB else HUB)
    made = renamed(source, naming, models(str(src), naming), options.names)
    first, *more = made.fates or ((),)
    after = {fate.source: fate for stage in more for fate in stage}
    rows = []
    for fate in first:
        further = [after[name] for name in fate.targets if name in after]
        targets = tuple(dict.fromkeys(n for f in further for n in f.targets)) if more else fate.targets
        rules = (fate.rule, *dict.fromkeys(f.rule for f in further))
        rows.append(Becoming(fate.source, targets, rules))
    return NamesTold(made.convention, naming.dst, tuple(rows), dict(made.catalog.dropped), made.catalog.warnings)


def lines(found: NamesTold) -> Iterator[str]:
    """One for all layers that become the same."""
    kinds: dict[tuple[str, ...], list[Becoming]] = {}
    for row in found.tensors:
        patterns = dict.fromkeys(layer_pattern(name) for name in row.targets)
        kinds.setdefault((layer_pattern(row.name), *patterns, *row.rules), []).append(row)
    for rows in kinds.values():
        targets = list(dict.fromkeys(layer_pattern(name) for name in rows[0].targets))
        rules = " → ".join(rule for rule in rows[0].rules if rule)
        one = len(rows) == 1
        name = rows[0].name if one else layer_pattern(rows[0].name)
        made = list(dict.fromkeys(rows[0].targets)) if one and len(rows[0].targets) <= len(targets) else targets
        count = "" if one else f"  ({len(rows)} tensors)"
        yield f"{name} → {', '.join(made)}: {rules}{count}"
    for reason, names in found.dropped.items():
        yield f"left out, {reason}: {len(names):,} as {names[0]}"
