"""Files that are objects in an object store: read by ranges, written front to back in parts, visible when whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from reshard.errors import CheckpointError, RunError, StorageError, UsageError
from reshard.formats.registry import format_of
from reshard.planning.plan import LinkKind
from reshard.storage.bucket import Bucket, Meta, Upload
from reshard.storage.bucket_settings import READ_ONLY, Address, address_of
from reshard.storage.storage import Entry, NewFile, ReadFile, SharedBytes
from reshard.storage.whole_file import copy_file

_PART_NBYTES = 8 << 20
_SMALLEST_PART_NBYTES = 5 << 20  # that S3 takes
_MOST_PARTS = 10_000  # of one object
_LARGEST_COPY_NBYTES = 5_000_000_000  # that S3 makes in one request
_NOTES = "/.reshard/"  # what lies there changes, and is small
_LIST_HINT = "give a file, an index (model.safetensors.index.json) or a manifest (FOLDER/.reshard/manifest.json)"


def part_nbytes(nbytes: int, buffer_nbytes: int) -> int:
    """The parts that a file of ``nbytes`` goes up in: small enough that two fit the buffer, if the file permits."""
    fitting = max(min(_PART_NBYTES, buffer_nbytes // 2), _SMALLEST_PART_NBYTES)
    return max(fitting, -(-nbytes // _MOST_PARTS))


def most_files(largest_nbytes: int, upload_nbytes: int) -> int:
    """How many files may be uploaded at once, each with a part under way and one being filled; 0 if not even one."""
    return upload_nbytes // (2 * part_nbytes(largest_nbytes, 0))


class ObjectFile:
    """An object, open to read. Every answer of the store tells whether it still is the same."""

    def __init__(self, bucket: Bucket, meta: Meta) -> None:
        self._bucket = bucket
        self._meta = meta
        self.nbytes = meta.nbytes
        self.mtime_ns = meta.stamp

    def read(self, offset: int, nbytes: int) -> bytes:
        buffer = bytearray(nbytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if not len(buffer):
            return
        url = self._bucket.url(self._meta.key)
        if offset + len(buffer) > self.nbytes:
            missing = offset + len(buffer) - self.nbytes
            raise StorageError(
                f"the file ends at byte {self.nbytes}, {missing} more were expected", url, "it is cut short"
            )
        meta = self._bucket.read_into(self._meta.key, offset, buffer)
        if (meta.nbytes, meta.stamp) != (self.nbytes, self.mtime_ns):
            raise CheckpointError("the file changed while it was read", url, "start again when nothing writes it")

    def changed(self) -> bool:
        return False  # then reading would have failed

    def close(self) -> None:
        pass


class ObjectNewFile:
    """An object that is uploaded in parts; bytes come front to back."""

    shared: tuple[tuple[int, int], ...] = ()

    def __init__(self, upload: Upload, url: str, nbytes: int, part_nbytes: int) -> None:
        self._upload = upload
        self._url = url
        self._nbytes = nbytes
        self._part_nbytes = part_nbytes
        self._part = bytearray()
        self._filled = 0
        self._at = 0

    def write(self, offset: int, data: memoryview) -> None:
        if offset != self._at:
            raise RunError(f"bytes from {offset} came where those from {self._at} should", self._url)
        while len(data):
            if not self._part:  # the next one, at its full size: one that grows takes more than it holds
                self._part = bytearray(min(self._part_nbytes, self._nbytes - self._at))
            taken = data[: len(self._part) - self._filled]
            self._part[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._at += len(taken)
            data = data[len(taken) :]
            if self._filled == len(self._part):
                part, self._part, self._filled = self._part, bytearray(), 0
                self._upload.add(part)

    def commit(self) -> None:
        if self._at != self._nbytes:
            raise RunError(f"{self._at} of {self._nbytes} bytes came", self._url)
        self._upload.finish()

    def abandon(self) -> None:
        self._upload.abort()


class ObjectStore:
    """A bucket as a storage; paths are URLs in it. Folders are what stands before a slash."""

    remote = True
    at_once = 48
    front_to_back = True

    def __init__(self, address: Address) -> None:
        self._bucket = Bucket(address)
        self._read_only = address.scheme in READ_ONLY
        self._known: dict[str, Meta] = {}

    def open(self, path: str) -> ReadFile:
        """An object that was listed or looked at before is opened without asking again: reading tells."""
        key = address_of(path).key
        known = self._known.get(key) if _NOTES not in f"/{key}" else None
        return ObjectFile(self._bucket, known or self._looked_at(key))

    def create(
        self, path: str, nbytes: int, *, fsync: bool, buffer_nbytes: int = 0, share: Sequence[SharedBytes] = ()
    ) -> NewFile:
        """``fsync`` has no meaning here: a store that says it has an object has it."""
        self._check_writable(path)
        part = part_nbytes(nbytes, buffer_nbytes)
        at_once = max(buffer_nbytes // part - 1, 1)  # one more is being filled
        key = address_of(path).key
        upload = self._bucket.upload(key, nbytes, part, at_once, replaced=self._known.pop(key, None))
        return ObjectNewFile(upload, path, nbytes, part)

    def link(self, path: str, twin: str, *, fsync: bool) -> LinkKind:
        """A copy that the store makes; a large object passes through here, which no store copies in one request."""
        self._check_writable(twin)
        key, other = address_of(path).key, address_of(twin).key
        file = self.open(path)
        if file.nbytes <= _LARGEST_COPY_NBYTES:
            self._bucket.copy(key, other)
        else:
            copy_file(file, self.create(twin, file.nbytes, fsync=fsync), _PART_NBYTES)
        return "reflink"

    def entry(self, path: str) -> Entry | None:
        key = address_of(path).key
        try:
            if key:
                return _entry(self._looked_at(key))
        except CheckpointError:
            if key.endswith(".json") and _NOTES in f"/{key}":  # our own are no folders
                return None
            if self._read_only and (path.endswith(".json") or format_of(path)):
                return None
        if self._read_only:
            raise UsageError("a folder cannot be listed over http(s)", path, _LIST_HINT)
        return Entry(key.rpartition("/")[2], folder=True, nbytes=0, mtime_ns=0) if self._bucket.any_below(key) else None

    def entries(self, folder: str) -> list[Entry]:
        if self._read_only:
            raise UsageError("a folder cannot be listed over http(s)", folder, _LIST_HINT)
        folders, metas = self._bucket.listed(address_of(folder).key)
        self._known.update((meta.key, meta) for meta in metas)
        found = [Entry(key.rpartition("/")[2], folder=True, nbytes=0, mtime_ns=0) for key in folders]
        return sorted([*found, *map(_entry, metas)], key=lambda entry: entry.name)

    def write_whole(self, path: str, content: bytes, *, fsync: bool) -> None:
        self._check_writable(path)
        self._bucket.put(self._forget(path), content)

    def create_whole(self, path: str, content: bytes, *, fsync: bool) -> bool:
        """A store that ignores the condition would overwrite: it is asked first."""
        self._check_writable(path)
        key = self._forget(path)
        with suppress(CheckpointError):
            self._bucket.head(key)
            return False
        return self._bucket.put_new(key, content)

    def remove(self, path: str) -> None:
        self._check_writable(path)
        self._bucket.remove(self._forget(path))

    def _looked_at(self, key: str) -> Meta:
        self._known.pop(key, None)
        meta = self._known[key] = self._bucket.head(key)
        return meta

    def _forget(self, path: str) -> str:
        key = address_of(path).key
        self._known.pop(key, None)
        return key

    def _check_writable(self, path: str) -> None:
        if self._read_only:
            raise UsageError("http(s) is for reading only", path, "choose a folder, or s3://, obs://, gs://, az://")


def _entry(meta: Meta) -> Entry:
    return Entry(meta.key.rpartition("/")[2], folder=False, nbytes=meta.nbytes, mtime_ns=meta.mtime_ns)


@cache
def _at(address: Address) -> ObjectStore:
    return ObjectStore(address)


def object_store_of(path: str) -> ObjectStore:
    """The bucket that a URL lies in, one object for all its paths. Raises UsageError, StorageError."""
    address = address_of(path)
    return _at(Address(address.scheme, address.name, ""))
