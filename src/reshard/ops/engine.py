"""Who carries tasks out: threads of this process, or the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Generator

from msgspec.structs import replace

from reshard.errors import UsageError, listed
from reshard.moving.local import LocalExecutor
from reshard.moving.task import OnBytes, Settings
from reshard.ops.budget import Budget
from reshard.ops.options import Means, NodeRanks
from reshard.planning.plan import FileResult, Plan
from reshard.planning.tasks import Together, tasks
from reshard.storage.storage import absolute
from reshard.storage.storages import storage_of

_TASKS_A_WORKER = 2


def seen_by_all(plan: Plan) -> Plan:
    """The plan with paths that mean the same in processes that began in other folders."""
    return replace(plan, sources=tuple(replace(s, path=absolute(s.path)) for s in plan.sources))


def most_files(plan: Plan, means: Means, budget: Budget) -> int:
    """Files of one task at most: what memory allows, and on a cluster so few that every core has its part."""
    if means.engine == "local" or means.nodes_local:
        return budget.max_files
    from reshard.moving.ray import Cluster

    fair = -(-len(plan.files) // max(_TASKS_A_WORKER * Cluster(means.address).workers(), 1))
    return max(1, min(fair, budget.max_files))


def carried_out(
    plan: Plan, folder: str, means: Means, budget: Budget, on_bytes: OnBytes
) -> Generator[list[FileResult], None, None]:
    """The results of a plan's tasks, as they come."""
    shared, uploads = plan.shared_block_nbytes, budget.upload_nbytes
    settings = Settings(folder, budget.block_nbytes, means.fsync, means.checksum, uploads, shared)
    most = most_files(plan, means, budget)
    storage = storage_of(folder)
    together: Together = "front to back" if storage.front_to_back else "in any order"
    if means.engine == "local":
        executor = LocalExecutor(settings, budget.workers, on_bytes, storage)
        return executor.run(tasks(plan, link_replicas=means.link_replicas, max_files=most, together=together))
    from reshard.moving.ray import Cluster
    from reshard.moving.ray_tasks import RayExecutor

    seen = seen_by_all(plan)
    records = tasks(seen, link_replicas=means.link_replicas, max_files=most, largest_first=True, together=together)
    there = replace(settings, folder=absolute(folder))
    return RayExecutor(there, Cluster(means.address), budget.workers, on_bytes).run(records)


def node_of_each(plan: Plan, mapped: tuple[NodeRanks, ...], nodes: dict[str, str]) -> dict[str, frozenset[int]]:
    """Ranks of the plan by the id of the node that writes them. Raises UsageError listing what does not fit."""
    faults = [f"no living node {m.node!r}" for m in mapped if m.node not in nodes]
    by_rank: dict[int, str] = {}
    for each in mapped:
        faults += [f"rank {r} is on {by_rank[r]} and on {each.node}" for r in sorted(each.ranks) if r in by_rank]
        by_rank.update(dict.fromkeys(each.ranks, each.node))
    faults += [f"rank {f.rank} is on no node" for f in plan.files if f.rank not in by_rank]
    if faults:
        known = ", ".join(sorted(nodes)[:8])
        raise UsageError("the map of nodes does not fit:\n" + listed(faults), hint=f"nodes of the cluster: {known}")
    made: dict[str, set[int]] = {}
    for file in plan.files:
        made.setdefault(nodes[by_rank[file.rank]], set()).add(file.rank)
    return {node: frozenset(ranks) for node, ranks in made.items()}
