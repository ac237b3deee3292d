"""A checkpoint, and a plan with what became of it, → the values of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import prod

from msgspec.structs import replace

from reshard._version import __version__
from reshard.index import TensorSpec
from reshard.planning.bill import Bill
from reshard.planning.catalog import Catalog
from reshard.planning.identity import KIND_OF_TARGET
from reshard.planning.names import is_state
from reshard.planning.plan import Plan, PlannedTensor
from reshard.planning.steps import Joint, LoraAdd
from reshard.report.fold import folded_names, pattern_of, readable
from reshard.report.movement import movement, read_of_files
from reshard.report.origins import Origins
from reshard.report.placements import Numbered, SourcePlacements, TargetPlacements
from reshard.report.values import Fate, File, Print, Report, Side, TensorKind, ToldConversion, ToldRun, Unlisted

MAX_ROWS = 20_000
"""Tensors that differ in more than their numbers, of which a page tells at most."""
MAX_CELLS = 1_000_000
"""Parts of tensors in files, of which a page tells at most."""

_ListedTensor = tuple[str, str, TensorSpec, Callable[[], TensorKind]]
"""Its name, its name in the source, what it is whole, and what makes its kind."""


def checkpoint_report(source: Catalog, path: str, prints: tuple[Print, ...] = ()) -> Report:
    """What a checkpoint holds. ``path`` is what the user named."""
    places = SourcePlacements(source)

    def tensors() -> Iterator[_ListedTensor]:
        for tensor in source.tensors.values():
            spec, number = tensor.spec, partial(places.number, tensor)
            made = partial(_kind, spec, spec.dtype, number, state=is_state(tensor.name))
            yield tensor.name, tensor.name, spec, made

    kinds, unlisted = _listed(tensors(), (places,))
    return Report(
        f"reshard {__version__}",
        _source(source, path, places, [0] * len(source.files)),
        kinds,
        {readable(name): readable(next(iter(by_rank.values()))) for name, by_rank in source.texts.items()},
        tuple(map(readable, source.warnings)),
        prints=prints,
        unlisted=unlisted,
    )


def plan_report(
    source: Catalog, plan: Plan, paths: tuple[str, str], bill: Bill, runs: tuple[ToldRun, ...] = ()
) -> Report:
    """What a conversion does and did. ``paths``: source and target as the user named them."""
    from_places, to_places, origins = SourcePlacements(source), TargetPlacements(plan), Origins(source)

    def tensors() -> Iterator[_ListedTensor]:
        for tensor, varied in _by_name(plan):
            number = partial(from_places.number, source.tensors[tensor.source_name])
            numbers = partial(to_places.numbers, tensor.name)
            steps = [part.step for part in tensor.step.parts] if isinstance(tensor.step, Joint) else [tensor.step]
            merged = any(isinstance(step, LoraAdd) for step in steps)
            known = {"merged": merged, "varied": varied, "state": is_state(tensor.name)}
            made = partial(_kind, tensor.spec, tensor.step.base.dtype, number, numbers, **known)
            yield tensor.name, tensor.source_name, tensor.spec, partial(_with_origins, made, origins, tensor)

    kinds, unlisted = _listed(tensors(), (from_places, to_places))
    report = checkpoint_report(replace(source, tensors={}), paths[0])
    read = read_of_files(source, plan, bill.block_nbytes, link_replicas=bill.linked_files > 0)
    left = ((out, folded_names((n, n) for n in out.names)[:MAX_ROWS]) for out in plan.left_out)
    fates = (Fate(out.fate, out.reason, len(out.names), names) for out, names in left)
    conversion = ToldConversion(
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
        kinds=kinds,
        unlisted=unlisted,
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


def _kind(
    spec: TensorSpec,
    source_dtype: str,
    number: Callable[[], int],
    numbers: Callable[[], tuple[int, ...]] = tuple,
    *,
    merged: bool = False,
    varied: bool = False,
    state: bool = False,
) -> TensorKind:
    kept = number(), numbers(), merged, varied
    return TensorKind(spec.dtype, spec.shape, spec.nbytes, source_dtype, *kept, names=(), state=state)


def _with_origins(made: Callable[[], TensorKind], origins: Origins, tensor: PlannedTensor) -> TensorKind:
    return replace(made(), origins=origins.of(tensor))


def _listed(tensors: Iterable[_ListedTensor], places: Sequence[Numbered]) -> tuple[tuple[TensorKind, ...], Unlisted]:
    """Tensors by their kinds, as far as a browser can show them, and how much there is beyond."""
    kinds: dict[TensorKind, list[tuple[str, str]]] = {}
    rows: set[tuple[TensorKind, str]] = set()
    beyond = Unlisted()
    for name, source_name, spec, made in tensors:
        if len(rows) < MAX_ROWS and sum(place.cells for place in places) < MAX_CELLS:
            kind = made()
            rows.add((kind, pattern_of(name)[0]))
            kinds.setdefault(kind, []).append((name, source_name))
        else:
            beyond = Unlisted(beyond.tensors + 1, beyond.elements + prod(spec.shape))
    return tuple(replace(kind, names=folded_names(names)) for kind, names in kinds.items()), beyond


def _source(source: Catalog, path: str, places: SourcePlacements, read: list[int]) -> Side:
    paths = _below(path, [f.path for f in source.files])
    files = (File(p, f.rank, f.nbytes, n) for p, f, n in zip(paths, source.files, read, strict=True))
    ranks, family = source.ranks, readable(source.family)
    return Side(readable(path), tuple(files), tuple(places.all), ranks.stages, ranks.devices, family)


def _target(plan: Plan, path: str, places: TargetPlacements) -> Side:
    moved = [sum(e.nbytes for slot in form.slots for e in slot.extents) for form in plan.forms]
    files = (File(readable(f.path), f.rank, plan.forms[f.form].nbytes, moved[f.form]) for f in plan.files)
    devices = plan.layouts[0].sharding.devices
    family = plan.made_of.get(KIND_OF_TARGET, "")
    return Side(readable(path), tuple(files), tuple(places.all), plan.world // devices, devices, family)


def _below(path: str, files: list[str]) -> list[str]:
    """File paths as they are below the path that was named."""
    folder = path.rstrip("/") + "/"
    return [readable(f.removeprefix(folder)) for f in files]
