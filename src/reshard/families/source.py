"""What a user names as a checkpoint."""

from __future__ import annotations

from msgspec import Struct

from reshard.families.found import Select
from reshard.layout.stages import Strategy


class Source(Struct, frozen=True):
    """A path, and what its files cannot tell.

    Attributes:
        strategy: the one that it was saved with, read or as file or folder; empty for what describes itself.
        select, suffix: which file of several in a ``rank_x``.
        family: the name of its family, where several are recognised; empty to recognise it.
        iteration: which of several that lie there; None for the one that the family's own tools take.
    """

    path: str
    strategy: str | Strategy = ""
    select: Select = "natural"
    suffix: str = ""
    family: str = ""
    iteration: int | None = None
