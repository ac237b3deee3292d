"""Convert: one checkpoint into the files of another layout, format or number of ranks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from reshard.dtypes import ALIASES
from reshard.errors import CheckpointError, DifferenceError, UsageError, listed
from reshard.families.open_checkpoint import open_source
from reshard.families.part_names import lone_parts
from reshard.families.planner import planned
from reshard.families.rank_listing import lone_rank_of
from reshard.families.strategies import read_strategy
from reshard.families.targets import kind_asked
from reshard.formats.registry import format_of, suffixes
from reshard.interruption import clears_up
from reshard.names.wishes import Naming
from reshard.ops.budget import Budget, budget_of
from reshard.ops.crc import check_crcs
from reshard.ops.engine import most_files
from reshard.ops.fill import fill, fill_on_nodes, joins
from reshard.ops.observer import Observer
from reshard.ops.options import Means, Options
from reshard.ops.strange_files import lost_with
from reshard.planning.bill import Bill, make_bill
from reshard.planning.catalog import Catalog
from reshard.planning.lora_values import LoraMerge
from reshard.planning.misfits import Misfits, by_tensor
from reshard.planning.names import NameRules
from reshard.planning.plan import Plan, SmallFile
from reshard.planning.shared import COPIED
from reshard.planning.target import Choices, Kind, Target
from reshard.storage.clones import block_shared_by
from reshard.storage.machine import set_aside
from reshard.storage.storage import join
from reshard.storage.storages import storage_of
from reshard.target.overwrite import Replacement
from reshard.target.preflight import refuse_occupied, refuse_replacing, refuse_within
from reshard.target.target_paths import Place

_OTHERS_FILES = (
    ".npz", ".npy", ".gguf", ".ggml", ".onnx", ".h5", ".hdf5", ".pkl", ".pickle", ".msgpack", ".safetensor",
    ".json", ".yaml", ".yml", ".zip", ".tar", ".gz", ".tgz", ".zst",
)  # fmt: skip


class Conversion(Struct, frozen=True):
    """What a conversion did.

    Attributes:
        skipped_files: were whole already when it began.
        missing_files: of the target, that others still have to make.
        misfits: values of the target, as far as it is made, that a cast or a sum could not keep, by tensor.
        shared_nbytes: of what was written, what the files share with the source's.
    """

    target: str
    bill: Bill
    written_nbytes: int
    read_nbytes: int
    skipped_files: int
    seconds: float
    verified_nbytes: int = 0
    missing_files: int = 0
    warnings: tuple[str, ...] = ()
    misfits: tuple[Misfits, ...] = ()
    shared_nbytes: int = 0


def plan(src: str | Path, dst: str | Path | None, options: Options | None = None) -> Plan:
    """Make the plan of a conversion; nothing is written. Raises InputError for a source that cannot become this
    target, UsageError for a target that would lie in its source.

    Args:
        dst: None for a target that has no place yet; it is planned for this folder's disk.
    """
    options = options or Options()
    source, options = opened(src, options)
    refuse_lone_rank(source, "" if dst is None else str(dst), options)
    return plan_from(source, None if dst is None else str(dst), options)


def refuse_lone_rank(source: Catalog, dst: str, options: Options) -> None:
    """Raises CheckpointError for what one rank of several holds, taken for the whole; not where the target is named as
    that rank's, or ``--from full`` says that it is all.
    """
    place, alone = lone_rank_of(source)
    folder, _, rank = place.rpartition("/")
    named = "/".join(dst.rstrip("/").split("/")[-2:])
    if alone and not options.family and not re.search(rf"(?<![a-z\d]){rank}(?!\d)", named):
        raise CheckpointError(
            f"what {alone}, holds may be slices of the tensors",
            place,
            f"give {folder or '.'}, with --src-strategy where ranks hold slices, or --from full where each holds all; "
            f"to convert this rank alone, name the target as it (…/{rank}/…)",
        )


def opened(src: str | Path, options: Options) -> tuple[Catalog, Options]:
    """The source under the names that the target gets, and the options that are left to do."""
    source = open_source(options.source(src))
    return named(source, str(src), replace(options, naming=options.naming_of(source)))


def named(
    source: Catalog, src: str, options: Options, said: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Catalog, Options]:
    """As ``opened``, of a source that is open already, by ``options.naming`` as it is.

    Args:
        said: what the source's configuration would have to say by now.
    """
    naming = options.naming
    if not naming.changes:
        return source, options
    from reshard.ops.naming import models, renamed

    idle = options.names.idle((*source.tensors, *source.texts))
    strategy = read_strategy(options.dst_strategy) if options.dst_strategy else None
    told = replace(source, warnings=(*source.warnings, *idle))
    made = renamed(told, naming, models(src, naming, said), options.names, strategy)
    along: tuple[SmallFile, ...] = ()
    if naming.files:
        from reshard.ops.model_files import along as found_along

        along = found_along(made, naming, ALIASES.get(options.dtype, options.dtype))
    return replace(made.catalog, own=None), replace(options, names=NameRules(), naming=Naming(), along=along)


def plan_from(
    source: Catalog, dst: str | None, options: Options, lora: LoraMerge | None = None, kind: Kind | None = None
) -> Plan:
    """As ``plan``, of a source that is open already; ``lora`` is what is added on the way, ``kind`` that of the target
    where the caller decides it.
    """
    if options.check_replicas:
        _refuse_replicas(source)
    crcs = check_crcs(source) if options.crc else ()
    source = replace(source, warnings=(*source.warnings, *crcs))
    if source.own is not None:
        source = replace(source, own=source.own.renamed(options.names.renamed))
    place = Place.of("." if dst is None else dst, single=dst is not None and names_file(dst))
    kind = kind or kind_asked(options.asked(Path(place.path).name if place.single else ""), source)
    dtype, block_nbytes = ALIASES.get(options.dtype, options.dtype), _wanted_block(source, place, options)
    target = Target(kind, dtype, options.ranks, options.share, block_nbytes)
    made = planned(source, target, Choices(options.names, options.missing, lora=lora))
    if dst is not None and not made.named_by:  # which has its place beside the saves that it is made of
        refuse_within(place, source.places)
    return made


def _wanted_block(source: Catalog, place: Place, options: Options) -> int:
    """As ``shared_block``; 0 where nothing shall be shared. Raises UsageError where it must be, and cannot."""
    if options.reflink == "never" or options.nodes_local:
        return 0
    block_nbytes = shared_block(source, place)
    if options.reflink == "always" and block_nbytes <= COPIED:
        raise UsageError(
            f"--reflink always, and no file there can share blocks with {_largest(source)}",
            place.folder,
            "both must lie on one file system that has clones, as XFS and Btrfs; --reflink auto copies otherwise",
        )
    return block_nbytes


def shared_block(source: Catalog, place: Place) -> int:
    """As ``block_shared_by``, of the largest file of a source."""
    largest = _largest(source)
    near = place.local and not storage_of(largest).remote
    return block_shared_by(largest, place.folder) if near else 0


def _largest(source: Catalog) -> str:
    return max(source.files, key=lambda file: file.nbytes).path


def convert(
    src: str | Path, dst: str | Path, options: Options | None = None, observer: Observer | None = None
) -> Conversion:
    """Convert a checkpoint. The target appears file by file, each whole, its manifest last.

    Raises:
        UsageError: the target is not empty and neither ``resume`` nor ``overwrite`` is set.
        InputError: the source cannot become this target; nothing was written.
        StorageError, RunError: what went wrong meanwhile; no file under its final name is partial.
    """
    options = options or Options()
    return execute(plan(src, dst, options), dst, options, observer or Observer())


@clears_up()
@set_aside()
def execute(plan: Plan, dst: str | Path, means: Means, observer: Observer) -> Conversion:
    """Carry out a plan."""
    began = time.monotonic()
    if lone := lone_parts((source.path for source in plan.sources), str(dst)):
        raise CheckpointError(
            "parts that are not a whole checkpoint:\n" + listed(lone),
            hint="give their folder or its index; to convert a part alone, name the target as that part, too",
        )
    place = Place.of(dst, single=names_file(dst))
    replacement: Replacement | None = None
    gone: tuple[str, ...] = ()
    if not means.nodes_local and place.occupied() and (means.overwrite or not joins(plan, means)):
        if not means.overwrite:
            refuse_occupied(place)
        refuse_replacing(place, plan, means.read_besides)
        if not place.single:
            replacement = Replacement(place)
            place = replacement.place
    try:
        budget = budget_of(plan, str(dst), means)
        bill = _bill(plan, means, budget)
        if means.nodes_local:
            done = fill_on_nodes(plan, place, means, observer)
        else:
            done = fill(plan, place, means, replace(budget, shared_nbytes=bill.shared_nbytes), observer)
        if replacement:
            gone = lost_with(dst)
            replacement.swap()
    except BaseException:
        if replacement:
            replacement.abandon()
        raise
    finally:
        if replacement:
            replacement.close()
    _name_beside(plan if not done.missing_files else None, dst, means)
    misfits = by_tensor(done.misfits)
    return Conversion(
        str(dst),
        bill,
        done.written_nbytes,
        done.read_nbytes,
        len(plan.files) - done.made_files,
        time.monotonic() - began,
        done.verified_nbytes,
        done.missing_files,
        (*_warnings(done.hard_links, misfits), *gone),
        misfits,
        done.shared_nbytes,
    )


def _name_beside(whole: Plan | None, dst: str | Path, means: Means) -> None:
    """Say in the files beside a target that is whole, by which a program finds it, what it is called."""
    place = Place.of(dst, single=False)
    path = str(Path(place.path).absolute()) if place.local else place.path
    folder, _, name = path.rpartition("/")
    for beside in whole.named_by if whole else ():
        place.storage.write_whole(join(folder, beside), name.encode(), fsync=means.fsync)


def _warnings(hard_links: int, misfits: tuple[Misfits, ...]) -> Iterator[str]:
    if hard_links:
        yield f"hard links of equal files: {hard_links}; chmod or a change in place of one reaches all of them"
    if misfits:
        yield "values out of range, or no numbers:\n" + listed([str(found) for found in misfits])


def names_file(dst: str | Path) -> bool:
    """Whether a target is one weight file rather than a folder, by its name and by what is there. Raises UsageError for
    the name of a weight file of a kind that is not written, for one that a manifest cannot hold, and for a link that
    leads nowhere: who put it there wants neither it replaced nor something made where nobody looks.
    """
    if os.path.islink(dst) and not os.path.exists(dst):
        raise UsageError("a link that leads nowhere", str(dst), "remove the link, or make what it leads to")
    others = str(dst).lower().endswith((*_OTHERS_FILES, *suffixes())) and format_of(str(dst)) is None
    if others and not Path(dst).is_dir():
        raise UsageError(
            f"{str(dst)!r} is named as a file that we do not write", hint=f"end it in {' or '.join(sorted(suffixes()))}"
        )
    single = format_of(str(dst)) is not None and not Path(dst).is_dir()
    if single and str(dst) != str(dst).encode("utf-8", "ignore").decode():
        raise UsageError(f"{str(dst)!r} is not Unicode", hint="file names of a target are UTF-8")
    return single


def bill_of(plan: Plan, dst: str | Path, means: Means) -> Bill:
    """What executing the plan by these means will read, write and need."""
    return _bill(plan, means, budget_of(plan, str(dst), means))


def _bill(plan: Plan, means: Means, budget: Budget) -> Bill:
    return make_bill(
        plan,
        budget.workers,
        budget.block_nbytes,
        link_replicas=means.link_replicas,
        max_files=most_files(plan, means, budget),
        others_nbytes=budget.others_nbytes,
        checksum=means.checksum,
        front_to_back=budget.upload_nbytes > 0,
    )


def _refuse_replicas(source: Catalog) -> None:
    from reshard.families.replicas import replica_faults  # with NumPy, which planning does without

    faults = replica_faults(source)
    if not faults:
        return
    told = "replicas differ:\n" + listed(faults)
    if source.by_strategy:
        raise DifferenceError(told, hint="is this the right strategy? a rank that trained apart is broken")
    raise CheckpointError(told, hint="the checkpoint itself says that they are replicas: a rank trained apart")
