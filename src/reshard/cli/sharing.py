"""What several processes or nodes divide among them: ``--share`` and the map of ``--nodes-local``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reshard.cli.text import parse_ranks
from reshard.errors import InputError, UsageError

if TYPE_CHECKING:
    from reshard.ops.options import NodeRanks
    from reshard.planning.shares import Share

_HINT = "i/n with i from 0 to n - 1, as --share 0/4; or auto, in a process of msrun, torchrun, mpirun or Slurm"


def parse_share(text: str, environment: Mapping[str, str]) -> Share:
    """``i/n``, or ``auto``. Raises UsageError.

    >>> parse_share("1/4", {})
    Share(index=1, count=4)
    >>> parse_share("auto", {"SLURM_PROCID": "2", "SLURM_NTASKS": "8"})
    Share(index=2, count=8)
    >>> parse_share("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"})
    Share(index=4, count=8)
    """
    from reshard.planning.shares import Share

    if text == "auto":
        return _of_launcher(environment)
    found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if found is None:
        raise UsageError(f"--share {text!r}", hint=_HINT)
    return Share(int(found[1]), int(found[2]))


def _of_launcher(environment: Mapping[str, str]) -> Share:
    from reshard.auto.launch import launch_of
    from reshard.planning.shares import Share

    launch = launch_of(environment)
    if launch.world > 1:
        return Share(launch.rank, launch.world)
    first, last, own = (environment.get(f"SLURM_ARRAY_TASK_{what}", "") for what in ("MIN", "MAX", "ID"))
    if all(map(str.isdigit, (first, last, own))):
        return Share(int(own) - int(first), int(last) - int(first) + 1)
    raise UsageError("--share auto: no launcher with several processes started this one", hint=_HINT)


def read_nodes(path: str) -> tuple[NodeRanks, ...]:
    """A file with a line ``RANKS NODE`` for each node, as ``0-7 10.0.0.1``. Raises InputError, CheckpointError."""
    from reshard.ops.options import NodeRanks
    from reshard.run.storage import reported

    with reported(path):
        content = Path(path).read_bytes()
    found = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise InputError(f"line {number} is not ranks and a node: {line!r}", path, "for example: 0-7 10.0.0.1")
        found.append(NodeRanks(parse_ranks(words[0]), words[1]))
    if not found:
        raise InputError("no node is named", path, "a line for each node, for example: 0-7 10.0.0.1")
    return tuple(found)
