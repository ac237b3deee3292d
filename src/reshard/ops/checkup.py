"""Checkup: what is wrong with a checkpoint, where, and what to do; from names, lengths and headers alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from msgspec import Struct

from reshard.errors import InputError, ReshardError, StorageError, UsageError, counted, named_ranks, some
from reshard.families.discover import files_of
from reshard.families.family import Listing
from reshard.families.found import name_below, weights
from reshard.families.headers import index_file
from reshard.families.hf_shards import UNTOLD
from reshard.families.ours import NOT_TRUSTED
from reshard.families.part_names import wholes
from reshard.families.rank_listing import MIXED_STEPS, is_rank, step_of
from reshard.families.registry import FALLBACK, listing, listing_below, recognised
from reshard.families.strange_folders import UNFINISHED, held, tells_of_weights
from reshard.formats.registry import format_of
from reshard.names.model import read_model
from reshard.ops.inspect import opened
from reshard.ops.naming import beside_of
from reshard.planning.catalog import Catalog
from reshard.storage.storage import join
from reshard.storage.storages import content_of, storage_of
from reshard.target.filling import DONE, LOCK, is_being_filled
from reshard.target.manifest import MANIFEST, read_manifest
from reshard.target.overwrite import left_of_replacements
from reshard.target.target_paths import Place

_SHOWN = 4
_FAULTS = (MIXED_STEPS, NOT_TRUSTED)
_OF_LINK = "make what it leads to (is its disk mounted?), or remove the link"
_NO_STRATEGY = "no strategy says of how many ranks it is, and what each of them holds (reshard inspect --strategy P)"


class Fault(Struct, frozen=True):
    """What is wrong, in which file or folder, and what to do."""

    what: str
    where: str
    hint: str

    def __str__(self) -> str:
        """As an error says it."""
        return str(ReshardError(self.what, self.where, self.hint))


class Checkup(Struct, frozen=True):
    """What lies at a path.

    Attributes:
        family: in words; "" for what is no checkpoint, or could not be read.
        notes: what to know besides: it is no fault, or nobody can say.
        untold: why nobody can tell whether it is whole, where that is so.
    """

    path: str
    family: str = ""
    files: int = 0
    nbytes: int = 0
    tensors: int = 0
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()


def checkup(path: str) -> Checkup | None:
    """None where nothing lies. Values are not read."""
    try:
        return _checked(path)
    except StorageError as error:  # a folder that may not be looked into
        return Checkup(path, faults=(Fault(error.message, error.where or path, error.hint),))


def _checked(path: str) -> Checkup | None:
    begun = _begun(path)
    if begun is not None:
        return begun
    if storage_of(path).entry(path) is None:
        led = not storage_of(path).remote and Path(path).is_symlink()
        return Checkup(path, faults=(Fault("a link that leads nowhere", path, _OF_LINK),)) if led else None
    there = listing(path)
    if there.folder and not there.entries:
        return Checkup(path, notes=("it is empty",))
    try:
        found = opened(path)
    except ReshardError as error:
        return _unread(there, error)
    ranks = () if found.kind else tuple(_of_ranks(there, found))  # where nobody said how they are cut
    faults = (*_lacking(found, path), *ranks, *_of_manifest(path, found), *_of_config(path))
    told = (*_FAULTS, *found.lacking, UNTOLD)
    notes = (*(warning for warning in found.warnings if not warning.startswith(told)), *_left_over(there))
    untold = tuple(warning for warning in found.warnings if warning.startswith(UNTOLD))
    untold = untold if found.kind else (*untold, _NO_STRATEGY)
    nbytes = sum(file.nbytes for file in found.files)
    return Checkup(path, found.family, len(found.files), nbytes, len(found.tensors), faults, notes, untold)


def _begun(path: str) -> Checkup | None:
    """A target of ours that is not finished, be it a folder or one file."""
    folder = Place.of(path, single=False)
    places = (Place.of(path, single=True), folder) if format_of(path) else (folder,)
    for place in places:
        if is_being_filled(place):
            records = len(place.storage.entries(join(place.meta, DONE)))
            some_ranks = _some_ranks(place, path)
            if some_ranks and not records:
                return some_ranks
            whole = max(records, some_ranks.files if some_ranks else 0)
            fault = Fault(
                f"a conversion into it has not ended: {counted(whole, 'file')} of it whole so far",
                path,
                "give the same command again with --resume, or with --overwrite to begin anew",
            )
            return Checkup(path, faults=(fault,))
    return None


def _some_ranks(place: Place, path: str) -> Checkup | None:
    """The ranks that --ranks made: each machine may have its own, and need no others."""
    if place.storage.entry(join(place.meta, MANIFEST)) is None:
        return None
    try:
        manifest = read_manifest(place)
    except InputError:
        return None
    lengths = {join(place.folder, file.path): file.nbytes for file in manifest.files}
    faults = (_not_as_written(file, nbytes, _nbytes(file)) for file, nbytes in lengths.items())
    ranks = len({file.rank for file in manifest.files})
    return Checkup(
        path,
        f"rank folders that reshard {manifest.reshard} wrote",
        len(manifest.files),
        sum(file.nbytes for file in manifest.files),
        len({name for file in manifest.files for name in file.tensors}),
        tuple(filter(None, faults)),
        untold=(f"{ranks} of {counted(manifest.world, 'rank')} were made so far, as --ranks asked",),
    )


def _unread(there: Listing, error: ReshardError) -> Checkup:
    """What keeps it from being read, and files that would have been next."""
    if isinstance(error, UsageError):  # nothing is wrong with what has to be told apart
        return Checkup(there.path, notes=(f"{error.message}; {error.hint}",))
    of_itself = error.where == there.path  # not of a file in it, as an index
    if there.folder and of_itself and not _holds_weights(there) and not tells_of_weights(there.entries):
        return Checkup(there.path, notes=(f"no checkpoint: it holds {held(there.entries)}", error.hint))
    if _family(there) == FALLBACK and _several(there):
        names = error.message.replace(":\n", ": ").replace("\n", ", ")
        return Checkup(there.path, notes=(f"{names}; {error.hint}",))
    faults = [Fault(error.message, error.where or there.path, error.hint)]
    told = f"{error.where}\n{error.message}"
    faults += (fault for fault in _broken_files(there) if name_below(there.path, fault.where) not in told)
    return Checkup(there.path, faults=tuple(faults))


def _holds_weights(there: Listing) -> bool:
    """Whether something in it is called as a checkpoint's files are."""
    return any(not entry.folder and format_of(entry.name) for entry in there.entries) or _family(there) != FALLBACK


