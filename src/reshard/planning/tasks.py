"""A plan → read groups: files that the same source blocks feed, so that each block is read once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal

from msgspec.structs import replace

from reshard.index import ZEROS
from reshard.layout.box import Box, hull_of
from reshard.layout.cover import Shelf
from reshard.layout.tensor import Cell
from reshard.planning import neighbours
from reshard.planning.neighbours import Spot, Targeted
from reshard.planning.plan import FileForm, Plan, PlannedFile, PlannedTensor, Task, TaskFile
from reshard.planning.steps import Assembly, Joint, LoraAdd, Piece, Rows, Scaled, Step

MAX_FILES = 128
"""Files of one task: all are open at once."""

_MANY_PIECES = 64

Together = Literal["", "in any order", "front to back"]
"""Whether small tensors are moved together, and in which order files take their bytes."""

Twins = tuple[PlannedFile, ...]
"""Files of the same content, one of them or more."""

Places = tuple[tuple[int, tuple[int, ...]], ...]
"""Layouts, by number, with the local ranks of files that hold a tensor so."""


def tasks(
    plan: Plan,
    *,
    link_replicas: bool = False,
    max_files: int = MAX_FILES,
    largest_first: bool = False,
    together: Together = "",
) -> Iterator[Task]:
    """The tasks of a plan, each made when asked for. Every file of the plan is in exactly one.

    With ``link_replicas`` files of equal content are written once, the others named as its twins. With ``together``
    small tensors that lie alike make one move; else each tensor is a move of its name.
    """
    made = groups(plan, link_replicas=link_replicas, max_files=max_files)
    if largest_first:
        made.sort(key=lambda group: -sum(plan.forms[same[0].form].nbytes for same in group))
    near = Near()
    for number, files in enumerate(made):
        yield _task(plan, number, files, near, together=together)


def groups(plan: Plan, *, link_replicas: bool = False, max_files: int = MAX_FILES) -> list[list[Twins]]:
    """The plan's groups, cut to ``max_files``; each file with its twins."""
    grouped: dict[int, list[Twins]] = {}
    for same in _twins(plan, link_replicas=link_replicas):
        grouped.setdefault(same[0].group, []).append(same)
    made: list[list[Twins]] = []
    for files in grouped.values():
        if len(files) > max_files:
            files.sort(key=_by_heaviest_cell(plan, files[0][0]))
        made += [files[i : i + max_files] for i in range(0, len(files), max_files)]
    return made


def _by_heaviest_cell(plan: Plan, file: PlannedFile) -> Callable[[Twins], tuple[Cell, int]]:
    """An order that puts files next to each other that hold the same of most of their bytes, or neighbours of it: they
    are best read for together.
    """
    nbytes: Counter[int] = Counter()
    for slot in plan.forms[file.form].slots:
        nbytes[slot.layout] += sum(extent.nbytes for extent in slot.extents)
    heaviest = [plan.layouts[layout].sharding.cells() for layout, _ in nbytes.most_common(1)]
    return lambda same: (heaviest[0][same[0].local_rank] if heaviest else (), same[0].number)


def _twins(plan: Plan, *, link_replicas: bool) -> Iterable[Twins]:
    """Files of equal bytes are of one form and hold the same cell of every layout in it."""
    if not link_replicas:
        return [(file,) for file in plan.files]
    layouts = [tuple(dict.fromkeys(slot.layout for slot in form.slots)) for form in plan.forms]
    by_content: dict[tuple[int, ...], list[PlannedFile]] = {}
    for file in plan.files:
        cells = (plan.layouts[n].sharding.cells()[file.local_rank] for n in layouts[file.form])
        by_content.setdefault((file.form, *chain.from_iterable(cells)), []).append(file)
    return map(tuple, by_content.values())


