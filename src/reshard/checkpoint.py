"""A checkpoint as Python sees it: names, shapes, values, and what any rank of any layout would hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from reshard.errors import counted
from reshard.families.open_checkpoint import open_source
from reshard.families.planner import make_plan
from reshard.families.probe import agreements, probe
from reshard.families.rank_targets import ranks_or_full
from reshard.families.source import Source, source_at
from reshard.families.strategies import read_strategy
from reshard.formats.in_memory import InMemory
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.decide import Missing
from reshard.planning.show import catalog_html, tensor_html
from reshard.planning.target import Choices, Target

if TYPE_CHECKING:
    import numpy.typing as npt

    from reshard.families.discover import Select
    from reshard.layout.stages import Strategy
    from reshard.moving.memory import LazyArrays


def open(
    path: str | Path | Source,
    strategy: str | Path | Strategy | None = None,
    *,
    select: Select = "natural",
    suffix: str = "",
) -> Checkpoint:
    """Open a checkpoint of any layout and format; headers are read, values are not.

    Args:
        path: a weight file, or a folder of any family; or a ``Source``, which says all that is asked for.
        strategy: the strategy file or folder it was saved with; None for one full checkpoint.

    Raises:
        InputError: broken, incomplete or contradictory files.
    """
    source = source_at(path, strategy or "", select, suffix)
    return Checkpoint(open_source(source), source.path)


class TensorView:
    """One tensor of a checkpoint."""

    def __init__(self, tensor: Tensor, checkpoint: Checkpoint) -> None:
        self.name = tensor.name
        self.dtype = tensor.spec.dtype
        self.shape = tensor.spec.shape
        self.parts = tensor.parts
        self._checkpoint = checkpoint

    def read(self) -> npt.NDArray[Any]:
        """The full tensor, put together from its shards. bfloat16 and fp8 are ml_dtypes arrays."""
        return self._checkpoint.load_full(self.name)[self.name]

    def __repr__(self) -> str:
        return f"<{self.name}: {self.dtype}{list(self.shape)} in {list(self.parts)} parts>"

    def _repr_html_(self) -> str:
        return self._checkpoint._html_of(self.name)


class Checkpoint(Mapping[str, TensorView]):
    """Tensors by name. ``len``, ``in``, iteration and shapes read no values."""

    def __init__(self, source: Catalog, path: str) -> None:
        self._source = source
        self._probed = False
        self.path = path

    def __getitem__(self, name: str) -> TensorView:
        return TensorView(self._source.tensors[name], self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.tensors)

    def __len__(self) -> int:
        return len(self._source.tensors)

    def __repr__(self) -> str:
        ranks = len({f.rank for f in self._source.files})
        return f"<checkpoint {self.path}: {counted(len(self), 'tensor')} on {counted(ranks, 'rank')}>"

    def _repr_html_(self) -> str:
        return catalog_html(repr(self).strip("<>"), self._source)

    def _html_of(self, name: str) -> str:
        """How one tensor is cut, as a picture for a page."""
        return tensor_html(self._source, self._source.tensors[name])

    @property
    def texts(self) -> dict[str, str]:
        """Strings stored beside the tensors, as the first rank that has them says."""
        return {name: next(iter(by_rank.values())) for name, by_rank in self._source.texts.items()}

    def load(
        self,
        rank: int = 0,
        dst_strategy: str | Path | Strategy | None = None,
        *,
        dtype: str = "",
        missing: Missing = "error",
    ) -> LazyArrays:
        """What ``rank`` of ``dst_strategy`` holds, or the full tensors without one. Arrays are made when asked for.

        Bytes that lie together in one file are mapped and not copied; only what the rank needs is read.
        Raises InputError when a slice is held by nobody or nobody can know what a tensor should be.
        """
        strategy = read_strategy(dst_strategy) if dst_strategy else None
        self._check_strategy()
        return _arrays(self._source, strategy, rank, dtype, missing)

    def load_full(self, name: str) -> LazyArrays:
        """The one tensor, whole."""
        self._check_strategy()
        only = replace(self._source, tensors={name: self._source.tensors[name]}, texts={}, expected=(), withheld={})
        return _arrays(only, None, 0, "", "error")

    def _check_strategy(self) -> None:
        """Before the first value is read: raises CheckpointError where the strategy is not that of these files."""
        if not self._probed:
            self._source = replace(self._source, warnings=(*self._source.warnings, *probe(self._source)))
            self._probed = True

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the files but no error: ranks without a file, ranks at different steps."""
        return self._source.warnings


def _arrays(source: Catalog, strategy: Strategy | None, rank: int, dtype: str, missing: Missing) -> LazyArrays:
    from reshard.moving.memory import LazyArrays

    target = Target(ranks_or_full(strategy, InMemory()), dtype, frozenset({rank}))
    choices = Choices(missing=missing, agreed=agreements(source, source.compared()))
    return LazyArrays(make_plan(source, target, choices))
