"""Which rank of how many this process is, as the launcher's environment says."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from reshard.digits import number_in
from reshard.errors import UsageError

PORTS = 65536
_FIRST_FREE_PORT = 1024
_BESIDE = 1717  # launchers use the port after theirs too


class Launch(Struct, frozen=True):
    """A process of a job.

    Attributes:
        local_world: ranks on one machine; 0 where nobody says.
        address, port: where rank 0 may be asked; "" where no launcher names a master.
        scheduler: a process of MindSpore that only schedules, and has no rank.
    """

    rank: int = 0
    world: int = 1
    local_world: int = 0
    address: str = ""
    port: int = 0
    scheduler: bool = False

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise UsageError(
                f"rank {self.rank} of {self.world}", hint="ranks count from 0: give --rank R --world-size N, R below N"
            )


class _Launcher(Struct, frozen=True):
    """The variables that one launcher sets; of several names of a number the first that is set."""

    name: str
    rank: str
    world: tuple[str, ...]
    local_world: tuple[str, ...]
    address: str = "MASTER_ADDR"
    port: str = "MASTER_PORT"


_LAUNCHERS = (
    _Launcher(
        "MindSpore",
        "RANK_ID",
        ("MS_WORKER_NUM", "RANK_SIZE"),
        ("DEVICE_NUM_PER_NODE",),
        "MS_SCHED_HOST",
        "MS_SCHED_PORT",
    ),
    _Launcher("torchrun", "RANK", ("WORLD_SIZE",), ("LOCAL_WORLD_SIZE",)),
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    _Launcher("MPICH", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALNRANKS",)),
    _Launcher("Slurm", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ()),
)


def launch_of(environment: Mapping[str, str], rank: int | None = None, world: int | None = None) -> Launch:
    """The launch that an environment describes; ``rank`` and ``world`` win over it.

    One process alone where no launcher is seen. Raises UsageError for half a description.

    >>> launch_of({"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"})
    Launch(rank=3, world=8, local_world=0, address='node0', port=31217, scheduler=False)
    """
    launcher = _launcher(environment)
    if environment.get("MS_ROLE") == "MS_SCHED" and rank is None:
        return Launch(scheduler=True)
    if launcher is None:
        if (rank is None) != (world is None):
            raise UsageError("--rank and --world-size belong together", hint="give both")
        return Launch() if rank is None or world is None else Launch(rank, world)
    return Launch(
        rank if rank is not None else _given(environment, launcher.name, (launcher.rank,)),
        world if world is not None else _given(environment, launcher.name, launcher.world),
        _number(environment, launcher.local_world) or 0,
        environment.get(launcher.address, ""),
        _port_beside(_number(environment, (launcher.port,)) or 0),
    )


def _launcher(environment: Mapping[str, str]) -> _Launcher | None:
    """The first launcher that gives rank and world, else the first that gives one of them."""
    half = None
    for launcher in _LAUNCHERS:
        has_rank, has_world = launcher.rank in environment, any(name in environment for name in launcher.world)
        if has_rank and has_world:
            return launcher
        if half is None and (has_rank or has_world):
            half = launcher
    return half


def _given(environment: Mapping[str, str], launcher: str, names: tuple[str, ...]) -> int:
    number = _number(environment, names)
    if number is None:
        raise UsageError(
            f"{launcher} started this process and did not set {' or '.join(names)}",
            hint="give --rank R --world-size N; of msrun on several nodes: start it with --node_rank",
        )
    return number


def _number(environment: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        text = environment.get(name, "")
        if text:
            number = number_in(text)
            if number is None:
                raise UsageError(f"{name}={text!r} is not a number")
            return number
    return None


def _port_beside(port: int) -> int:
    """A port of our own, the same for all ranks: the launcher's own is taken."""
    if not port:
        return 0
    beside = port + _BESIDE
    return beside if beside < PORTS else beside - PORTS + _FIRST_FREE_PORT
