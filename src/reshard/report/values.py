"""What a report says, as plain values: these are the JSON inside the page.

Tensors of equal dtype, shape and place are one ``TensorKind``; equal places are one ``Placement``. So a report grows
with what differs in a model, not with its layers.
"""

from __future__ import annotations

from msgspec import Struct

from reshard.planning.bill import Bill

SCHEMA = 1


class Placement(Struct, frozen=True):
    """Which files hold which part of a tensor.

    Attributes:
        parts: into how many each dim is cut, optimizer shard included.
        opt_parts: into how many of these the optimizer shard cuts each part of dim 0; 1 for none.
        files: ascending numbers of files, as ``0-7,12``.
        cells: for each of these files, in that order, the part that it holds; parts count in row-major order.
        missing: parts that no file holds.
        absent_ranks: ranks that should hold a part and do not.
    """

    parts: tuple[int, ...]
    opt_parts: int
    files: str
    cells: tuple[int, ...]
    missing: tuple[int, ...] = ()
    absent_ranks: str = ""


class FoldedNames(Struct, frozen=True):
    """Names that differ in their numbers only.

    Attributes:
        pattern: the name with ``#`` for each number; the name itself where ``numbers`` is empty.
        numbers: which there are: alternatives separated by ``|``, in each a set for every ``#``, as ``0-7.0-63``.
        source: the pattern of the names in the source where these are others, else empty.
    """

    pattern: str
    numbers: str
    count: int
    source: str = ""


class Origin(Struct, frozen=True, array_like=True):
    """Rows from ``start`` to ``stop``, which are those of a stored tensor from its row ``first`` on; rows are what lies
    together in the last dim. ``rank``: whose file holds them. ``name`` has a ``#`` for a number of the tensor's own.
    """

    start: int
    stop: int
    name: str
    first: int
    rank: int


class TensorKind(Struct, frozen=True):
    """Tensors that are alike.

    Attributes:
        dtype, nbytes: of the target where there is one; ``nbytes`` of one full tensor.
        source_dtype: what the source holds.
        source: number of a placement of the source.
        targets: numbers of placements of the target, one for each way in which its stages cut the tensor.
        merged: LoRA weights are added to it.
        varied: ranks hold different values; each target rank takes its own source rank's.
        origins: of what is put together of others, whose rows it has.
        state: whether it is of the optimizer.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    source_dtype: str
    source: int
    targets: tuple[int, ...]
    merged: bool
    varied: bool
    names: tuple[FoldedNames, ...]
    origins: tuple[Origin, ...] = ()
    state: bool = False


class File(Struct, frozen=True):
    """``moved``: bytes of tensors read from a source file, or written to a target file."""

    path: str
    rank: int
    nbytes: int
    moved: int = 0


class Side(Struct, frozen=True):
    """The source or the target.

    Attributes:
        path: as the user named it; file paths are relative to it.
        devices: ranks of a stage.
        family: what kind of checkpoint it is, in words; of a target as ``--to`` calls it.
    """

    path: str
    files: tuple[File, ...]
    placements: tuple[Placement, ...]
    stages: int
    devices: int
    family: str = ""


class Movement(Struct, frozen=True):
    """Bytes of target tensors by where they come from: a row for each source rank, a column for each target rank.

    Where there are many, each row stands for ``source_step`` ranks and each column for ``target_step``.
    """

    source_ranks: int
    target_ranks: int
    source_step: int
    target_step: int
    nbytes: tuple[tuple[int, ...], ...]


class Fate(Struct, frozen=True):
    """Names that do not reach the target: ``dropped``, the source holds them; ``absent``, a strategy names them."""

    fate: str
    reason: str
    count: int
    names: tuple[FoldedNames, ...]


class ToldConversion(Struct, frozen=True):
    """What a conversion will do: everything in a report of a plan that one of a checkpoint lacks."""

    target: Side
    movement: Movement
    bill: Bill
    fates: tuple[Fate, ...]
    identity: str
    made_of: dict[str, str]


class Phase(Struct, frozen=True):
    """A stretch of work: for each worker the bytes of each slice of ``slice_s`` seconds, counted from ``start_s``."""

    what: str
    start_s: float
    stop_s: float
    slice_s: float
    workers: tuple[tuple[int, ...], ...]


class ToldRun(Struct, frozen=True):
    """What was done."""

    seconds: float
    read_nbytes: int
    written_nbytes: int
    skipped_files: int
    verified_nbytes: int
    checksum: bool
    phases: tuple[Phase, ...]
    shared_nbytes: int = 0


class Print(Struct, frozen=True):
    """The fingerprint of the source, where it was computed."""

    number: str
    weights: str


class Unlisted(Struct, frozen=True):
    """Tensors beyond those that a page can show one by one."""

    tensors: int = 0
    elements: int = 0


class Report(Struct, frozen=True):
    """``conversions`` holds one for a plan and none for a checkpoint; ``runs`` one when it was carried out."""

    made_by: str
    source: Side
    kinds: tuple[TensorKind, ...]
    texts: dict[str, str]
    warnings: tuple[str, ...]
    conversions: tuple[ToldConversion, ...] = ()
    runs: tuple[ToldRun, ...] = ()
    prints: tuple[Print, ...] = ()
    unlisted: Unlisted = Unlisted()
    schema: int = SCHEMA
