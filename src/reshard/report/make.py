"""A checkpoint, and a plan with what became of it, → the values of a report."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from reshard._version import __version__
from reshard.planning.bill import Bill
from reshard.planning.catalog import Catalog
from reshard.planning.plan import LoraAdd, Plan, PlannedTensor
from reshard.report.fold import folded_names, readable
from reshard.report.movement import movement, read_of_files
from reshard.report.placements import SourcePlacements, TargetPlacements
from reshard.report.values import Conversion, Fate, File, Kind, Print, Report, Run, Side

_Names = list[tuple[str, str]]


def checkpoint_report(source: Catalog, path: str, prints: tuple[Print, ...] = ()) -> Report:
    """What a checkpoint holds. ``path`` is what the user named."""
    places = SourcePlacements(source)
    kinds: dict[Kind, _Names] = {}
    for tensor in source.tensors.values():
        spec = tensor.spec
        kind = Kind(spec.dtype, spec.shape, spec.nbytes, spec.dtype, places.number(tensor), (), False, False, ())
        kinds.setdefault(kind, []).append((tensor.name, tensor.name))
    return Report(
        f"reshard {__version__}",
        _source(source, path, places, [0] * len(source.files)),
        _with_names(kinds),
        {readable(name): readable(next(iter(by_rank.values()))) for name, by_rank in source.texts.items()},
        tuple(map(readable, source.warnings)),
        prints=prints,
    )


def plan_report(source: Catalog, plan: Plan, paths: tuple[str, str], bill: Bill, runs: tuple[Run, ...] = ()) -> Report:
    """What a conversion does and did. ``paths``: source and target as the user named them."""
    from_places, to_places = SourcePlacements(source), TargetPlacements(plan)
    kinds: dict[Kind, _Names] = {}
    for tensor, varied in _by_name(plan):
        kind = Kind(
            tensor.spec.dtype,
            tensor.spec.shape,
            tensor.spec.nbytes,
            tensor.step.base.dtype,
            from_places.number(source.tensors[tensor.source_name]),
            to_places.numbers(tensor.name),
            isinstance(tensor.step, LoraAdd),
            varied,
            (),
        )
        kinds.setdefault(kind, []).append((tensor.name, tensor.source_name))
    report = checkpoint_report(replace(source, tensors={}), paths[0])
    read = read_of_files(source, plan, bill.block_nbytes, link_replicas=bill.linked_files > 0)
    fates = (Fate(o.fate, o.reason, len(o.names), folded_names((n, n) for n in o.names)) for o in plan.left_out)
    conversion = Conversion(
        _target(plan, paths[1], to_places),
        movement(source, plan),
        bill,
        tuple(fates),
        plan.identity,
        {part: readable(value) for part, value in plan.made_of.items()},
    )
    return replace(
        report,
        source=_source(source, paths[0], from_places, read),
        kinds=_with_names(kinds),
        warnings=tuple(map(readable, plan.warnings)),
        conversions=(conversion,),
        runs=runs,
    )


def _by_name(plan: Plan) -> Iterable[tuple[PlannedTensor, bool]]:
    """Each tensor once, and whether target ranks take different values of it."""
    counts: dict[str, int] = {}
    for tensor in plan.tensors:
        counts[tensor.name] = counts.get(tensor.name, 0) + 1
    return ((t, counts[t.name] > 1) for t in {t.name: t for t in plan.tensors}.values())


def _with_names(kinds: dict[Kind, _Names]) -> tuple[Kind, ...]:
    return tuple(replace(kind, names=folded_names(names)) for kind, names in kinds.items())


def _source(source: Catalog, path: str, places: SourcePlacements, read: list[int]) -> Side:
    paths = _below(path, [f.path for f in source.files])
    files = (File(p, f.rank, f.nbytes, n) for p, f, n in zip(paths, source.files, read, strict=True))
    return Side(readable(path), tuple(files), tuple(places.all), source.ranks.stages, source.ranks.devices)


def _target(plan: Plan, path: str, places: TargetPlacements) -> Side:
    moved = [sum(e.nbytes for slot in form.slots for e in slot.extents) for form in plan.forms]
    files = (File(readable(f.path), f.rank, plan.forms[f.form].nbytes, moved[f.form]) for f in plan.files)
    devices = plan.layouts[0].sharding.devices
    return Side(readable(path), tuple(files), tuple(places.all), plan.world // devices, devices)


def _below(path: str, files: list[str]) -> list[str]:
    """File paths as they are below the path that was named."""
    folder = path.rstrip("/") + "/"
    return [readable(f.removeprefix(folder)) for f in files]
