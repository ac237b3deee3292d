"""What a user wants to be written: its kind, how names are treated, and the draft by which a kind says its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from msgspec import Struct, field

from reshard.dtypes import FLOATING
from reshard.errors import UsageError, counted
from reshard.formats.base import Framed, Phased, Phases
from reshard.index import Extent
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Layout
from reshard.planning.assembly import ANY_RANK, Assembler
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Decisions, Kept, Missing
from reshard.planning.lora_values import LoraMerge
from reshard.planning.names import NameRules
from reshard.planning.plan import FileForm, PlannedFile, Slot, SmallFile, TargetPart
from reshard.planning.shared import COPIED, LEAST_NBYTES, same_bytes
from reshard.planning.shares import Group, Share, divided
from reshard.planning.steps import Piece


class Files(Struct, frozen=True):
    """The files of a target.

    Attributes:
        planned: those of the ranks or of the share that were asked for; each holds tensors.
        total: how many the whole target has of these.
        closing: small files of known bytes, as an index is. They are written when all others are whole, by whoever
            makes the last of them, so every part of a target plans all of them.
        named_by: files beside the target's folder that hold its name, by which a program finds the last that was saved.
        modes: on a disk, of weight files, of small files and of folders; () for what the system gives.
    """

    planned: tuple[PlannedFile, ...]
    total: int
    closing: tuple[SmallFile, ...] = ()
    named_by: tuple[str, ...] = ()
    modes: tuple[int, ...] = ()


class Kind(Protocol):
    """A kind of target, as data: which files it consists of, and what each holds.

    To add one:

    1. ``families/yours.py``: a frozen Struct whose fields are what the user decides; all of them count in the
       identity. ``strategy``: a field where ranks cut tensors; ``ClassVar[None]`` where they are written whole.
    2. ``files`` asks the draft: ``cut`` numbers what a file holds of a kept tensor, ``form`` lays a file out in a
       format, which may be your own (a frozen Struct with ``frame``), another for each file: nested names, pickled
       arguments and torch records are its matter. Paths may lie in folders. ``rank_targets.ByRank`` makes a file for
       each rank; whoever plans all files gives ``draft.asked_for(files)``, so that ``--share`` works.
    3. ``closing`` may be reckoned from ``draft.forms`` and the files: each form's slots say where each tensor lies.
    4. One entry in ``families/targets.py``: the name for ``--to``, where your function lies that makes the kind of what
       was asked and of the source, and which options it takes. An option of your own is a field of ``AskedTarget``
       there, a field of ``Options`` (ops/options.py) and an entry in cli/params.py.

    Manifest, resume, shares, Ray and object storage need nothing more.
    """

    name: ClassVar[str]
    __struct_fields__: ClassVar[tuple[str, ...]]

    @property
    def strategy(self) -> Strategy | None:
        """How ranks cut tensors; None where they are written whole."""
        ...

    def files(self, draft: Draft) -> Files:
        """Raises FormatError for what a format cannot hold."""
        ...


class Target(Struct, frozen=True):
    """What to write.

    Attributes:
        dtype: floating weights are cast to this.
        ranks: only these target ranks; None for all.
        share: only the files of this share; None for all.
        shared_block_nbytes: of the file system that it goes to, where files can share blocks with the source's; else 0.
    """

    kind: Kind
    dtype: str = ""
    ranks: frozenset[int] | None = None
    share: Share | None = None
    shared_block_nbytes: int = 0

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in FLOATING:
            raise UsageError(f"cannot cast to {self.dtype!r}", hint=f"one of: {', '.join(sorted(FLOATING))}")
        beyond = sorted(r for r in self.ranks or () if not 0 <= r < self.world)
        if beyond:
            raise UsageError(
                f"rank {beyond[0]} is not among the target's {counted(self.world, 'rank')}", hint="ranks count from 0"
            )

    @property
    def strategy(self) -> Strategy | None:
        return self.kind.strategy

    @property
    def part(self) -> TargetPart:
        return "share" if self.share else "ranks" if self.ranks is not None else ""

    @property
    def world(self) -> int:
        return self.strategy.world if self.strategy else 1

    @property
    def devices(self) -> int:
        return self.strategy.devices if self.strategy else 1

    @property
    def stages(self) -> int:
        return len(self.strategy.stages) if self.strategy else 1


class Choices(Struct, frozen=True):
    """How the user wants names treated, and what was learnt of tensors that no strategy knows."""

    rules: NameRules = field(default_factory=NameRules)
    missing: Missing = "error"
    agreed: Mapping[str, bool] = {}
    lora: LoraMerge | None = None

    def __post_init__(self) -> None:
        if self.missing not in ("error", "drop"):
            raise UsageError(f"--missing {self.missing!r}", hint="one of: error, drop")


SlotNumbers = tuple[int, int]
"""The numbers of a planned tensor and of the layout that says what each rank's file holds of it."""
Texts = tuple[tuple[str, str], ...]


