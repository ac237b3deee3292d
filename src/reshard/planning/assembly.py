"""What a target's tensors are made of: shards become pieces here and nowhere else; and the proof that none lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import FLOATING
from reshard.errors import PlanError, listed, named_ranks
from reshard.index import MADE, Extent, TensorSpec
from reshard.layout.box import Box, hull_of
from reshard.layout.view import in_view
from reshard.planning.catalog import Catalog, Held, Shard, Tensor
from reshard.planning.decide import Kept
from reshard.planning.lora_values import LoraMerge
from reshard.planning.names import is_state
from reshard.planning.plan import Plan, PlannedTensor
from reshard.planning.steps import Assembly, Joint, LoraAdd, MadeTensor, Piece, Product, Rows, Scaled, Step
from reshard.planning.tasks import hulls, needed, only_needed, places_of

ANY_RANK = -1
_SHOWN = 4


def assembled(tensor: Tensor) -> Assembly:
    """A tensor of the first holder of each shard; without those that no file holds."""
    return _of_pieces(tensor, [held[0].piece(box) for box, held in tensor.shards.held()])


def _of_pieces(tensor: Tensor, pieces: Iterable[Piece]) -> Assembly:
    return Assembly(tensor.spec.dtype, tensor.view or tensor.spec.shape, tuple(pieces))


def every_copy(tensor: Tensor) -> tuple[Piece, ...]:
    """A piece for each shard and each that holds it."""
    return tuple(one.piece(box) for box, held in tensor.shards.held() for one in held)


def spec_of(name: str, tensor: Tensor, dtype: str = "") -> TensorSpec:
    """What a target that calls it ``name`` gets, where floating weights are cast to ``dtype``."""
    own = tensor.wanted_dtype
    made = dtype if dtype and own in FLOATING and (tensor.weight or not is_state(name)) else own
    return tensor.spec if made == tensor.spec.dtype else TensorSpec(made, tensor.spec.shape)


def of_first_holders(name: str, tensor: Tensor, dtype: str = "") -> PlannedTensor:
    """A tensor made of the first holder of each shard, whatever else is read."""
    step: Step = assembled(tensor)
    if tensor.scales is not None:
        step = Scaled(assembled(tensor), assembled(tensor.scales.of), tensor.scales.block)
    return PlannedTensor(name, spec_of(name, tensor, dtype), step)


class Drafted(Struct, frozen=True):
    """A tensor that is numbered, and not assembled yet. ``source_rank`` says whose value counts, of one that varies."""

    name: str
    spec: TensorSpec
    tensor: Tensor
    source_rank: int

    def in_view(self, box: Box) -> list[Box]:
        """Where a box of it lies as its shards lie."""
        shape, view = self.tensor.spec.shape, self.tensor.view
        return [seen for _, seen in in_view(box, shape, view)] if view else [box]

    def planned(self, step: Step) -> PlannedTensor:
        other_name = self.tensor.name if self.tensor.name != self.name else None
        return PlannedTensor(self.name, self.spec, step, other_name)


class Assembler:
    """Tensors to plan; assembled when it is known what is needed of them. Of replicas the one is read whose file is
    read least.
    """

    def __init__(self, source: Catalog, dtype: str, lora: LoraMerge | None) -> None:
        self.tensors: list[Drafted] = []
        self._whole: dict[int, PlannedTensor] = {}
        self._source = source
        self._dtype = dtype
        self._lora = lora or LoraMerge({}, {}, {}, {})
        self._parts: dict[int, MadeTensor] = {}
        self._numbers: dict[tuple[str, int], int] = {}
        self._lacking: dict[int, tuple[Tensor, tuple[Shard, ...]]] = {}
        self._read: Counter[int] = Counter()

    def number(self, kept: Kept, source_rank: int = ANY_RANK) -> int:
        """The planned tensor's number. ``source_rank`` says whose value counts, of one that varies."""
        key = (kept.name, source_rank)
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            tensor = kept.tensor
            spec = spec_of(kept.name, tensor, self._dtype)
            if missing := tensor.shards.missing():
                self._lacking[self._numbers[key]] = (tensor, missing)
            self.tensors.append(Drafted(kept.name, spec, tensor, source_rank))
        return self._numbers[key]

    def whole(self, number: int) -> PlannedTensor:
        """All of a tensor, for whoever must know how it is made before the files are told."""
        if number not in self._whole:
            self._whole[number] = self.tensors[number].planned(self._step(self.tensors[number]))
        return self._whole[number]

    def fill(self, plan: Plan) -> Plan:
        """The plan with its tensors; that of a part of a target carries nothing of what its files do not need."""
        if not plan.part:
            return replace(plan, tensors=tuple(map(self.whole, range(len(self.tensors)))))
        part, numbers = only_needed(plan)
        wanted = hulls(part)
        return replace(part, tensors=tuple(self._part(old, wanted[new]) for new, old in enumerate(numbers)))

    def _part(self, number: int, box: Box) -> PlannedTensor:
        drafted = self.tensors[number]
        within = hull_of(drafted.in_view(box))
        step = self._whole[number].step if number in self._whole else self._step(drafted, within)
        return drafted.planned(needed(step, within))

    def _step(self, drafted: Drafted, within: Box | None = None) -> Step:
        tensor, added = drafted.tensor, self._lora.sums.get(drafted.tensor.name)
        if added is not None and added.magnitude:
            within = None  # its length is that of whole rows
        base = self._base(tensor, drafted.source_rank, within)
        if not self._lora.made:
            return self._changed(tensor.name, base)
        return self._joint(base) if isinstance(base, Assembly) else base

    def _joint(self, of: Assembly) -> Step:
        """As put together of what a merge makes, too; that itself where it is all of it."""
        files = sorted({piece.file for piece in of.pieces if piece.file <= MADE}, reverse=True)
        if not files:
            return of
        numbers = {file: MADE - n for n, file in enumerate(files)}
        pieces = tuple(replace(piece, file=numbers.get(piece.file, piece.file)) for piece in of.pieces)
        parts = tuple(_of_use(self._made(MADE - file), of, file) for file in files)
        spec = parts[0].spec
        whole = Piece(MADE, Box.whole(of.shape), (Extent(0, spec.nbytes),))
        if pieces == (whole,) and of.shape == spec.shape == parts[0].step.base.shape:
            return parts[0].step
        return Joint(replace(of, pieces=pieces), parts)

    def _made(self, number: int) -> MadeTensor:
        if number not in self._parts:
            each = self._lora.made[number]
            tensor = self._lora.tensors[each.name]
            step = self._changed(each.name, self._base(tensor, ANY_RANK))
            self._parts[number] = MadeTensor(each.name, TensorSpec(each.dtype, tensor.spec.shape), step)
        return self._parts[number]

    def _base(self, tensor: Tensor, source_rank: int, within: Box | None = None) -> Assembly | Scaled:
        of = self._assembled(tensor, source_rank, within)
        if tensor.scales is None:
            return of
        return Scaled(of, self._assembled(tensor.scales.of, ANY_RANK), tensor.scales.block)

    def _changed(self, name: str, base: Assembly | Scaled) -> Assembly | LoraAdd | Rows | Scaled:
        """With what a merge adds to it or puts into it."""
        if (new := self._lora.rows.get(name)) is not None:
            return Rows(base.base, self._assembled(new.rows, ANY_RANK), new.at)
        if (added := self._lora.sums.get(name)) is None:
            return base
        products = tuple(
            Product(tuple(self._assembled(factor, ANY_RANK) for factor in term.factors), term.scaling, term.form)
            for term in added.terms
        )
        magnitude = self._assembled(added.magnitude, ANY_RANK) if added.magnitude else None
        plain = magnitude is None and all(product.form in ("out_in", "in_out") for product in products)
        return LoraAdd(base, products, magnitude, self._lora.allow_nan, self._lora.inside and plain)

    def _assembled(self, tensor: Tensor, source_rank: int, within: Box | None = None) -> Assembly:
        """Without shards that no file holds, or that are not ``within`` a box."""
        itemsize, pieces = tensor.spec.itemsize, []
        for box, held in tensor.shards.held(within):
            chosen = held[0] if len(held) == 1 else self._chosen(held, source_rank)
            self._read[chosen.file] += box.size * itemsize
            pieces.append(chosen.piece(box))
        return _of_pieces(tensor, pieces)

    def _chosen(self, held: Sequence[Held], source_rank: int) -> Held:
        least_read = min(held, key=lambda h: self._read[h.file])
        if source_rank == ANY_RANK:
            return least_read
        return next((h for h in held if self._source.rank_of(h) == source_rank), least_read)

    def prove_covered(self, plan: Plan) -> None:
        """Shards tile their tensor: a box of it is covered once where no shard that it meets is missing.

        Raises PlanError listing what every planned file lacks.
        """
        faults: list[str] = []
        lora = self._lora
        beside = [tensor for added in lora.sums.values() for tensor in added.tensors]
        made = (lora.tensors[each.name] for each in lora.made)
        for tensor in (*beside, *(new.rows for new in lora.rows.values()), *made):
            faults += _uncovered(tensor, tensor.shards.missing(), [Box.whole(tensor.spec.shape)])
        wanted = _boxes(plan, self._lacking) if self._lacking else {}
        for number, (tensor, missing) in self._lacking.items():
            boxes = [seen for box in wanted.get(number, ()) for seen in self.tensors[number].in_view(box)]
            if (added := lora.sums.get(tensor.name)) is not None and added.magnitude:
                boxes = [Box.whole(tensor.spec.shape)]  # its length is that of whole rows
            faults += _uncovered(tensor, missing, boxes)
        if faults:
            raise PlanError(
                "slices that no file holds:\n" + listed(faults),
                hint="; ".join(self._source.lacking[:_SHOWN])
                or "bring the missing ranks' files"
                + (", or check that the strategy is the one of these files" if self._source.by_strategy else ""),
            )


