"""Values that a cast or a sum could not keep, counted: by shard while files are made, by tensor where they are told."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from reshard.layout.box import Box


class Misfits(Struct, frozen=True):
    """Values of a tensor that a cast or a sum could not keep, counted.

    Attributes:
        infinite, nan: are so, of a cast without having been so before.
        largest: are the largest that ``dtype`` holds, in place of what is larger.
    """

    tensor: str
    dtype: str
    infinite: int = 0
    nan: int = 0
    largest: int = 0

    def __add__(self, other: Misfits) -> Misfits:
        return replace(
            self,
            infinite=self.infinite + other.infinite,
            nan=self.nan + other.nan,
            largest=self.largest + other.largest,
        )

    def __str__(self) -> str:
        kinds = {"infinite": self.infinite, "NaN": self.nan, f"set to the largest {self.dtype}": self.largest}
        return f"{self.tensor}: {', '.join(f'{n:,} {kind}' for kind, n in kinds.items() if n)}"


class ShardMisfits(Struct, frozen=True):
    """Those of one box of a tensor, as a file holds it. Replicas have the same."""

    box: Box
    counts: Misfits


def by_tensor(misfits: Iterable[ShardMisfits]) -> tuple[Misfits, ...]:
    """The sum of each tensor, replicas counted once."""
    found: dict[str, Misfits] = {}
    for counts in (shard.counts for shard in dict.fromkeys(misfits)):
        found[counts.tensor] = found[counts.tensor] + counts if counts.tensor in found else counts
    return tuple(found.values())
