"""Source catalog and target → plan, with the proof that every target byte has exactly one source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import msgspec
import xxhash

from reshard.dtypes import FLOATING
from reshard.errors import PlanError, UsageError, listed
from reshard.formats.base import Format
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Cell, Layout
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.decide import Decisions, Kept, Missing, decide
from reshard.planning.lora import LoraMerge
from reshard.planning.names import NameRules, is_state
from reshard.planning.parts import EXTRAS_NAME, Parts, split_parts
from reshard.planning.plan import (
    SCHEMA,
    Factor,
    FileForm,
    LoraAdd,
    Piece,
    Plan,
    PlannedFile,
    PlannedTensor,
    Slot,
    SourceFile,
)
from reshard.planning.redundancy import keepers
from reshard.strategy.strategy import Strategy


@dataclass(frozen=True, slots=True)
class Target:
    """What to write.

    Attributes:
        strategy: None for one full checkpoint.
        prefix: files are called ``rank_r/{prefix}{r}{suffix}``.
        ranks: only these target ranks; None for all.
        single: the name of the one file of a full checkpoint, in place of ``rank_0/{prefix}0{suffix}``.
        parts: a full checkpoint in several files with an index of names.
        drop_redundancy: of equal shards one rank alone keeps its own.
        dtype: floating weights are cast to this.
    """

    strategy: Strategy | None
    format: Format
    prefix: str = "checkpoint_"
    ranks: frozenset[int] | None = None
    single: str = ""
    parts: Parts | None = None
    drop_redundancy: bool = False
    dtype: str = ""

    def __post_init__(self) -> None:
        if "/" in self.prefix or "\0" in self.prefix:
            raise UsageError(f"prefix {self.prefix!r} would leave its folder")
        if self.dtype and self.dtype not in FLOATING:
            raise UsageError(f"cannot cast to {self.dtype!r}", hint=f"one of: {', '.join(sorted(FLOATING))}")
        if self.parts and (self.strategy or self.format.name != "safetensors"):
            raise UsageError("only one full safetensors checkpoint is written in parts of a largest size")
        if self.single and (self.strategy or self.parts):
            raise UsageError(f"{self.single!r} names a file, the target is a folder of several", hint="name a folder")
        if self.drop_redundancy and self.strategy is None:
            raise UsageError(
                "one full checkpoint has no replicas to drop", hint="--drop-redundancy needs --dst-strategy"
            )
        beyond = sorted(r for r in self.ranks or () if not 0 <= r < self.world)
        if beyond:
            raise UsageError(f"rank {beyond[0]} is not among the target's {self.world} ranks")

    @property
    def world(self) -> int:
        return self.strategy.world if self.strategy else 1

    @property
    def devices(self) -> int:
        return self.strategy.devices if self.strategy else 1

    @property
    def stages(self) -> int:
        return len(self.strategy.stages) if self.strategy else 1


@dataclass(frozen=True, slots=True)
class Choices:
    """How the user wants names treated, and what was learnt of tensors that no strategy knows."""

    rules: NameRules = field(default_factory=NameRules)
    missing: Missing = "error"
    agreed: Mapping[str, bool] = field(default_factory=dict)
    lora: LoraMerge | None = None


def make_plan(source: Catalog, target: Target, choices: Choices) -> Plan:
    """Raises PlanError listing every target byte that has no agreed source."""
    decisions = decide(source, target.strategy, choices.rules, choices.missing, choices.agreed, choices.lora)
    return _Planner(source, target, decisions, choices).plan()


class _Planner:
    def __init__(self, source: Catalog, target: Target, decisions: Decisions, choices: Choices) -> None:
        self.source = source
        self.target = target
        self.decisions = decisions
        self.rules = choices.rules
        self.pairs = choices.lora.pairs if choices.lora else {}
        self.layouts: dict[Layout, int] = {}
        self.tensors: list[PlannedTensor] = []
        self.numbers: dict[tuple[str, int], int] = {}
        self.forms: dict[_FormKey, int] = {}
        self.form_list: list[FileForm] = []
        self.warnings: dict[str, None] = dict.fromkeys((*source.warnings, *decisions.warnings))
        self.notes = _notes(source, target)
        self.keepers = self._keepers() if target.drop_redundancy else {}

    def plan(self) -> Plan:
        ranks = sorted(self.target.ranks) if self.target.ranks is not None else range(self.target.world)
        self._prove_covered(ranks)
        if not self.decisions.kept:
            raise PlanError("no tensor is left to write", hint="check --include and --exclude")
        parts = self.target.parts
        files = self._parts(parts) if parts else [self._file(r) for r in ranks]
        made_of = self._made_of()
        return Plan(
            tuple(SourceFile(f.path, f.nbytes, f.mtime_ns) for f in self.source.files),
            tuple(self.layouts),
            tuple(self.tensors),
            tuple(self.form_list),
            tuple(files),
            self.decisions.left_out,
            tuple(self.warnings),
            self.target.world,
            _hash([SCHEMA, made_of]),
            made_of,
        )

    def _made_of(self) -> dict[str, str]:
        """What is read, what becomes of each name and how files are laid out; not which ranks are asked for."""
        target, kept = self.target, self.decisions.kept
        parts = (target.parts.max_nbytes, target.parts.names) if target.parts else ""
        sources = [(f.path.encode("utf-8", "surrogateescape"), f.nbytes, f.mtime_ns) for f in self.source.files]
        return {
            "sources": _hash(sources),
            "strategies": _hash([(k.name, k.tensor.layout, sorted(k.layouts.items())) for k in kept] + [target.world]),
            "tensors taken": _hash([(k.name, k.tensor.name, k.tensor.spec, k.varied) for k in kept]),
            "LoRA scaling": _hash([s for s in map(self._scaling, kept) if s]),
            "prefix": target.prefix,
            "file name": target.single,
            "format": target.format.name,
            "--crc": _hash(repr(target.format)),
            "dtype": target.dtype,
            "size of parts": str(parts),
            "dropped redundancy": str(target.drop_redundancy),
        }

    def _scaling(self, kept: Kept) -> tuple[str, str, float, bool] | None:
        pair = self.pairs.get(kept.tensor.name)
        return (pair.a.name, pair.b.name, pair.scaling, pair.transposed) if pair else None

    def _keepers(self) -> dict[tuple[int, str], frozenset[int]]:
        """For each stage and tensor of the target's strategy, the local ranks that keep it."""
        kept = {}
        for stage, entries in enumerate(self.target.strategy.stages if self.target.strategy else ()):
            shardings = {
                k.name: k.layouts[stage].sharding
                for k in self.decisions.kept
                if stage in k.layouts and k.name in entries
            }
            kept.update({(stage, name): ranks for name, ranks in keepers(shardings).items()})
        return kept

    def _prove_covered(self, ranks: Iterable[int]) -> None:
        """The cells of a layout tile its tensor, so a target box is covered once when no cell that it meets is
        missing.
        """
        locals_by_stage: dict[int, set[int]] = {}
        for rank in ranks:
            locals_by_stage.setdefault(rank // self.target.devices, set()).add(rank % self.target.devices)
        faults = []
        for pair in self.pairs.values():
            for factor in (pair.a, pair.b):
                faults += _uncovered(factor, factor.missing(), [Box.whole(factor.spec.shape)])
        for kept in self.decisions.kept:
            missing = kept.tensor.missing()
            if missing:
                boxes = {at.box(r) for stage, at in kept.layouts.items() for r in locals_by_stage.get(stage, ())}
                faults += _uncovered(kept.tensor, missing, boxes)
        if faults:
            raise PlanError(
                "slices that no file holds:\n" + listed(faults),
                hint="bring the missing ranks' files, or check that the strategy is the one of these files",
            )

    def _number(self, kept: Kept, source_rank: int) -> int:
        """The planned tensor's number; it is planned when first asked for. ``source_rank`` tells varied ones apart."""
        key = (kept.name, source_rank)
        if key not in self.numbers:
            self.numbers[key] = len(self.tensors)
            dtype = kept.tensor.spec.dtype
            casts = self.target.dtype and dtype in FLOATING and not is_state(kept.name)
            spec = TensorSpec(self.target.dtype if casts else dtype, kept.tensor.spec.shape)
            pieces = tuple(self._pieces(kept.tensor, source_rank))
            lora = self._lora(kept.tensor.name)
            self.tensors.append(PlannedTensor(kept.name, kept.tensor.name, spec, dtype, pieces, lora))
        return self.numbers[key]

    def _lora(self, name: str) -> LoraAdd | None:
        pair = self.pairs.get(name)
        if pair is None:
            return None
        a, b = (Factor(t.spec, tuple(self._pieces(t, _ANY_RANK))) for t in (pair.a, pair.b))
        return LoraAdd(a, b, pair.scaling, pair.transposed)

    def _pieces(self, tensor: Tensor, source_rank: int) -> Iterable[Piece]:
        """One holder of each cell, in row-major order; replicas take turns, so that no file is read for all."""
        for cell, held in sorted(tensor.cells.items()):
            wanted = [h for h in held if self.source.files[h.file].rank == source_rank]
            chosen = wanted[0] if wanted else held[len(self.tensors) % len(held)]
            yield Piece(chosen.file, tensor.layout.box_of(cell), chosen.stored.extents)

    def _source_rank(self, rank: int) -> int:
        """The rank from which the reference takes a value that differs from rank to rank."""
        strategy = self.source.strategy
        if strategy is None:
            return 0
        stage, local = divmod(rank, self.target.devices)
        source_stage = stage * len(strategy.stages) // self.target.stages
        return source_stage * strategy.devices + local % strategy.devices

    def _file(self, rank: int) -> PlannedFile:
        stage, local = divmod(rank, self.target.devices)
        numbered = []
        for kept in self.decisions.kept:
            layout = kept.layouts.get(stage)
            if layout is not None and self._keeps(stage, local, kept.name):
                number = self._number(kept, self._source_rank(rank) if kept.varied else _ANY_RANK)
                numbered.append((number, self.layouts.setdefault(layout, len(self.layouts))))
        path = self.target.single or f"rank_{rank}/{self.target.prefix}{rank}{self.target.format.suffix}"
        return PlannedFile(path, rank, local, self._form(tuple(numbered), self._texts(rank)), stage)

    def _keeps(self, stage: int, local: int, name: str) -> bool:
        keepers = self.keepers.get((stage, name))
        return keepers is None or local in keepers

    def _form(self, numbered: tuple[tuple[int, int], ...], texts: tuple[tuple[str, str], ...]) -> int:
        """Ranks whose shards have the same names and shapes share a form: it is laid out once for all of them."""
        key = (numbered, texts)
        if key not in self.forms:
            layouts = list(self.layouts)
            specs = {
                self.tensors[t].name: TensorSpec(self.tensors[t].spec.dtype, layouts[n].shard_shape)
                for t, n in numbered
            }
            frame = self.target.format.frame(specs, dict(texts), self.notes)
            slots = tuple(Slot(t, n, frame.holes[self.tensors[t].name]) for t, n in numbered)
            self.forms[key] = len(self.form_list)
            self.form_list.append(FileForm(frame.nbytes, frame.pieces, slots, frame.seal))
        return self.forms[key]

    def _texts(self, rank: int) -> tuple[tuple[str, str], ...]:
        """Strings go to every rank; where ranks disagree each takes its source rank's."""
        texts = []
        for name, by_rank in self.source.texts.items():
            if not self.rules.takes(name):
                continue
            if len(set(by_rank.values())) > 1:
                self.warnings[f"{name}: ranks hold different strings; each target rank takes its source rank's"] = None
            fallback = next(iter(by_rank.values()))
            texts.append((self.rules.renamed(name), by_rank.get(self._source_rank(rank), fallback)))
        return tuple(texts)

    def _parts(self, parts: Parts) -> list[PlannedFile]:
        """One full checkpoint in several files and the index that names them."""
        groups: dict[str, list[tuple[int, int]]] = {}
        numbered = {n: (n, at) for n, at in map(self._whole, self._of_strategy(extras=False, parts=parts))}
        sizes = {n: self.tensors[n].spec.nbytes for n in numbered}
        split = split_parts(sizes, parts.max_nbytes)
        for name, numbers in zip(parts.file_names(len(split)), split, strict=True):
            groups[name] = [numbered[n] for n in numbers]
        where = {self.tensors[n].name: name for name, group in groups.items() for n, _ in group}
        extras = [self._whole(kept) for kept in self._of_strategy(extras=True, parts=parts)]
        if extras:
            groups[EXTRAS_NAME] = extras
        files = []
        for i, (path, group) in enumerate(groups.items()):
            form = self._form(tuple(group), self._texts(0) if i == 0 else ())
            files.append(PlannedFile(path, 0, 0, form, i))
        index = parts.index(where, sum(sizes.values()))
        if index:
            self.form_list.append(FileForm(len(index[1]), ((0, index[1]),), ()))
            files.append(PlannedFile(index[0], 0, 0, len(self.form_list) - 1, len(groups)))
        return files

    def _of_strategy(self, *, extras: bool, parts: Parts) -> list[Kept]:
        """What goes into the parts, or what MindSpore keeps beside them: tensors that its strategy does not know."""
        apart = parts.names == "mindspore" and self.source.strategy is not None
        return [k for k in self.decisions.kept if (apart and not k.tensor.laid_out) == extras]

    def _whole(self, kept: Kept) -> tuple[int, int]:
        number = self._number(kept, 0 if kept.varied else _ANY_RANK)
        return number, self.layouts.setdefault(kept.layouts[0], len(self.layouts))


_ANY_RANK = -1
_FormKey = tuple[tuple[tuple[int, int], ...], tuple[tuple[str, str], ...]]


def _hash(content: object) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(content))


