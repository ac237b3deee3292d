"""What a user wants to be written, and how names are treated."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from reshard.dtypes import FLOATING
from reshard.errors import UsageError, counted
from reshard.formats.base import Format
from reshard.layout.stages import Strategy
from reshard.planning.decide import Missing
from reshard.planning.lora import LoraMerge
from reshard.planning.names import NameRules
from reshard.planning.parts import Parts
from reshard.planning.plan import Part
from reshard.planning.shares import Share


class Target(Struct, frozen=True):
    """What to write.

    Attributes:
        strategy: None for one full checkpoint.
        prefix: files are called ``rank_r/{prefix}{r}{suffix}``.
        ranks: only these target ranks; None for all.
        share: only the files of this share; None for all.
        single: the name of the one file of a full checkpoint, in place of ``rank_0/{prefix}0{suffix}``.
        parts: a full checkpoint in several files with an index of names.
        drop_redundancy: of equal shards one rank alone keeps its own.
        dtype: floating weights are cast to this.
    """

    strategy: Strategy | None
    format: Format
    prefix: str = "checkpoint_"
    ranks: frozenset[int] | None = None
    share: Share | None = None
    single: str = ""
    parts: Parts | None = None
    drop_redundancy: bool = False
    dtype: str = ""

    def __post_init__(self) -> None:
        if "/" in self.prefix or "\0" in self.prefix:
            raise UsageError(f"prefix {self.prefix!r} would leave its folder")
        if self.prefix != self.prefix.encode("utf-8", "ignore").decode():
            raise UsageError(f"prefix {self.prefix!r} is not Unicode", hint="file names of a target are UTF-8")
        if self.dtype and self.dtype not in FLOATING:
            raise UsageError(f"cannot cast to {self.dtype!r}", hint=f"one of: {', '.join(sorted(FLOATING))}")
        if self.parts and (self.strategy or self.format.name != self.parts.format):
            raise UsageError(
                "only one full checkpoint, of safetensors or torch files, is written in parts of a largest size"
            )
        if self.single and (self.strategy or self.parts):
            raise UsageError(f"{self.single!r} names a file, the target is a folder of several", hint="name a folder")
        if self.drop_redundancy and self.strategy is None:
            raise UsageError(
                "one full checkpoint has no replicas to drop", hint="--drop-redundancy needs --dst-strategy"
            )
        beyond = sorted(r for r in self.ranks or () if not 0 <= r < self.world)
        if beyond:
            raise UsageError(
                f"rank {beyond[0]} is not among the target's {counted(self.world, 'rank')}", hint="ranks count from 0"
            )

    @property
    def part(self) -> Part:
        return "share" if self.share else "ranks" if self.ranks is not None else ""

    @property
    def world(self) -> int:
        return self.strategy.world if self.strategy else 1

    @property
    def devices(self) -> int:
        return self.strategy.devices if self.strategy else 1

    @property
    def stages(self) -> int:
        return len(self.strategy.stages) if self.strategy else 1


class Choices(Struct, frozen=True):
    """How the user wants names treated, and what was learnt of tensors that no strategy knows."""

    rules: NameRules = field(default_factory=NameRules)
    missing: Missing = "error"
    agreed: Mapping[str, bool] = {}
    lora: LoraMerge | None = None