def _family(there: Listing) -> str:
    """Its name; "" where it may be of several."""
    try:
        return recognised(there).name
    except ReshardError:
        return ""


def _several(there: Listing) -> bool:
    """Whether full checkpoints lie beside each other, each whole by its names."""
    files = weights(there.path, there.entries)
    if any(entry.folder and is_rank(entry.name) for entry in there.entries):
        return False
    told = wholes(file.name for file in files)
    return len(told) > 1 and not any(whole.missing for whole in told)


def _broken_files(there: Listing) -> Iterator[Fault]:
    """Those whose headers are not as they should be. Torch files of a trainer's only its family understands."""
    paths = list(_weight_files(there))

    def fault(path: str) -> Fault | None:
        try:
            index_file(0, path, there.path)
        except ReshardError as error:
            return Fault(error.message, error.where or path, error.hint)
        return None

    with ThreadPoolExecutor(storage_of(there.path).at_once) as pool:
        yield from filter(None, pool.map(fault, paths))


def _weight_files(there: Listing) -> Iterator[str]:
    """Of a folder and of the rank folders in it."""
    if not there.folder:
        return
    folders = [there, *(listing_below(there, e) for e in there.entries if e.folder and is_rank(e.name))]
    plain = _family(there) in (FALLBACK, "ranks")
    for folder in folders:
        for file in weights(folder.path, folder.entries):
            if not file.entry.dangling and (plain or file.format != "torch"):
                yield file.path


def _left_over(there: Listing) -> Iterator[str]:
    """What a write or a download began: no reader takes it."""
    names = [entry.name for entry in there.entries if not entry.folder and entry.name.endswith(UNFINISHED)]
    if names:
        yield f"left over from a write or a download that did not end, and not read: {some(names)}"
    for path in () if storage_of(there.path).remote else left_of_replacements(Path(there.path)):
        yield f"beside it lies {path}, which an --overwrite left that was killed; the next conversion removes it"


