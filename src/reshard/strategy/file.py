"""One strategy file, still in the words of its encoding, so that merging loses nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from reshard.errors import StrategyError
from reshard.layout.stages import AnySharding

Encoding = Literal["ckpt", "json"]
STAGE_PREFIX = re.compile(r"(\d+)-(.+)", re.DOTALL)
MARK = "MadeByReshard"
"""Operator name that marks a strategy that no compiler wrote."""


class Operator(Struct, frozen=True):
    """One operator's entry; ``body`` is what its encoding stores, kept as it is."""

    name: str
    stage: int
    body: bytes


class LayoutItem(Struct, frozen=True):
    """One tensor's entry, decoded, and ``body`` as its encoding stores it."""

    entry: AnySharding
    body: bytes


class StrategyFile(Struct, frozen=True):
    path: str
    kind: Encoding
    operators: tuple[Operator, ...]
    layouts: Mapping[str, LayoutItem]

    def __post_init__(self) -> None:
        if not self.layouts:
            raise StrategyError(
                "the file describes no tensor",
                where=self.path,
                hint="is this a strategy file (ckpt_strategy_rank_x)?",
            )

    @property
    def merged(self) -> bool:
        """Whether this holds all stages, each name with its stage in front (``0-name``)."""
        return all(STAGE_PREFIX.fullmatch(name) for name in self.layouts)

    @property
    def stage(self) -> int:
        """The stage of a file that is not merged: its first operator's."""
        return self.operators[0].stage if self.operators else 0

    @property
    def marked(self) -> bool:
        return any(op.name.startswith(MARK) for op in self.operators)

    def entries(self) -> dict[str, AnySharding]:
        return {name: item.entry for name, item in self.layouts.items()}
