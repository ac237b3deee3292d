"""Who writes which files. All ranks reckon the same."""

from __future__ import annotations

from itertools import pairwise

from msgspec import Struct

from reshard.planning.shares import Share


class OwnFiles(Struct, frozen=True):
    """What one process writes: the files of some target ranks, or a share of all by bytes."""

    ranks: frozenset[int] | None = None
    share: Share | None = None


def parts(members: tuple[int, ...], ranks: tuple[int, ...], writers: int, *, by_bytes: bool) -> dict[int, OwnFiles]:
    """The part of each of the ``members`` that writes.

    Args:
        ranks: target ranks to be made: those of the members, or 0 alone of one full checkpoint.
        writers: how many of the members write, evenly spread.
        by_bytes: all members write, and share the work by bytes.

    >>> {member: sorted(part.ranks) for member, part in parts((0, 1, 2, 3), (0, 1, 2, 3), 2, by_bytes=False).items()}
    {0: [0, 1], 2: [2, 3]}
    >>> parts((0, 1), (0,), 2, by_bytes=False)
    {0: OwnFiles(ranks=frozenset({0}), share=None)}
    """
    if len(ranks) == 1:
        return {members[0]: OwnFiles(frozenset(ranks))}
    if by_bytes:
        return {member: OwnFiles(share=Share(i, len(members))) for i, member in enumerate(members)}
    starts = [i * len(members) // writers for i in range(writers)] + [len(members)]
    return {members[start]: OwnFiles(frozenset(ranks[start:stop])) for start, stop in pairwise(starts)}