def _notes(source: Catalog, target: Target) -> dict[str, str]:
    """What a safetensors file says of itself: whether every rank's shards are all there."""
    if target.format.name != "safetensors":
        return {}
    hugging_face = target.parts is not None and target.parts.names == "hf"
    notes = {"format": source.notes.get("format", "pt" if hugging_face else "ms")}
    if target.drop_redundancy or "remove_redundancy" in source.notes:
        notes["remove_redundancy"] = str(target.drop_redundancy)
    return notes


def _uncovered(tensor: Tensor, missing: Sequence[Cell], boxes: Iterable[Box]) -> list[str]:
    """One line when a box needs a missing cell: whose it is and what share of the tensor lacks."""
    wanted = list(boxes)
    needed = [c for c in missing if any((tensor.layout.box_of(c) & box).size for box in wanted)]
    if not needed:
        return []
    ranks = sorted({r for c in needed for r in tensor.expected.get(c, ())})
    share = len(needed) / prod(tensor.layout.sharding.parts)
    box = tensor.layout.box_of(needed[0])
    shown = ", ".join(map(str, ranks[:8])) + (" …" if len(ranks) > 8 else "")
    return [
        f"{tensor.name}: {share:.0%} missing, from {list(box.start)} to {list(box.stop)} of {list(tensor.spec.shape)};"
        f" rank {shown} should hold it"
    ]
