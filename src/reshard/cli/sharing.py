"""What several processes or nodes divide among them: ``--share`` and the map of ``--nodes-local``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from reshard.cli.text import parse_ranks
from reshard.digits import number_in
from reshard.errors import InputError, UsageError
from reshard.yaml_text import text_of

if TYPE_CHECKING:
    from reshard.ops.options import NodeRanks
    from reshard.planning.shares import Share

_HINT = "i/n with i from 0 to n - 1, as --share 0/4; or auto, in a process of msrun, torchrun, mpirun or Slurm"
_STEP = "SLURM_STEP_NUM_TASKS"
_BATCH = ("SLURM_PROCID", "SLURM_NTASKS")


def parse_share(text: str, environment: Mapping[str, str]) -> Share:
    """``i/n``, or ``auto``. Raises UsageError.

    >>> parse_share("1/4", {})
    Share(index=1, count=4)
    >>> parse_share("auto", {"SLURM_PROCID": "2", "SLURM_NTASKS": "8"})
    Share(index=2, count=8)
    >>> parse_share("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8",
    ...                      "SLURM_PROCID": "0"})
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

    job, jobs = _place_in_array(environment)
    if jobs and _STEP not in environment:  # a batch script is called process 0 of tasks that nobody began
        environment = {name: text for name, text in environment.items() if name not in _BATCH}
    launch = launch_of(environment)
    if not jobs and launch.world == 1:
        raise UsageError("--share auto: no launcher with several processes started this one", hint=_HINT)
    return Share(job * launch.world + launch.rank, max(jobs, 1) * launch.world)


def _place_in_array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which of how many jobs of a Slurm array this is; of 0 where it is none. Raises UsageError."""
    own, first, last, step, count = (
        number_in(environment.get(f"SLURM_ARRAY_TASK_{what}", "")) for what in ("ID", "MIN", "MAX", "STEP", "COUNT")
    )
    if own is None or first is None or last is None:
        return 0, 0
    step = step or 1
    jobs = (last - first) // step + 1
    if (own - first) % step or (count or jobs) != jobs:
        raise UsageError(
            f"--share auto: this array of jobs is not all of {first} to {last}",
            hint="sbatch --array 0-15 for 16 shares; to run one of them again, name it: --share 3/16",
        )
    return (own - first) // step, jobs


def read_nodes(path: str) -> tuple[NodeRanks, ...]:
    """A file with a line ``RANKS NODE`` for each node, as ``0-7 10.0.0.1``. Raises InputError, CheckpointError."""
    from reshard.ops.options import NodeRanks

    found = []
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            raise InputError(f"line {number} is not ranks and a node: {line!r}", path, "for example: 0-7 10.0.0.1")
        found.append(NodeRanks(parse_ranks(words[0]), words[1]))
    if not found:
        raise InputError("no node is named", path, "a line for each node, for example: 0-7 10.0.0.1")
    return tuple(found)
