"""The state that all of Megatron's ranks share (``common.pt``), as it was or written again with other arguments.

It holds what belongs to the optimizer and lies in no tensor: groups of parameters, their learning rate, the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reshard.errors import PlanError
from reshard.families.megatron_args import args_of, as_argument
from reshard.formats.pickled import Record
from reshard.formats.torch_file import torch_bytes
from reshard.formats.torch_records import read_torch_records
from reshard.formats.window import InBytes


def common_value(value: Any) -> Any:
    """Of what a file or an entry holds: releases of 2026 put it in a list of one."""
    return value[0] if isinstance(value, list) and value else value


def rewritten(content: bytes, args: Mapping[str, Any], iteration: int | None) -> bytes:
    """The state with these arguments and this iteration, None for its own; as it is where that changes nothing.

    Raises PlanError where it holds what is not written again.
    """
    records = read_torch_records(InBytes(content))
    stored = records.pickled.value
    value = common_value(stored)
    if not isinstance(value, dict):
        raise PlanError("common.pt holds no state of Megatron's", hint="--dst-names hf needs none")
    own, told = args_of(value), value.get("args")
    changed = {name: as_argument(name, each) for name, each in args.items() if name not in own or own[name] != each}
    anew: dict[str, Any] = {}
    if iteration is not None and value.get("iteration", iteration) != iteration:
        anew["iteration"] = iteration
    if changed and isinstance(told, Record):
        anew["args"] = Record(told.factory, told.args, {**told.fields, **changed})
    if value is stored and not anew:
        return content
    if records.packed or records.big_endian:
        raise PlanError(_STRANGE, hint=_HINT)
    places = {key: content[place.offset : place.offset + place.nbytes] for key, place in records.places.items()}
    try:
        return torch_bytes({**value, **anew}, places)
    except (TypeError, RecursionError) as error:
        raise PlanError(f"{_STRANGE}: {error}", hint=_HINT) from None


_STRANGE = "common.pt holds what is not written again with another iteration, or another vocabulary"
_HINT = "leave --dst-iteration and --vocab-rows out: it stays as it is"
