"""A folder that holds no checkpoint of ours: what it holds instead, and what to do."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from reshard.errors import CheckpointError, StorageError, counted, listed
from reshard.families.found import WeightFile
from reshard.families.registry import FALLBACK, FAMILIES, FamilyEntry
from reshard.formats.registry import format_of, suffixes
from reshard.storage.storage import Entry, join
from reshard.storage.storages import storage_of

UNFINISHED = (".incomplete", ".aria2", ".crdownload", ".part", ".partial", ".download", ".!qB", ".tmp")
_NOT_YET = "not read yet by this release"
_GOES_WITH_WEIGHTS = re.compile(
    r"latest|latest_universal|latest_checkpointed_iteration\.txt|(adapter_|generation_)?config\.json|\.reshard"
)
_STRATEGY = re.compile(r".*strategy.*\.(ckpt|json)", re.IGNORECASE)
_KINDS = 6
_SHOWN = 4
_LOOKED_AT = 32


_HINTS = (
    ((".gguf", ".ggml"), "GGUF is not read: take the model's safetensors"),
    ((".zip", ".tar", ".gz", ".tgz", ".zst", ".7z", ".xz", ".bz2"), "unpack the archive, and give what was in it"),
    ((".npz", ".npy", ".h5", ".hdf5", ".onnx", ".msgpack", ".pdparams"), "save the weights as safetensors first"),
    (UNFINISHED, "a download is not finished: go on with it"),
)


def refuse_slices(path: str, entries: Sequence[Entry], files: Sequence[WeightFile]) -> None:
    """Raises CheckpointError for families whose slices would be taken for full weights."""
    # trainers lay full files beside what only they read
    slices = files and all(f.format == "torch" and not f.name.startswith("pytorch_model") for f in files)
    family = _not_read(entries)
    if family is not None and (slices or family.safetensors):
        raise _refusal(path, family)


def refuse_strategies(path: str, entries: Iterable[Entry]) -> None:
    """Raises CheckpointError where nothing else lies that could be weights: MindSpore gives them the same ending."""
    files = [e.name for e in entries if not e.folder and e.name.endswith((*suffixes(), ".json"))]
    if files and all(map(_STRATEGY.fullmatch, files)):
        raise CheckpointError(
            f"strategy files ({files[0]}{' …' if files[1:] else ''}), no weights: they say how a job cuts these",
            path,
            f"see them: reshard strategy show {shlex.quote(path)}; use them: --src-strategy or --dst-strategy",
        )


def tells_of_weights(entries: Iterable[Entry]) -> str:
    """The name of something that goes with weights, or is the beginning of them; "" where nothing does."""
    entries = list(entries)
    named = (e.name for e in entries if _GOES_WITH_WEIGHTS.fullmatch(e.name))
    return next(named, next(iter(unfinished(entries)), ""))


def no_weights(path: str, entries: Sequence[Entry]) -> CheckpointError:
    """What to say of a folder in which nothing is ours."""
    cache = _hub_cache(path, entries)
    if cache is not None:
        return cache
    family = _not_read(entries)
    if family is not None:
        return _refusal(path, family)
    endings = " or ".join(sorted(suffixes()))
    below = checkpoints_below(path, entries)
    hint = f"give one of what lies below: {' or '.join(below[:_SHOWN])}" if below else _hint(entries)
    told = tells_of_weights(entries)
    if told and told not in unfinished(entries):
        said = f"{told} is there, and the weights that it goes with ({endings}) are not: it holds {held(entries)}"
        return CheckpointError(said, path, f"bring them; or {hint}")
    return CheckpointError(f"no weight files ({endings}) and no rank_x folders: it holds {held(entries)}", path, hint)


def checkpoints_below(path: str, entries: Iterable[Entry]) -> list[str]:
    """Folders in it, or in these, that look like checkpoints; of very many the first alone are looked at."""
    found = []
    for place, inside in _folders(path, entries):
        if _is_like_one(inside):
            found.append(place)
        else:
            found += [deeper for deeper, held_there in _folders(place, inside) if _is_like_one(held_there)]
    return found


def _folders(path: str, entries: Iterable[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    names = [entry.name for entry in entries if entry.folder and entry.name[0] != "."]
    for name in names[:_LOOKED_AT]:
        with suppress(StorageError):  # one that may not be looked into, as lost+found
            yield join(path, name), storage_of(path).entries(join(path, name))


def _is_like_one(entries: Iterable[Entry]) -> bool:
    marks = [family.marks for family in FAMILIES if family.name != FALLBACK]
    return any(
        any(re.fullmatch(mark, entry.name) for mark in marks) or (not entry.folder and format_of(entry.name))
        for entry in entries
    )


def refuse_unfinished(path: str, entries: Iterable[Entry], wanted: Iterable[str]) -> None:
    """A file beside which its download's notes lie has holes, whatever its size. Raises CheckpointError."""
    there = {e.name for e in entries}
    faults = [join(path, name) for name in sorted(wanted) if f"{name}.aria2" in there]
    if faults:
        raise CheckpointError(
            "downloads that are not finished (an .aria2 lies beside):\n" + listed(faults),
            path,
            "go on with the download",
        )