def _of_use(part: MadeTensor, of: Assembly, file: int) -> MadeTensor:
    """What is made, with those pieces of its base alone that it needs for its place in ``of``: experts are many."""
    shape = part.spec.shape
    if not shape or part.step.base.shape != shape:
        return part
    extents = [extent for piece in of.pieces if piece.file == file for extent in piece.extents]
    row = max(part.spec.nbytes // max(shape[0], 1), 1)
    first, last = min(e.offset for e in extents) // row, -(-max(e.end for e in extents) // row)
    step = needed(part.step, Box((first, *(0 for _ in shape[1:])), (last, *shape[1:])))
    assert not isinstance(step, Joint)
    return replace(part, step=step)


def _boxes(plan: Plan, tensors: Iterable[int]) -> dict[int, set[Box]]:
    """What the planned files hold of some tensors."""
    places, held = places_of(plan, plan.files)
    return {
        number: {plan.layouts[layout].box(rank) for layout, ranks in places[held[number]] for rank in ranks}
        for number in tensors
        if number in held
    }


def _uncovered(tensor: Tensor, missing: Sequence[Shard], boxes: Iterable[Box]) -> Iterator[str]:
    """One line when a box needs a missing shard: whose it is and what share of the tensor lacks."""
    wanted = list(boxes)
    lacking = [shard for shard in missing if any(shard.box.meets(box) for box in wanted)]
    if lacking:
        ranks = sorted({rank for shard in lacking for rank in shard.expected})
        share = sum(shard.box.size for shard in lacking) / Box.whole(tensor.spec.shape).size
        box = lacking[0].box
        whose = f"; {named_ranks(ranks)} should hold it" if ranks else ""
        yield (
            f"{tensor.name}: {share:.0%} missing, from {list(box.start)} to {list(box.stop)}"
            f" of {list(tensor.view or tensor.spec.shape)}{whose}"
        )
