"""What decides how a job's weights are cut: the sizes of its parallel axes, its model's settings, its optimizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from reshard.errors import StrategyError
from reshard.strategy.optimizer_shard import OptimizerParallel
from reshard.strategy.optimizer_states import NONE

Release = tuple[int, ...]
OLDEST, NEWEST = (1, 3), (1, 9)
"""Releases of MindFormers whose layouts the rules were compared with."""


class Sizes(Struct, frozen=True):
    """Ranks along each axis: data, model, pipeline, context and expert parallel."""

    dp: int = 1
    mp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1

    @property
    def devices(self) -> int:
        """Ranks of one pipeline stage."""
        return self.dp * self.mp * self.cp


class Lora(Struct, frozen=True):
    """LoRA on the layers whose name ``targets`` matches, as ``re.match`` does."""

    rank: int
    targets: str


class Pipeline(Struct, frozen=True):
    offset: object = 0
    chunks: int = 1
    zero_bubble_v: bool = False


class Job(Struct, frozen=True):
    """One training or inference job.

    Attributes:
        models: names that the config gives its model, most telling first.
        optimizer: "" where the config names none and the job trains.
        mcore: whether it uses MindFormers' Megatron-like core; None when the config does not say.
        config: the model's own settings, nested as in the YAML.
        only_trained: only weights that are trained stand in the strategy, with their states.
        release: of MindFormers; None for the newest.
        pretrained: folder of a Hugging Face model whose config.json has the settings that ``config`` lacks.
    """

    sizes: Sizes
    models: tuple[str, ...] = ()
    mcore: bool | None = None
    config: Mapping[str, Any] = {}
    vocab_emb_dp: bool = False
    seq_parallel: bool = False
    pipeline: Pipeline = Pipeline()
    optimizer: str = NONE
    only_trained: bool = True
    sharing: OptimizerParallel = field(default_factory=OptimizerParallel)
    lora: Lora | None = None
    release: Release | None = None
    pretrained: str = ""


def as_release(text: str) -> Release | None:
    """``1.6.0`` or ``r1.6.0`` as numbers; None for nothing. Raises StrategyError, for a release that is not known too.

    >>> as_release("r1.6.0")
    (1, 6, 0)
    """
    if not text:
        return None
    found = re.match(r"[rv]?(\d+(?:\.\d+)*)", text)
    if not found:
        raise StrategyError(f"{text!r} is not a version of MindFormers", hint="as 1.6.0")
    release = tuple(map(int, found[1].split(".")))
    if not OLDEST <= release[:2] <= NEWEST:
        first, last = (".".join(map(str, known)) for known in (OLDEST, NEWEST))
        raise StrategyError(
            f"the rules of MindFormers {found[1]} are not known, only those of {first} to {last}",
            hint="take the strategy that the job itself writes",
        )
    return release