def _task(plan: Plan, number: int, twins: list[Twins], near: Near, *, together: Together) -> Task:
    files = [same[0] for same in twins]
    targets = [_of_needed_pieces(each, near) for each in _targets(plan, files)]
    used: dict[int, int] = {}

    def renumbered(assembly: Assembly) -> Assembly:
        """Its files counted as the task counts them."""
        return replace(assembly, pieces=tuple(map(counted, assembly.pieces)))

    def counted(piece: Piece) -> Piece:
        return piece if piece.file <= ZEROS else replace(piece, file=used.setdefault(piece.file, len(used)))

    if together:
        targets.sort(key=lambda each: each.place)
        found = neighbours.moves(
            targets, front_to_back=together == "front to back", shared=plan.shared_block_nbytes > 0
        )
    else:
        found = map(neighbours.move_of, targets)
    moves = [replace(m, step=with_pieces(needed(m.step, hull_of(t.box for t in m.targets)), renumbered)) for m in found]
    made = tuple(_task_file(plan, *same) for same in twins)
    return Task(number, tuple(plan.sources[i] for i in used), made, tuple(moves))


def _targets(plan: Plan, files: Sequence[PlannedFile]) -> list[Targeted]:
    """Of each tensor what the files hold of it. Those of one form hold all at the same places."""
    by_form: dict[int, list[int]] = {}
    for number, file in enumerate(files):
        by_form.setdefault(file.form, []).append(number)
    targets: dict[int, Targeted] = {}
    kinds = plan.alike.kinds
    for form, numbers in by_form.items():
        ranks = [files[number].local_rank for number in numbers]
        boxes: dict[int, list[tuple[int, Box]]] = {}
        for slot in plan.forms[form].slots:
            if slot.layout not in boxes:
                cut = plan.layouts[slot.layout].box
                boxes[slot.layout] = list(zip(numbers, map(cut, ranks), strict=True))
            tensor = plan.tensors[slot.tensor]
            spots: tuple[Spot, ...] = (Spot(boxes[slot.layout], slot.extents),)
            if tensor.spec.shape != tensor.step.base.shape:
                spots = _in_view(spots[0], tensor)
            cuts: tuple[int, ...] = (form, slot.layout)
            if (of := targets.get(slot.tensor)) is not None:
                spots, cuts = (*of.spots, *spots), (*of.cut, *cuts)
            targets[slot.tensor] = Targeted(tensor, kinds[slot.tensor], spots, cuts)
    return list(targets.values())


def _of_needed_pieces(each: Targeted, near: Near) -> Targeted:
    """Without the pieces that are not needed, where there are many."""
    if len(each.tensor.step.base.pieces) < _MANY_PIECES:
        return each
    step = near.needed(each.kind, each.tensor.step, hull_of(piece.box for piece in each.pieces))
    return replace(each, tensor=replace(each.tensor, step=step))


def _in_view(spot: Spot, tensor: PlannedTensor) -> tuple[Spot, ...]:
    """A spot in the view in which the tensor is put together: one, as of a tensor without a view, unless the cut parts
    what the view joins.
    """
    found = [(file, tensor.in_view(Piece(file, box, spot.extents))) for file, box in spot.boxes]
    if all(len(pieces) == 1 for _, pieces in found):
        return (Spot([(file, pieces[0].box) for file, pieces in found], spot.extents),)
    return tuple([Spot(((file, piece.box),), piece.extents) for file, pieces in found for piece in pieces])


def with_pieces(step: Step, change: Callable[[Assembly], Assembly]) -> Step:
    """The same step of changed assemblies."""
    match step:
        case Assembly():
            return change(step)
        case LoraAdd():
            products = tuple(replace(p, factors=tuple(map(change, p.factors))) for p in step.products)
            magnitude = change(step.magnitude) if step.magnitude else None
            of = step.weight
            weight = change(of) if isinstance(of, Assembly) else _scaled_with(of, change)
            return replace(step, weight=weight, products=products, magnitude=magnitude)
        case Rows():
            return replace(step, of=change(step.of), rows=change(step.rows))
        case Scaled():
            return _scaled_with(step, change)
        case Joint():
            parts = tuple(replace(part, step=with_pieces(part.step, change)) for part in step.parts)
            return replace(step, of=change(step.of), parts=parts)