def _lacking(found: Catalog, path: str) -> Iterator[Fault]:
    """Slices that no file holds, by the ranks that should; else files whose slices others hold."""
    by_ranks: dict[tuple[int, ...], list[str]] = {}
    for tensor in found.tensors.values():
        missing = tensor.shards.missing()
        if missing:
            ranks = tuple(sorted({rank for shard in missing for rank in shard.expected}))
            by_ranks.setdefault(ranks, []).append(tensor.name)
    for ranks, names in by_ranks.items():
        whose = f" of {named_ranks(ranks)}" if ranks else ""
        yield Fault(
            f"slices{whose} that no file holds, of {counted(len(names), 'tensor')} as {names[0]}",
            found.lacking[0] if found.lacking else "",
            "bring the missing files; where replicas lie elsewhere, theirs serve as well",
        )
    if found.lacking and not by_ranks:
        said = f"{'; '.join(found.lacking[:_SHOWN])}{' …' if found.lacking[_SHOWN:] else ''}"
        yield Fault(said, path, "bring what is missing; what replicas hold is taken from them, with a warning")


def _of_manifest(path: str, found: Catalog) -> Iterator[Fault]:
    """Files that are not there, or not as long, as our own manifest says; and one that is gone, or cannot be read."""
    place = Place.of(path, single=format_of(path) is not None)
    if place.storage.entry(join(place.meta, MANIFEST)) is None:
        if place.storage.entry(join(place.meta, LOCK)) is not None:
            hint = "nothing says what was written: compare it with its source, reshard verify SRC DST"
            yield Fault("reshard wrote it, and its manifest is missing", join(place.meta, MANIFEST), hint)
        return
    if not found.kind:  # it is not trusted, which was told
        return
    try:
        told = {join(place.folder, file.path): file.nbytes for file in read_manifest(place).files}
    except InputError as error:
        hint = "make the target again; or remove the manifest, and compare: reshard verify SRC DST"
        yield Fault(f"a manifest that cannot be read: {error.message}", error.where or path, hint)
        return
    lengths = {file.path: file.nbytes for file in found.files}
    for file, nbytes in told.items():
        now = lengths[file] if file in lengths else _nbytes(file)
        fault = _not_as_written(file, nbytes, now)
        if fault and not (now is None and found.lacking):  # which names it where it holds weights
            yield fault


def _not_as_written(file: str, nbytes: int, now: int | None) -> Fault | None:
    """``now``: its length, None where it is not there."""
    if now is None:
        return Fault("it was written, and is missing", file, "bring it, or make the target again")
    if now != nbytes:
        said = f"{counted(now, 'byte')}, and {nbytes:,} were written"
        return Fault(said, file, "make the target again, where nobody changed it on purpose")
    return None


def _of_config(path: str) -> Iterator[Fault]:
    """A configuration of the model beside it that cannot be read."""
    beside = beside_of(path)
    try:
        if beside:
            read_model(content_of(beside), beside)
    except InputError as error:
        yield Fault(error.message, beside, "bring it again: who loads the weights, or changes their names, reads it")


def _nbytes(path: str) -> int | None:
    entry = storage_of(path).entry(path)
    return entry.nbytes if entry else None


def _of_ranks(there: Listing, read: Catalog) -> Iterator[Fault]:
    """What rank folders say by their names, files and manifest, without a strategy."""
    for warning in read.warnings:
        if warning.startswith(NOT_TRUSTED):
            yield Fault(warning, there.path, "copy the whole folder again, or give the strategy: --src-strategy")
    found = files_of(there)
    steps: dict[tuple[int, int], list[int]] = {}
    for rank, path in found.files:
        steps.setdefault(step_of(path.rpartition("/")[2]), []).append(rank)
    if len(steps) > 1:
        shown = "; ".join(f"{epoch}_{step}: {named_ranks(at)}" for (epoch, step), at in sorted(steps.items()))
        yield Fault(
            f"{MIXED_STEPS} (epoch_step: {shown})", there.path, "--suffix EPOCH_STEP takes one step that all ranks have"
        )
    ranks = {rank for rank, _ in found.files}
    absent = sorted({*range(max(ranks) + 1), *found.empty} - ranks)
    if absent:
        yield Fault(
            f"no weight file of {named_ranks(absent)}, and of {named_ranks([max(ranks)])} there is one",
            there.path,
            "bring them; where replicas hold the same slices, a conversion goes on with a warning",
        )
