"""Source catalog and target → plan, with the proof that every target byte has exactly one source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod

from reshard.dtypes import FLOATING
from reshard.errors import PlanError, listed
from reshard.index import TensorSpec
from reshard.layout.box import Box
from reshard.layout.tensor import Cell, Layout, Sharding
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.decide import Decisions, Kept, decide
from reshard.planning.identity import identity_of, parts_of_identity
from reshard.planning.names import is_state
from reshard.planning.parts import EXTRAS_NAME, Parts, split_parts
from reshard.planning.plan import (
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
from reshard.planning.shares import Group, Share, divided
from reshard.planning.target import Choices, Target


def make_plan(source: Catalog, target: Target, choices: Choices) -> Plan:
    """Raises PlanError listing every target byte that has no agreed source."""
    decisions = decide(source, target.strategy, choices.rules, choices.missing, choices.agreed, choices.lora)
    return _Planner(source, target, decisions, choices).plan()


class _Planner:
    def __init__(self, source: Catalog, target: Target, decisions: Decisions, choices: Choices) -> None:
        self.source = source
        self.target = target
        self.decisions = decisions
        self.choices = choices
        self.rules = choices.rules
        self.pairs = choices.lora.pairs if choices.lora else {}
        self.layouts: dict[Layout, int] = {}
        self.tensors: list[PlannedTensor] = []
        self.numbers: dict[tuple[str, int], int] = {}
        self.forms: dict[_FormKey, int] = {}
        self.form_list: list[FileForm] = []
        self.warnings: dict[str, None] = dict.fromkeys((*source.warnings, *decisions.warnings))
        self.notes = _notes(source, target)
        self.kept_in: dict[int, list[Kept]] = {}
        for kept in decisions.kept:
            for stage in kept.layouts:
                self.kept_in.setdefault(stage, []).append(kept)
        self.varied = frozenset(stage for kept in decisions.kept if kept.varied for stage in kept.layouts)
        self.texts = self._all_texts()
        self.forms_of_ranks: dict[tuple[object, ...], int] = {}
        self.keepers = self._keepers() if target.drop_redundancy else {}
        self.read_nbytes: Counter[int] = Counter()

    def plan(self) -> Plan:
        ranks = self._ranks()
        self._prove_covered(ranks)
        if not self.decisions.kept:
            idle = self.choices.rules.idle((*self.source.tensors, *self.source.texts))
            raise PlanError("\n".join(("no tensor is left to write", *idle)), hint="check --include and --exclude")
        parts = self.target.parts
        files = self._parts(parts) if parts else [self._file(r) for r in ranks]
        total = len(files) if parts else self.target.world
        if parts and self.target.share:
            files = self._of_share(files, self.target.share)
        made_of = parts_of_identity(self.source, self.target, self.choices)
        return Plan(
            tuple(SourceFile(f.path, f.nbytes, f.mtime_ns) for f in self.source.files),
            tuple(self.layouts),
            tuple(self.tensors),
            tuple(self.form_list),
            tuple(files),
            self.decisions.left_out,
            tuple(self.warnings),
            self.target.world,
            total,
            identity_of(made_of),
            made_of,
        )

    def _ranks(self) -> Sequence[int]:
        """The target ranks to make."""
        target = self.target
        if target.ranks is not None:
            return sorted(target.ranks)
        if target.share is None or target.parts:
            return range(target.world)
        stages = [self._group(stage) for stage in range(target.stages)]
        mine = divided([group for _, group in stages], target.share.count)[target.share.index]
        return sorted(stage * target.devices + stages[stage][0][place] for stage, place in mine)

    def _group(self, stage: int) -> tuple[list[int], Group]:
        """The ranks of a stage, those next to each other that hold the same of most of its bytes; what they write
        and read, from the sizes of shards.
        """
        alike = Counter(
            (kept.layouts[stage], kept.tensor.spec.nbytes, self.keepers.get((stage, kept.name)))
            for kept in self.kept_in.get(stage, ())
        )
        everywhere = 0
        written = [0] * self.target.devices
        weights: Counter[Sharding] = Counter()
        for (layout, full_nbytes, keeping), count in alike.items():
            nbytes = count * full_nbytes // prod(layout.sharding.parts)
            weights[layout.sharding] += nbytes
            everywhere += nbytes if keeping is None else 0
            for rank in keeping or ():
                written[rank] += nbytes
        read = sum(full_nbytes * count for (_, full_nbytes, _), count in alike.items())
        ranks = list(range(self.target.devices))
        if weights:
            cells = weights.most_common(1)[0][0].cells()
            ranks.sort(key=lambda rank: (cells[rank], rank))
        return ranks, Group(tuple(everywhere + written[rank] for rank in ranks), read)

    def _of_share(self, files: list[PlannedFile], share: Share) -> list[PlannedFile]:
        """Parts hold different tensors: each is a group of its own."""
        sizes = [self.form_list[file.form].nbytes for file in files]
        mine = divided([Group((nbytes,), nbytes) for nbytes in sizes], share.count)[share.index]
        return [files[group] for group, _ in mine]

    def _keepers(self) -> dict[tuple[int, str], frozenset[int]]:
        """For each stage and tensor of the target's strategy, the local ranks that keep it."""
        kept = {}
        for stage, entries in enumerate(self.target.strategy.stages if self.target.strategy else ()):
            shardings = {k.name: k.layouts[stage].sharding for k in self.kept_in.get(stage, ()) if k.name in entries}
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
        """One holder of each cell, in row-major order; of replicas the one whose file is read least so far."""
        boxes = tensor.layout.boxes()
        for cell, held in sorted(tensor.cells.items()):
            chosen = held[0] if len(held) == 1 else min(held, key=lambda h: self.read_nbytes[h.file])
            if source_rank != _ANY_RANK:
                chosen = next((h for h in held if self.source.files[h.file].rank == source_rank), chosen)
            self.read_nbytes[chosen.file] += chosen.stored.spec.nbytes
            yield Piece(chosen.file, boxes[cell], chosen.stored.extents)

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
        path = self.target.single or f"rank_{rank}/{self.target.prefix}{rank}{self.target.format.suffix}"
        return PlannedFile(rank, path, rank, local, self._form_of_rank(stage, local), stage)

    def _form_of_rank(self, stage: int, local: int) -> int:
        """Thousands of ranks have the form of their stage: it is looked for among names only where they may differ."""
        rank = stage * self.target.devices + local
        texts = self._texts(rank)
        source_rank = self._source_rank(rank) if stage in self.varied else _ANY_RANK
        key = (stage, local if self.keepers else _ANY_RANK, source_rank, texts)
        if key not in self.forms_of_ranks:
            numbered = tuple(
                (
                    self._number(kept, source_rank if kept.varied else _ANY_RANK),
                    self.layouts.setdefault(kept.layouts[stage], len(self.layouts)),
                )
                for kept in self.kept_in.get(stage, ())
                if self._keeps(stage, local, kept.name)
            )
            self.forms_of_ranks[key] = self._form(numbered, texts)
        return self.forms_of_ranks[key]

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
            self.form_list.append(FileForm(frame.nbytes, frame.pieces, slots, frame.seal, dict(texts), self.notes))
        return self.forms[key]

    def _texts(self, rank: int) -> tuple[tuple[str, str], ...]:
        """Strings go to every rank; where ranks disagree each takes its source rank's."""
        source_rank = self._source_rank(rank)
        return tuple((name, by_rank.get(source_rank, fallback)) for name, by_rank, fallback in self.texts)

    def _all_texts(self) -> tuple[tuple[str, Mapping[int, str], str], ...]:
        """Each string's name, its values by rank, and the first of them."""
        texts = []
        for name, by_rank in self.source.texts.items():
            if self.rules.takes(name):
                if len(set(by_rank.values())) > 1:
                    told = f"{name}: ranks hold different strings; each target rank takes its source rank's"
                    self.warnings[told] = None
                texts.append((self.rules.renamed(name), by_rank, next(iter(by_rank.values()))))
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
            files.append(PlannedFile(i, path, 0, 0, form, i))
        index = parts.index(where, sum(sizes.values()))
        if index:
            self.form_list.append(FileForm(len(index[1]), ((0, index[1]),), ()))
            files.append(PlannedFile(len(groups), index[0], 0, 0, len(self.form_list) - 1, len(groups)))
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


def _notes(source: Catalog, target: Target) -> dict[str, str]:
    """What a safetensors file says of itself: whether every rank's shards are all there."""
    if target.format.name != "safetensors":
        return {}
    hugging_face = target.parts is not None and target.parts.names == "hf"
    from_mindspore = source.files[0].format == "ckpt" and not hugging_face
    # MindSpore reads a file whatever it is for; loaders for PyTorch refuse one that is for MindSpore
    notes = {"format": source.notes.get("format", "ms" if from_mindspore else "pt")}
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