def _scaled_with(step: Scaled, change: Callable[[Assembly], Assembly]) -> Scaled:
    return replace(step, of=change(step.of), scale=change(step.scale))


def _task_file(plan: Plan, file: PlannedFile, *twins: PlannedFile) -> TaskFile:
    form = plan.forms[file.form]
    return TaskFile(file.path, form.nbytes, form.header, form.checksums, tuple(t.path for t in twins))


def needed(step: Step, hull: Box) -> Step:
    """The step with those pieces of its base alone that meet the hull of what is made; as it is where the lengths of
    whole rows count.
    """
    return _with_base(step, step.base.pieces, hull)


def _with_base(step: Step, near: Iterable[Piece], hull: Box) -> Step:
    """As ``needed``, where all that meet the hull are ``near``."""
    base = step.base
    pieces = tuple([piece for piece in near if piece.box.meets(hull) or piece.box == hull])
    if len(pieces) == len(base.pieces) or (isinstance(step, LoraAdd) and step.magnitude):
        return step
    part = replace(base, pieces=pieces)
    return with_pieces(step, lambda assembly: part if assembly is base else assembly)


class Near:
    """Finds what is needed of tensors for one part after the other: of each kind all pieces are looked at but once."""

    def __init__(self) -> None:
        self._shelves: dict[int, Shelf] = {}

    def needed(self, kind: int, step: Step, hull: Box) -> Step:
        """As ``needed``, of a tensor of this kind: those of one kind have pieces of the same boxes."""
        pieces = step.base.pieces
        if not hull.size:
            return needed(step, hull)
        if kind not in self._shelves:
            self._shelves[kind] = Shelf([piece.box for piece in pieces])
        return _with_base(step, [pieces[number] for number in sorted(self._shelves[kind].near(hull))], hull)


def only_needed(plan: Plan) -> tuple[Plan, tuple[int, ...]]:
    """The plan of a part of a target, without forms that none of its files has; and the tensors that these hold, by
    their former numbers, which are counted anew.
    """
    forms = {form: new for new, form in enumerate(dict.fromkeys(file.form for file in plan.files))}
    tensors = tuple(sorted({slot.tensor for form in forms for slot in plan.forms[form].slots}))
    numbers = {old: new for new, old in enumerate(tensors)}

    def of_part(form: FileForm) -> FileForm:
        return replace(form, slots=tuple(replace(slot, tensor=numbers[slot.tensor]) for slot in form.slots))

    files = tuple(replace(file, form=forms[file.form]) for file in plan.files)
    return replace(plan, forms=tuple(of_part(plan.forms[form]) for form in forms), files=files), tensors


def places_of(plan: Plan, files: Iterable[PlannedFile]) -> tuple[list[Places], dict[int, int]]:
    """How files hold their tensors; and of each of these, by number, which of that it is. Layers repeat."""
    ranks: dict[int, list[int]] = {}
    for file in files:
        ranks.setdefault(file.form, []).append(file.local_rank)
    places: list[Places] = [()]
    numbers: dict[tuple[int, int, int], int] = {}
    held: dict[int, int] = {}
    for form, local_ranks in ranks.items():
        together = tuple(local_ranks)
        for slot in plan.forms[form].slots:
            key = (held.get(slot.tensor, 0), form, slot.layout)
            if key not in numbers:
                numbers[key] = len(places)
                places.append((*places[key[0]], (slot.layout, together)))
            held[slot.tensor] = numbers[key]
    return places, held


def hulls(plan: Plan) -> dict[int, Box]:
    """Of each tensor, by number, the hull of what the plan's files hold of it."""
    places, held = places_of(plan, plan.files)
    boxes = {
        number: hull_of(plan.layouts[layout].box(rank) for layout, ranks in places[number] for rank in ranks)
        for number in set(held.values())
    }
    return {tensor: boxes[number] for tensor, number in held.items()}
