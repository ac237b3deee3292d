"""What a file is that is none of ours, by its first bytes: they say more than a parser that met them."""

from __future__ import annotations

import json
import shlex

from msgspec import Struct

from reshard.errors import FormatError
from reshard.wire import read_varint

HEAD_NBYTES = 1024
_TORCH_HINT = "rename it: PyTorch's files end in .bin, .pt or .pth"
_UNPACK = "unpack it, and give what was in it"
_AGAIN = "download the file again; a browser or curl without login gets such pages in its place"


class Foreign(Struct, frozen=True):
    """What a file is, and what to do about it.

    Attributes:
        text: it is for people to read, or programs' settings.
        torch: torch.save wrote it.
    """

    what: str
    hint: str
    text: bool = False
    torch: bool = False


_BY_START = (
    (b"version https://git-lfs", Foreign("a Git LFS pointer in place of the file", "fetch the file: git lfs pull")),
    (b"GGUF", Foreign("a GGUF file", "GGUF is not read: take the model's safetensors")),
    (b"lmgg", Foreign("a GGML file", "GGML is not read: take the model's safetensors")),
    (b"tjgg", Foreign("a GGML file", "GGML is not read: take the model's safetensors")),
    (b"\x93NUMPY", Foreign("a NumPy array (.npy)", "save it with safetensors.numpy.save_file")),
    (b"\x89HDF\r\n\x1a\n", Foreign("an HDF5 file", "HDF5 is not read: save its arrays as safetensors")),
    (b"\x1f\x8b", Foreign("a gzip archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Foreign("a zstd archive", _UNPACK)),
    (b"\xfd7zXZ\0", Foreign("an xz archive", _UNPACK)),
    (b"BZh", Foreign("a bzip2 archive", _UNPACK)),
    (b"\x04\x22\x4d\x18", Foreign("an lz4 archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Foreign("a RAR archive", _UNPACK)),
)


def foreign(head: bytes, own: str = "") -> Foreign | None:
    """What begins with these bytes (the first ``HEAD_NBYTES``, or all that there are); None where they do not tell.

    Args:
        own: the format that was tried, which it is not found to be then.
    """
    for start, found in _BY_START:
        if head.startswith(start):
            return found
    packed = _archive(head) or _pickle(head)
    if packed is not None:
        return packed if own != "torch" else None  # what is wrong with one, its reader knows
    return _text(head) or _ours(head, own) or _other(head)


def hint_of_yaml(path: str) -> str:
    """What to do with the YAML of a job, given as weights or as a strategy; "" for a file of another name."""
    if not path.endswith((".yaml", ".yml")):
        return ""
    return f"the YAML of a job? reshard strategy make --config {shlex.quote(path)} -o strategy makes its strategy"


def _archive(head: bytes) -> Foreign | None:
    if head[257:262] == b"ustar":
        return Foreign("a tar archive", _UNPACK)
    if not head.startswith(b"PK\x03\x04"):
        return None
    if b"data.pkl" in head or b"/byteorder" in head or b"/version" in head:
        return Foreign("a PyTorch file (a zip archive of a pickle)", _TORCH_HINT, torch=True)
    if b".npy" in head:
        return Foreign("a zip archive of NumPy arrays (.npz)", "save them with safetensors.numpy.save_file")
    return Foreign("a zip archive", _UNPACK)


def _pickle(head: bytes) -> Foreign | None:
    """A zero in third place is no opcode of protocols 2 to 5, but is in a header's length."""
    if head.startswith((b"(dp0\n", b"(lp0\n", b"ccollections\n", b"cnumpy")):
        return Foreign("a Python pickle of an old protocol", _TORCH_HINT)
    if len(head) < 3 or head[0] != 0x80 or not 2 <= head[1] <= 5 or head[2] == 0:
        return None
    if b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:32]:
        return Foreign("a PyTorch file from before its version 1.6 (a pickle)", _TORCH_HINT, torch=True)
    return Foreign("a Python pickle, as PyTorch's older files are", _TORCH_HINT)


def _text(head: bytes) -> Foreign | None:
    bare = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<title>reshard: " in bare:
        return Foreign("a report that reshard made", "open it in a browser; give what it is of")
    if bare.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error", b"<body")):
        return Foreign("a web page (HTML or XML)", _AGAIN)
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        return None
    if not text.strip() or not all(c.isprintable() or c in "\t\r\n" for c in text):
        return None
    if text.lstrip().startswith(("{", "[")):
        return Foreign(f"JSON text ({_shown(text)})", _AGAIN, text=True)
    return Foreign(f"text ({_shown(text)})", _AGAIN, text=True)


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return json.dumps(line if len(line) <= 60 else line[:60] + " …", ensure_ascii=False)


def _ours(head: bytes, own: str) -> Foreign | None:
    """A format of ours under the name of another."""
    if own != "safetensors" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000 and head[8:9] == b"{":
        return Foreign("a safetensors file by what it holds", "rename it: its name has to end in .safetensors")
    if own != "ckpt" and _begins_as_ckpt(head):
        return Foreign("a MindSpore .ckpt by what it holds", "rename it: its name has to end in .ckpt")
    return None


def _begins_as_ckpt(head: bytes) -> bool:
    """A message of one tensor: its name, then the tensor."""
    if head[:1] != b"\x0a" or len(head) < 16:
        return False
    try:
        _, at = read_varint(head, 1)
        nbytes, after = read_varint(head, at + 1)
    except FormatError:
        return False
    if head[at : at + 1] != b"\x0a":
        return False
    return nbytes > 0 and head[after + nbytes : after + nbytes + 1] == b"\x12"


def _other(head: bytes) -> Foreign | None:
    if len(head) > 2 and head[0] == 0x08 and 3 <= head[1] <= 12 and head[2] == 0x12:
        return Foreign("an ONNX model", "ONNX is not read: take the weights that it was made of")
    if len(head) == HEAD_NBYTES and not any(head):
        return Foreign("a file that begins with zeros alone", "its download was not finished: get it again")
    return None
