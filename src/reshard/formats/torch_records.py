"""Where the storages of a torch file lie, and its pickle: in a zip, or in the stream of torch before 1.6.

Source: torch 2.13, ``torch/serialization.py`` and ``caffe2/serialize/inline_container.cc``.

    zip      <folder>/data.pkl, <folder>/byteorder, <folder>/data/<key> for each storage, <folder>/version
    stream   five pickles (a magic number, a version, sizes of types, the object, keys of storages), then for each
             key in that order eight bytes of count and the elements
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from reshard.errors import FormatError
from reshard.foreign import HEAD_NBYTES, foreign
from reshard.formats.base import ByteRanges
from reshard.formats.pickled import Pickled
from reshard.formats.torch_values import StorageRef, read_value, storage
from reshard.formats.zip_records import STORED, ZIP_MARK, ZipRecord, read_record, zip_records
from reshard.index import Extent

_MAX_PICKLE_NBYTES = 1 << 30
_MAGIC = 0x1950A86A20F9469CFC6C
_MAGIC_BYTES = _MAGIC.to_bytes(10, "little")
_STREAM_VERSION = 1001
_AHEAD_NBYTES = 16384
_TORCHSCRIPT = ("constants.pkl", "bytecode.pkl", "code/")
_CUT = "the file is cut short or damaged: copy it again"


class TorchRecords(Struct, frozen=True):
    """A torch file: its object, and where its storages lie.

    Attributes:
        pickled: the object, with a StorageRef or TensorRef where a storage or tensor was.
        nbytes: the length of the pickle.
        places: the bytes of each storage by its key.
        packed: how those are compressed that cannot be read as they lie.
        big_endian: the most significant byte of a number comes first.
        head: how many bytes lie before the first storage, where all that tells of storages is among them; else 0.
        saved_as: the file's name when it was saved, without its ending; "archive" or "" where that is not noted.
    """

    pickled: Pickled
    nbytes: int
    places: Mapping[str, Extent]
    packed: Mapping[str, str] = {}
    big_endian: bool = False
    head: int = 0
    saved_as: str = ""

    def place(self, of: StorageRef) -> Extent:
        """The bytes of a storage. Raises FormatError where they are not there, or not as many as the pickle says."""
        name = f"data/{of.key}"
        if of.place == "meta":
            raise FormatError("it was on the device 'meta': the file has no numbers of it")
        if of.key in self.packed:
            raise FormatError(
                f"{name} is compressed ({self.packed[of.key]})", hint="unzip the file and zip it again with zip -0"
            )
        if of.key not in self.places:
            raise FormatError(f"the file lacks {name}", hint=_CUT)
        place = self.places[of.key]
        if place.nbytes != of.nbytes:
            raise FormatError(f"{name} has {place.nbytes:,} bytes, the pickle says {of.nbytes:,}", hint=_CUT)
        return place


def read_torch_records(source: ByteRanges) -> TorchRecords:
    """Read all but the numbers. Raises FormatError."""
    first = source.read(0, min(source.nbytes, HEAD_NBYTES))
    if first.startswith(ZIP_MARK):
        return _from_zip(source)
    if first[:1] == b"\x80" and _MAGIC_BYTES in first[:32]:
        return _from_stream(source)
    raise _stranger(first, source.nbytes)


def _stranger(first: bytes, nbytes: int) -> FormatError:
    other = foreign(first, "torch")
    if other is not None:
        return FormatError(f"it is {other.what}, not a file of torch.save", hint=other.hint)
    if not nbytes:
        return FormatError("the file is empty", hint="copy the file again")
    return FormatError(
        f"its {nbytes:,} bytes are neither a zip file nor a pickle",
        hint="copy it again; or rename it, if it is no torch file",
    )


# ---- zip


def _from_zip(source: ByteRanges) -> TorchRecords:
    records = zip_records(source)
    folder = _folder(records)
    inside = {name.removeprefix(folder): record for name, record in records.items()}
    script = [name for name in inside if name.startswith(_TORCHSCRIPT)]
    if script:
        raise FormatError(
            f"a TorchScript archive ({script[0]}), which is a program", hint="save the state_dict() of its module"
        )
    order = read_record(source, inside["byteorder"], 16) if "byteorder" in inside else b"little"
    if order not in (b"little", b"big"):
        raise FormatError(f"its byte order is {order!r}", hint=_CUT)
    data = read_record(source, inside["data.pkl"], _MAX_PICKLE_NBYTES)
    storages = {name.removeprefix("data/"): r for name, r in inside.items() if name.startswith("data/")}
    first = min((r.start for r in storages.values()), default=0)
    told = (inside[name] for name in ("data.pkl", "byteorder") if name in inside)
    return TorchRecords(
        read_value(data),
        len(data),
        {key: Extent(r.start, r.nbytes) for key, r in storages.items() if r.method == STORED},
        {key: r.packing for key, r in storages.items() if r.method != STORED},
        order == b"big",
        first if all(r.start + r.packed_nbytes <= first for r in told) else 0,
        folder.rstrip("/"),
    )


def _folder(records: Mapping[str, ZipRecord]) -> str:
    """The folder that all records lie in, with its slash: the file's name when it was saved."""
    found = [name.removesuffix("data.pkl") for name in records if name.endswith("/data.pkl")]
    folder = min(found, key=len, default="")
    if not folder:
        names = ", ".join(list(records)[:4])
        raise FormatError(f"a zip file without data.pkl, so torch.save did not write it; it holds {names}")
    outside = next((name for name in records if not name.startswith(folder)), None)
    if outside is not None:
        raise FormatError(f"the record {outside!r} lies outside of the folder {folder!r}", hint=_CUT)
    return folder


