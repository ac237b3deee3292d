"""A folder of Megatron's distributed form, ``torch_dist``: chunks as DCP has them, which it loads into any layout.

Beside each linear layer and each norm stands an extra state, without which it refuses to load (norms have one with
Transformer Engine alone, and one too many does no harm): nothing, as it is where no numbers of 8 bits are scaled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, ClassVar

from msgspec import Struct

from reshard.errors import PlanError
from reshard.families.dcp_target import Objects, chunked, dcp_asked
from reshard.families.megatron_common import rewritten
from reshard.families.megatron_cut import refuse_other_form
from reshard.families.megatron_folders import COMMON, DESCRIPTION
from reshard.families.megatron_target import arguments, iteration_of, of_training, save_name, tracker
from reshard.families.targets import AskedTarget
from reshard.formats.torch_file import torch_bytes
from reshard.planning.catalog import Catalog
from reshard.planning.decide import Kept
from reshard.planning.names import is_state
from reshard.planning.plan import SmallFile
from reshard.planning.target import Draft, Files

_HOSTS = re.compile(r"(.*\b(?:linear_\w+|\w*_proj|output_layer|\w*norm))\.weight(?:_[wv]|\.\w+)?")
_STACK = re.compile(r".*\blayers\.(?!\d)")
_BUCKETS = "optimizer.distributed."
_EXPERTS = re.compile(r".*\bmlp\.experts\.experts\.(?!\d)")
_AFTER_ATTENTION = "self_attention.linear_proj"
_DESCRIBED = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}


class TorchDist(Struct, frozen=True):
    """``count`` files; ``iteration``: None for what Megatron calls a release."""

    count: int
    iteration: int | None
    args: tuple[tuple[str, Any], ...]

    name: ClassVar[str] = "torch_dist"
    strategy: ClassVar[None] = None

    def files(self, draft: Draft) -> Files:
        _refuse_buckets(draft.kept)
        refuse_other_form((kept.name for kept in draft.kept), parted=True)
        folder = f"{save_name(self.iteration)}/"
        source = draft.source
        if source.common:
            common = rewritten(source.common, source.args, self.iteration)
        else:
            common = torch_bytes(of_training(self.args, self.iteration), {})
        planned, metadata = chunked(draft, self.count, Objects((), extra_states(draft.kept)), folder)
        closing = (
            SmallFile(f"{folder}{COMMON}", common),
            SmallFile(f"{folder}{DESCRIPTION}", json.dumps(_DESCRIBED).encode()),
            SmallFile(f"{folder}.metadata", metadata),
            tracker(self.iteration),
        )
        return Files(draft.asked_for(planned), len(planned), closing)


def _refuse_buckets(kept: Sequence[Kept]) -> None:
    """Raises PlanError for states in buckets: Megatron needs what it keeps beside them, and the layout of the save."""
    buckets = [one.name for one in kept if _BUCKETS in one.name]
    if buckets:
        raise PlanError(
            f"{buckets[0]}: states in buckets (dp_reshardable) do not say which parameter lies where",
            hint="--weights-only; or save with --dist-ckpt-optim-fully-reshardable",
        )


def extra_states(kept: Sequence[Kept]) -> tuple[str, ...]:
    """The names of the extra states that belong to these tensors: one for each layer and expert that they are of."""
    found: dict[str, None] = {}
    for one in kept:
        module = _HOSTS.fullmatch(one.name)
        if module is None or is_state(one.name):
            continue
        stacks = (_STACK.match(one.name) is not None) + (_EXPERTS.match(one.name) is not None)
        counted = one.tensor.spec.shape[:stacks]
        found |= dict.fromkeys(_of(module[1], counted))
        if module[1].endswith(_AFTER_ATTENTION):
            found |= dict.fromkeys(_of(f"{module[1].removesuffix('linear_proj')}core_attention", counted))
    return tuple(found)


def _of(module: str, counted: Sequence[int]) -> Iterator[str]:
    """
    >>> list(_of("decoder.layers.mlp.linear_fc2", (2,)))
    ['decoder.layers.mlp.linear_fc2._extra_state/shard_0_2', 'decoder.layers.mlp.linear_fc2._extra_state/shard_1_2']
    """
    sizes = counted or (1,)
    for place in product(*map(range, sizes)):
        yield f"{module}._extra_state/shard_{'.'.join(map(str, place))}_{'.'.join(map(str, sizes))}"


def torch_dist_asked(asked: AskedTarget, source: Catalog) -> TorchDist:
    """Raises UsageError for a number of files that is none."""
    return TorchDist(dcp_asked(asked, source).count, iteration_of(asked, source), arguments(source))