def unfinished(entries: Iterable[Entry]) -> list[str]:
    """Weight files of which only the beginning of a download is there, by the names under which it lies."""
    names = {e.name for e in entries if not e.folder}
    found = []
    for name in sorted(names):
        whole = next((name[: -len(end)] for end in UNFINISHED if name.endswith(end)), "")
        if whole and format_of(whole) is not None and whole not in names:
            found.append(name)
    return found


def _not_read(entries: Iterable[Entry]) -> FamilyEntry | None:
    """The family that names tell, of those that are not read."""
    names = [entry.name for entry in entries]
    unread = (family for family in FAMILIES if not family.place)
    return next((family for family in unread if any(re.fullmatch(family.marks, name) for name in names)), None)


def _refusal(path: str, family: FamilyEntry) -> CheckpointError:
    return CheckpointError(f"{family.told}: {_NOT_YET}", path, family.hint)


def _hub_cache(path: str, entries: Sequence[Entry]) -> CheckpointError | None:
    """The folders of a Hugging Face cache, whose files lie two or three levels below."""
    folders = [e.name for e in entries if e.folder]
    if "snapshots" in folders and {"refs", "blobs"} & set(folders):
        revisions = [join(path, "snapshots", e.name) for e in storage_of(path).entries(join(path, "snapshots"))]
        hint = "give one of its revisions: " + (" or ".join(revisions[:4]) or "snapshots/<revision>")
        return CheckpointError("the cache of a model from a hub; its files are in snapshots/<revision>", path, hint)
    models = [name for name in folders if name.startswith("models--")]
    if models:
        below = join(path, models[0], "snapshots", "<revision>")
        held = counted(len(models), "model")
        return CheckpointError(f"a cache of {held} from a hub", path, f"give a revision of one, as {below}")
    return None


def held(entries: Iterable[Entry]) -> str:
    """So many files of each ending, the most first."""
    kinds: Counter[str] = Counter()
    for entry in entries:
        kinds["folder" if entry.folder else _ending(entry.name)] += 1
    shown = [counted(n, kind) if kind == "folder" else f"{n:,} {kind}" for kind, n in kinds.most_common(_KINDS)]
    more = len(kinds) - len(shown)
    return (", ".join(shown) or "nothing") + (f" and {counted(more, 'other kind')}" if more > 0 else "")


def _ending(name: str) -> str:
    dot = name.rfind(".")
    return name[dot:] if dot > 0 else "without an ending"


def _hint(entries: Sequence[Entry]) -> str:
    endings = {_ending(e.name) for e in entries if not e.folder}
    for known, hint in _HINTS:
        if endings & set(known):
            return hint
    return "give a weight file, a folder of them, or the folder that holds rank_0, rank_1, …"