class Draft:
    """Source and target of a plan, what was decided, and what is planned so far."""

    def __init__(self, source: Catalog, target: Target, choices: Choices, decisions: Decisions) -> None:
        self.source = source
        self.target = target
        self.kept = decisions.kept
        self.assembler = Assembler(source, target.dtype, choices.lora)
        self.warnings: dict[str, None] = dict.fromkeys((*source.warnings, *decisions.warnings))
        self.forms: list[FileForm] = []
        self.layouts: dict[Layout, int] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._numbers: dict[tuple[tuple[SlotNumbers, ...], Texts, Framed, Texts], int] = {}
        self._texts = []
        for name, by_rank in source.texts.items():
            if choices.rules.takes(name):
                if len(set(by_rank.values())) > 1:
                    self.warnings[f"{name}: ranks hold different strings; each target rank takes its source rank's"] = (
                        None
                    )
                self._texts.append((choices.rules.renamed(name), by_rank, next(iter(by_rank.values()))))

    def source_rank(self, rank: int) -> int:
        """The rank from which the reference takes a value that differs from rank to rank."""
        ranks, target = self.source.ranks, self.target
        stage, local = divmod(rank, target.devices)
        return stage * ranks.stages // target.stages * ranks.devices + local % ranks.devices

    def texts(self, rank: int) -> Texts:
        """Strings go to every rank; where ranks disagree each takes its source rank's."""
        source_rank = self.source_rank(rank)
        return tuple((name, by_rank.get(source_rank, fallback)) for name, by_rank, fallback in self._texts)

    def notes(self, format: Framed, *, hugging_face: bool = False, drop_redundancy: bool = False) -> Texts:
        """What a safetensors file says of itself: whether every rank's shards are all there."""
        if format.name != "safetensors":
            return ()
        from_mindspore = self.source.files[0].format == "ckpt" and not hugging_face
        # MindSpore reads a file whatever it is for; loaders for PyTorch refuse one that is for MindSpore
        notes = {"format": self.source.notes.get("format", "ms" if from_mindspore else "pt")}
        if drop_redundancy or "remove_redundancy" in self.source.notes:
            notes["remove_redundancy"] = str(drop_redundancy)
        return tuple(notes.items())

    def cut(self, kept: Kept, layout: Layout, source_rank: int) -> SlotNumbers:
        """What files hold of a tensor; ``source_rank`` counts where the tensor's value varies."""
        number = self.assembler.number(kept, source_rank if kept.varied else ANY_RANK)
        cut = self.layouts.setdefault(layout, len(self.layouts))
        if cut == len(self._shapes):
            self._shapes.append(layout.shard_shape)
        return number, cut

    def form(self, cuts: tuple[SlotNumbers, ...], texts: Texts, format: Framed, notes: Texts) -> int:
        """The number of the form of files that hold these: each kind of file is laid out once, however many ranks have
        one of its kind. Raises FormatError for what the format cannot hold.
        """
        key = (cuts, texts, format, notes)
        if key not in self._numbers:
            tensors = self.assembler.tensors
            specs = {tensors[t].name: tensors[t].spec.of_shape(self._shapes[n]) for t, n in cuts}
            if self.target.shared_block_nbytes > COPIED and isinstance(format, Phased):
                frame = format.frame_in_phase(specs, dict(texts), dict(notes), self._phases(cuts))
            else:
                frame = format.frame(specs, dict(texts), dict(notes))
            slots = tuple(Slot(t, n, frame.holes[tensors[t].name]) for t, n in cuts)
            self._numbers[key] = len(self.forms)
            self.forms.append(FileForm(frame.nbytes, frame.pieces, slots, frame.checksums, dict(texts), dict(notes)))
        return self._numbers[key]

    def _phases(self, cuts: tuple[SlotNumbers, ...]) -> Phases:
        """Where in a block the first rank's shards lie in the source; where these are whole blocks, all others, too."""
        layouts, block_nbytes = list(self.layouts), self.target.shared_block_nbytes
        begins = {}
        for t, n in cuts:
            spec = self.assembler.tensors[t].spec.of_shape(self._shapes[n])
            if spec.nbytes < LEAST_NBYTES:
                continue
            tensor = self.assembler.whole(t)
            pieces = tensor.in_view(Piece(0, layouts[n].box(0), (Extent(0, spec.nbytes),)))
            runs = [run for piece in pieces for run in same_bytes(tensor.step, spec.dtype, piece)]
            if runs:
                begins[tensor.name] = max(runs, key=lambda run: run.nbytes).shift % block_nbytes
        return Phases(block_nbytes, begins)

    def asked_for(self, files: Sequence[PlannedFile]) -> tuple[PlannedFile, ...]:
        """Those of all the target's files that are to be made: of the ranks or of the share that were asked for."""
        target = self.target
        if target.ranks is not None:
            return tuple(file for file in files if file.rank in target.ranks)
        if target.share is None:
            return tuple(files)
        sizes = [self.forms[file.form].nbytes for file in files]
        mine = divided([Group((nbytes,), nbytes) for nbytes in sizes], target.share.count)[target.share.index]
        return tuple(files[group] for group, _ in mine)