# ---- stream


class _Stream:
    """Pickles in a row, and the storages that they speak of."""

    def __init__(self, source: ByteRanges) -> None:
        self._source = source
        self._head = b""  # of the file, as far as it was needed
        self.at = 0
        self.storages: dict[str, StorageRef] = {}

    def next(self) -> Pickled:
        found = read_value(b"", self._storage, self._more)
        self.at += found.end
        return found

    def _more(self, at: int, nbytes: int) -> bytes:
        """At least ``nbytes`` bytes of the pickle under way from its byte ``at`` on, as long as the file has them."""
        at += self.at
        missing = min(at + nbytes, self._source.nbytes) - len(self._head)
        if missing > 0:
            ahead = min(max(missing, _AHEAD_NBYTES), self._source.nbytes - len(self._head))
            if len(self._head) + ahead > _MAX_PICKLE_NBYTES:
                raise FormatError(f"a pickle of more than {_MAX_PICKLE_NBYTES:,} bytes")
            self._head += self._source.read(len(self._head), ahead)
        return self._head[at:]

    def _storage(self, pid: Any) -> StorageRef:
        found = storage(pid)
        before = self.storages.setdefault(found.key, found)
        said, other = (f"{one.count} {one.dtype}" for one in (found, before))
        if said != other and (found.nbytes or before.nbytes):
            raise FormatError(f"storage {found.key!r} is said to be {said} and {other}")
        return found


def _from_stream(source: ByteRanges) -> TorchRecords:
    stream = _Stream(source)
    magic, version, system = stream.next().value, stream.next().value, stream.next().value
    if magic != _MAGIC or version != _STREAM_VERSION or not isinstance(system, dict):
        raise FormatError("the head of the file is not torch's", hint=_CUT)
    start = stream.at
    pickled = stream.next()
    nbytes = stream.at - start
    keys = stream.next().value
    places: dict[str, Extent] = {}
    at = stream.at
    for key in keys if isinstance(keys, list) else ():
        found = stream.storages.get(key) if isinstance(key, str) else None
        if found is None or key in places:
            raise FormatError(f"storage {str(key)[:80]!r} is one that no tensor has, or is there twice", hint=_CUT)
        places[key] = Extent(at + 8, found.nbytes)
        at = places[key].end
    if at != source.nbytes:
        raise FormatError(f"file has {source.nbytes:,} bytes, its storages end at {at:,}", hint=_CUT)
    return TorchRecords(pickled, nbytes, places, {}, system.get("little_endian") is False)
