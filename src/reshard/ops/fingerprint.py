"""Fingerprint: a number of a checkpoint's content that does not depend on layout, format, ranks or replicas."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from reshard.errors import CheckpointError, UsageError, counted, listed, named_ranks
from reshard.families.discover import Select
from reshard.families.open_checkpoint import open_source
from reshard.families.probe import agreements, probe
from reshard.families.source import Source, source_at
from reshard.index import Extent
from reshard.layout.box import Box
from reshard.moving.fingerprint import VERSION, Hashing, Portion, Stretch, hashed, lots, number_of, number_of_all
from reshard.moving.scratch import Scratch
from reshard.moving.task_inputs import Sources, files_of
from reshard.names.wishes import Naming
from reshard.ops.observer import Observer
from reshard.planning.assembly import of_first_holders, spec_of
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.names import NameRules, is_state
from reshard.planning.plan import Move
from reshard.planning.steps import Piece
from reshard.storage.machine import auto_workers


class TensorPrint(Struct, frozen=True):
    """The number of one tensor: of its name, dtype, shape and the bits of its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    number: str


class Fingerprint(Struct, frozen=True):
    """Numbers of 128 bits, hexadecimal.

    Attributes:
        number: of all tensors.
        weights: of those that are no optimizer states or gradients.
        not_counted: strings, tensors of which the ranks hold different values, and what is there and cannot be told.
        version: of the way in which numbers are made; only numbers of the same one can be compared.
    """

    number: str
    weights: str
    tensors: tuple[TensorPrint, ...]
    nbytes: int
    not_counted: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    version: int = VERSION


def fingerprint(
    path: str | Path | Source,
    strategy: str | Path = "",
    rules: NameRules | None = None,
    select: Select = "natural",
    suffix: str = "",
    observer: Observer | None = None,
    naming: Naming | None = None,
) -> Fingerprint:
    """Read every value once and give its number. Equal numbers: the same tensors, however they are cut and stored.

    Args:
        path: a weight file, or a folder of any family; or a ``Source``, which says all that is asked for.
        strategy: the strategy file or folder it was saved with; empty for one full checkpoint.
        rules: which names to count, and what to call them.
        naming: the convention as whose tensors they count: what another one fuses, pads or stacks has the same number.

    Raises:
        InputError: broken, incomplete or contradictory files.
    """
    rules = rules or NameRules()
    given = source_at(path, strategy, select, suffix)
    source = open_source(given)
    probed = (*probe(source), *rules.idle((*source.tensors, *source.texts)))
    if naming and naming.changes:
        from reshard.ops.naming import models, renamed

        source, rules = renamed(source, naming, models(given.path, naming), rules).catalog, NameRules()
    tensors = _named(source, rules)
    if source.tensors and not tensors:
        idle = rules.idle((*source.tensors, *source.texts))
        raise UsageError("\n".join(("no tensor is left to count", *idle)), hint="check --include and --exclude")
    agreed = agreements(source, (t for t in source.compared() if rules.takes(t.name, weight=t.weight)))
    varied = [name for name, tensor in tensors.items() if not agreed.get(tensor.name, True)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in varied}
    _check_whole(tensors.values(), source.lacking)
    contents = _hashed(source, tensors, given.path, observer or Observer())
    prints = tuple(
        TensorPrint(name, spec.dtype, spec.shape, number_of(name, spec, contents[name]))
        for name, spec in ((name, spec_of(name, tensor)) for name, tensor in tensors.items())
    )
    warnings = tuple(f"{name}: ranks hold different values; it is not counted" for name in varied)
    return Fingerprint(
        number_of_all(p.number for p in prints),
        number_of_all(p.number for p in prints if tensors[p.name].weight or not is_state(p.name)),
        prints,
        sum(spec_of(name, t).nbytes for name, t in tensors.items()),
        (*varied, *(rules.renamed(n) for n in (*source.texts, *source.withheld) if rules.takes(n))),
        (*source.warnings, *probed, *warnings),
    )


def _named(source: Catalog, rules: NameRules) -> dict[str, Tensor]:
    """The tensors to count by the name that counts."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in source.tensors.items():
        if rules.takes(name, weight=tensor.weight):
            renamed = rules.renamed(name)
            if renamed in tensors:
                raise UsageError(f"{tensors[renamed].name} and {name} would both be called {renamed}")
            tensors[renamed] = tensor
    return tensors


def _check_whole(tensors: Iterable[Tensor], lacking: tuple[str, ...]) -> None:
    faults = []
    for tensor in tensors:
        missing = tensor.shards.missing()
        if missing:
            ranks = sorted({rank for shard in missing for rank in shard.expected})
            whose = f"; {named_ranks(ranks)} should hold them" if ranks else ""
            faults.append(f"{tensor.name}: {counted(len(missing), 'shard')} missing{whose}")
    if faults:
        raise CheckpointError(
            "slices that no file holds:\n" + listed(faults),
            hint="; ".join(lacking[:4]) or "bring the missing ranks' files",
        )


def _hashed(source: Catalog, tensors: dict[str, Tensor], path: str, observer: Observer) -> dict[str, str]:
    """The hash of each tensor's content, each shard read once."""
    sources = Sources(files_of(source))
    scratch = Scratch()
    made = {name: Hashing() for name in tensors}

    def read(lot: list[Portion]) -> list[tuple[str, Stretch]]:
        return [(p.move.name, hashed(p, sources, scratch, observer.advance)) for p in lot]

    moves = (_move(name, tensor) for name, tensor in tensors.items())
    observer.start("reading", sum(spec_of(name, t).nbytes for name, t in tensors.items()))
    try:
        with ThreadPoolExecutor(auto_workers([path]), thread_name_prefix="reshard") as pool:
            for found in pool.map(read, lots(moves)):  # in order
                for name, stretch in found:
                    made[name].join(stretch)
        sources.check_unchanged()
    finally:
        sources.close()
        observer.end()
    return {name: hashing.end() for name, hashing in made.items()}


def _move(name: str, tensor: Tensor) -> Move:
    """The reading of a whole tensor from one holder of each shard, as one run of bytes."""
    planned = of_first_holders(name, tensor)
    whole = Piece(0, Box.whole(planned.spec.shape), (Extent(0, planned.spec.nbytes),))
    return Move(name, planned.step, planned.spec.dtype, tuple(planned.in_view(whole)))
