"""Filling a target by a plan, here or on the nodes that will use it."""

from __future__ import annotations

from contextlib import closing

from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import UsageError
from reshard.moving.task import OnBytes
from reshard.ops.budget import Budget, budget_of
from reshard.ops.engine import carried_out, node_of_each, seen_by_all
from reshard.ops.observer import Observer
from reshard.ops.options import Means
from reshard.ops.verify import verify
from reshard.planning.misfits import ShardMisfits
from reshard.planning.plan import Plan
from reshard.storage.machine import paced
from reshard.storage.storage import absolute
from reshard.target.filling import Filling
from reshard.target.preflight import check_room
from reshard.target.target_paths import Place


class Filled(Struct, frozen=True):
    """What was done; ``missing`` files of the target are left to others, ``misfits`` of all that is whole by now."""

    written_nbytes: int = 0
    read_nbytes: int = 0
    made_files: int = 0
    missing_files: int = 0
    hard_links: int = 0
    verified_nbytes: int = 0
    shared_nbytes: int = 0
    misfits: tuple[ShardMisfits, ...] = ()

    def __add__(self, other: Filled) -> Filled:
        return Filled(
            self.written_nbytes + other.written_nbytes,
            self.read_nbytes + other.read_nbytes,
            self.made_files + other.made_files,
            self.missing_files + other.missing_files,
            self.hard_links + other.hard_links,
            self.verified_nbytes + other.verified_nbytes,
            self.shared_nbytes + other.shared_nbytes,
            tuple(dict.fromkeys((*self.misfits, *other.misfits))),
        )


def joins(plan: Plan, means: Means) -> bool:
    """Whether a run may go on with a target that others of the same identity began."""
    return means.resume or plan.part != ""


def fill(plan: Plan, place: Place, means: Means, budget: Budget, observer: Observer) -> Filled:
    """Make the plan's files that are not whole yet, then the manifest."""
    join = joins(plan, means)
    check_room(place, 0 if join or means.link_replicas else plan.nbytes - budget.shared_nbytes)
    filling = Filling(place, plan, join=join, overwrite=means.overwrite)
    on_bytes: OnBytes = observer.advance
    if means.max_rate_nbytes:
        on_bytes = paced(on_bytes, means.max_rate_nbytes)
    done = Filled()
    try:
        todo = replace(plan, files=tuple(f for f in plan.files if f.path not in filling.done)) if filling.done else plan
        try:
            observer.start("writing", todo.tensor_nbytes)
            observer.start_files(len(todo.files))
            with closing(carried_out(todo, place.folder, means, budget, on_bytes)) as made:
                for results in made:
                    filling.record(results)
                    observer.finish_files(len(results))
                    done += Filled(
                        sum(r.nbytes for r in results if not r.link),
                        sum(r.read_nbytes for r in results),
                        len(results),
                        hard_links=sum(r.link == "hardlink" for r in results),
                        shared_nbytes=sum(r.shared_nbytes for r in results if not r.link),
                    )
        finally:
            observer.end()
        missing = filling.publish(partial=plan.part == "ranks", fsync=means.fsync)
    finally:
        filling.close()
    whole = not missing or plan.part != "share"
    closed = 0 if missing else sum(len(small.content) for small in plan.closing)
    verified = verify(place.path, observer).nbytes if means.verify and whole else 0
    return replace(
        done,
        written_nbytes=done.written_nbytes + closed,
        missing_files=missing,
        verified_nbytes=verified,
        misfits=filling.misfits,
    )


class _OwnRanks(Struct, frozen=True):
    """What one node makes of a target: the ranks that are its own, on its own disk."""

    plan: Plan
    place: Place
    means: Means


def fill_on_nodes(plan: Plan, place: Place, means: Means, observer: Observer) -> Filled:
    """Let each node of a Ray cluster make its own ranks where ``place`` is there, with a partial manifest."""
    from reshard.moving.ray import Cluster, RemoteCall

    if plan.closing:
        raise UsageError(
            f"--nodes-local, and the target has {plan.closing[0].path}, which tells of the files of all nodes",
            hint="write to a place that all nodes see",
        )
    cluster = Cluster(means.address)
    plan, place = seen_by_all(plan), Place.of(absolute(place.path), single=place.single)
    calls = []
    for number, (node, ranks) in enumerate(node_of_each(plan, means.nodes_local, cluster.nodes()).items()):
        part = replace(plan, files=tuple(f for f in plan.files if f.rank in ranks), part="ranks")
        here = replace(means, engine="local", nodes_local=())
        calls.append(RemoteCall(number, _OwnRanks(part, place, here), node))
    done = Filled()
    try:
        observer.start("writing", plan.tensor_nbytes)
        observer.start_files(len(plan.files))
        for made in cluster.run(_fill_part, calls, observer.advance):
            observer.finish_files(made.made_files)
            done += made
    finally:
        observer.end()
    return replace(done, missing_files=0)


def _fill_part(part: _OwnRanks, on_bytes: OnBytes) -> Filled:
    budget = budget_of(part.plan, part.place.path, part.means)
    return fill(part.plan, part.place, part.means, budget, _Passing(on_bytes))


class _Passing(Observer):
    """Passes on what is written, not what is verified."""

    def __init__(self, on_bytes: OnBytes) -> None:
        self._on_bytes = on_bytes
        self._writing = False

    def start(self, what: str, nbytes: int) -> None:
        self._writing = what == "writing"

    def advance(self, nbytes: int) -> None:
        if self._writing:
            self._on_bytes(nbytes)
