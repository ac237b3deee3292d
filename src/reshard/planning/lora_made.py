"""A merge as tensors of which others are made: what is merged goes under other names as any checkpoint does."""

from __future__ import annotations

from msgspec.structs import replace

from reshard.index import MADE, Extent
from reshard.layout.box import Box
from reshard.planning.assembly import spec_of
from reshard.planning.catalog import Catalog, Held, Loose, Shard, Tensor, is_viewed
from reshard.planning.lora_values import LoraMerge, MadeAs
from reshard.planning.names import is_state

_STATES = "optimizer states of the training"


def as_made(source: Catalog, merge: LoraMerge, dtype: str) -> tuple[Catalog, LoraMerge]:
    """The catalog of what is merged alone, and the merge that says how its tensors are made.

    Each is as the target shall have it: what is not stored so is made, so that it is rounded once.

    Args:
        dtype: that floating weights are cast to; "" for none.
    """
    tensors: dict[str, Tensor] = {}
    made: list[MadeAs] = []
    dropped = dict(source.dropped)
    for name, tensor in source.tensors.items():
        if name in merge.used or is_state(name):
            why = merge.used.get(name, _STATES)
            dropped[why] = (*dropped.get(why, ()), name)
            continue
        spec = spec_of(name, tensor, dtype)
        other = spec != tensor.spec or tensor.scales is not None
        if name in merge.changed or (other and not (tensor.scales and is_viewed(tensor))):
            held = Held(MADE - len(made), (Extent(0, spec.nbytes),))
            made.append(MadeAs(name, spec.dtype))
            tensor = Tensor(name, spec, Loose((Shard(Box.whole(spec.shape), (held,)),)), tensor.known)
        tensors[name] = tensor
    return replace(source, tensors=tensors, dropped=dropped), replace(merge, made=tuple(made))
