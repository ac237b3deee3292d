"""``.distcp`` as it is written: torch files, one a tensor or text, one after the other.

Source: torch 2.13, ``torch/distributed/checkpoint/filesystem.py``. Where each begins and how long it is, ``.metadata``
says; within, all is counted from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache

from msgspec import Struct

from reshard.errors import FormatError
from reshard.formats.torch_file import torch_frame
from reshard.formats.torch_values import whole
from reshard.index import Checksum, Extent, Frame, TensorSpec

_KEY = "0"


class Distcp(Struct, frozen=True):
    """``empty``: names of items that are a list of nothing, as Megatron has them."""

    empty: tuple[str, ...] = ()
    name: str = "distcp"
    suffix: str = ".distcp"

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        pieces: list[tuple[int, bytes]] = []
        holes: dict[str, tuple[Extent, ...]] = {}
        checksums: list[Checksum] = []
        end = 0
        for name, at, item in _laid(tensors, texts, self.empty):
            pieces += ((at + start, piece) for start, piece in item.pieces)
            for of_tensor in item.holes.values():
                holes[name] = tuple(Extent(at + hole.offset, hole.nbytes) for hole in of_tensor)
            checksums += (
                Checksum(Extent(at + sum_.of.offset, sum_.of.nbytes), tuple(at + place for place in sum_.places))
                for sum_ in item.checksums
            )
            end = at + item.nbytes
        return Frame(end, tuple(pieces), holes, tuple(checksums))


def items_of(tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], empty: Iterable[str]) -> dict[str, Extent]:
    """Where in a file of these each item lies, with all that belongs to it."""
    return {name: Extent(at, item.nbytes) for name, at, item in _laid(tensors, texts, empty)}


def _laid(
    tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], empty: Iterable[str]
) -> Iterator[tuple[str, int, Frame]]:
    """The items in the order of the file: name, where it begins, and what it is."""
    at = 0
    for name, item in (
        *((name, _of_text(text)) for name, text in texts.items()),
        *((name, _nothing()) for name in empty),
        *((name, _named_item(name, spec)) for name, spec in tensors.items()),
    ):
        yield name, at, item
        at += item.nbytes


def _of_text(text: str) -> Frame:
    return torch_frame(text, {})


@cache
def _nothing() -> Frame:
    return torch_frame([None], {})


def _named_item(name: str, spec: TensorSpec) -> Frame:
    try:
        return _item(spec)
    except FormatError:
        raise FormatError(
            f"tensor {name!r} is {spec.dtype}, which torch does not have", hint="leave it out with --exclude"
        ) from None


@lru_cache(1024)
def _item(spec: TensorSpec) -> Frame:
    """The file of one tensor; all of one dtype and shape are laid out alike."""
    return torch_frame(whole(_KEY, spec), {_KEY: spec.nbytes})
