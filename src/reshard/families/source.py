"""What a user names as a checkpoint."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from reshard.errors import UsageError
from reshard.families.found import Select, as_select
from reshard.layout.stages import Strategy

NO_ITERATIONS = ("there are no iterations to choose from", "leave --iteration out")


class Source(Struct, frozen=True):
    """A path, and what its files cannot tell.

    Attributes:
        strategy: the one that it was saved with, read or as file or folder; empty for what describes itself.
        select, suffix: which file of several in a ``rank_x``.
        family: the name of its family, where several are recognised; empty to recognise it.
        iteration: which of several that lie there; None for the one that the family's own tools take.
        frozen: a regular expression of the weights that were not trained, where an optimizer numbers those that were.
        trust_manifest: in object storage, take a manifest's word for headers.
    """

    path: str
    strategy: str | Strategy = ""
    select: Select = "natural"
    suffix: str = ""
    family: str = ""
    iteration: int | None = None
    frozen: str = ""
    trust_manifest: bool = True

    def __post_init__(self) -> None:
        as_select(self.select)


def refuse_iteration(source: Source, path: str) -> None:
    """Raises UsageError where one is asked for, and the checkpoint at ``path`` is one by itself."""
    if source.iteration is not None:
        fault, hint = NO_ITERATIONS
        raise UsageError(fault, path, hint)


def source_at(
    path: str | Path | Source, strategy: str | Path | Strategy = "", select: Select = "natural", suffix: str = ""
) -> Source:
    """The source that a caller names by its path and these; one that is a source already is what it is."""
    if isinstance(path, Source):
        return path
    return Source(str(path), strategy if isinstance(strategy, Strategy) else str(strategy), select, suffix)
