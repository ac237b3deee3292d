"""What is loaded and never written: tensors of any dtype and name, one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from reshard.index import Extent, Frame, TensorSpec


class InMemory(Struct, frozen=True):
    name: str = "memory"
    suffix: str = ""

    def frame(self, tensors: Mapping[str, TensorSpec], texts: Mapping[str, str], notes: Mapping[str, str]) -> Frame:
        at, holes = 0, {}
        for name, spec in tensors.items():
            holes[name] = (Extent(at, spec.nbytes),)
            at += spec.nbytes
        return Frame(at, (), holes)
