"""The manifest of a target: every file, every tensor's place in it, and an xxh3-128 of every byte."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import xxhash

from reshard import __version__
from reshard.errors import CheckpointError, InputError, ReshardError, RunError
from reshard.index import Extent
from reshard.planning.plan import FileResult, Plan, Run, check_runs
from reshard.run.place import Place
from reshard.run.storage import DiskFile, reported

MANIFEST = "manifest.json"
SCHEMA = 1
_BLOCK_NBYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """What a file holds of a tensor of ``full_shape``: ``shape`` elements from ``start``."""

    dtype: str
    full_shape: tuple[int, ...]
    start: tuple[int, ...]
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class ManifestFile:
    path: str
    rank: int
    nbytes: int
    runs: tuple[Run, ...]
    tensors: dict[str, Shard]


@dataclass(frozen=True, slots=True)
class Manifest:
    """``complete`` is False where only some ranks were asked for; ``made_of`` says what ``plan`` stands for."""

    plan: str
    world: int
    complete: bool
    files: tuple[ManifestFile, ...]
    made_of: dict[str, str] = field(default_factory=dict)
    reshard: str = __version__
    schema: int = SCHEMA

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)


def make_manifest(plan: Plan, results: dict[str, FileResult]) -> Manifest:
    files = []
    for file in plan.files:
        result = results[file.path]
        shards = {}
        for slot in plan.forms[file.form].slots:
            tensor, box = plan.tensors[slot.tensor], plan.box(file, slot)
            shards[tensor.name] = Shard(tensor.spec.dtype, tensor.spec.shape, box.start, box.shape, slot.extents)
        files.append(ManifestFile(file.path, file.rank, result.nbytes, result.runs, shards))
    return Manifest(plan.identity, plan.world, _complete(files, plan.world), tuple(files), plan.made_of)


def joined(manifest: Manifest, earlier: Manifest) -> Manifest:
    """The manifest of both, for runs of one plan that made different ranks."""
    new = {f.path for f in manifest.files}
    files = (*(f for f in earlier.files if f.path not in new), *manifest.files)
    return replace(manifest, files=files, complete=_complete(files, manifest.world))


def _complete(files: Iterable[ManifestFile], world: int) -> bool:
    return {f.rank for f in files} == set(range(world))


def read_manifest(place: Place) -> Manifest:
    """Raises CheckpointError where there is none, InputError for one that we cannot read."""
    path = place.meta / MANIFEST
    if not path.exists():
        raise CheckpointError(
            "no manifest: not made by reshard, or not finished",
            str(place.path),
            "compare with the source instead: reshard verify SRC DST",
        )
    with reported(path):
        data = path.read_bytes()
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ReshardError) as error:
        raise InputError(f"not a manifest: {error}", str(path)) from None
    if manifest.schema != SCHEMA:
        raise InputError(f"manifest of schema {manifest.schema}, this release reads {SCHEMA}", str(path))
    for file in manifest.files:
        try:
            check_runs(FileResult(file.path, file.nbytes, file.runs))
        except RunError as error:
            raise InputError(f"the manifest is damaged: of {file.path}, {error.message}", str(path)) from None
    return manifest


def file_faults(folder: Path, file: ManifestFile, read: list[int]) -> list[str]:
    """Read a file again and compare with its manifest; ``read`` gains the number of bytes read."""
    path = folder / file.path
    with reported(path):
        if not path.is_file():
            return [f"{file.path}: missing"]
    source = DiskFile(str(path))
    try:
        if source.nbytes != file.nbytes:
            return [f"{file.path}: {source.nbytes} bytes, the manifest has {file.nbytes}"]
        faults = [f"{file.path}: bytes {run.offset} to {run.offset + run.nbytes} changed{_whose(file, run)}"
                  for run in file.runs if _digest(source, run) != run.xxh3]  # fmt: skip
        read.append(source.nbytes)
        return faults
    finally:
        source.close()


def _whose(file: ManifestFile, run: Run) -> str:
    names = [
        name
        for name, shard in file.tensors.items()
        if any(e.offset < run.offset + run.nbytes and run.offset < e.end for e in shard.extents)
    ]
    return f" ({', '.join(names[:3])})" if names else " (header)"


def _digest(source: DiskFile, run: Run) -> str:
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(_BLOCK_NBYTES, run.nbytes)))
    for at in range(0, run.nbytes, _BLOCK_NBYTES):
        part = buffer[: min(_BLOCK_NBYTES, run.nbytes - at)]
        source.read_into(run.offset + at, part)
        digest.update(part)
    return digest.hexdigest()
