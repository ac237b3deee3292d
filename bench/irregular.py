"""The plan of a source that no layout describes: a million chunks of 1,024 ranks, from catalog to tasks.

    python bench/irregular.py

The whole target of eight ranks, and one of eight shares of it, each in a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

from reshard.families.planner import make_plan
from reshard.families.rank_targets import ranks_or_full
from reshard.formats.registry import format_named
from reshard.index import Contents, Extent, TensorSpec
from reshard.layout.box import Box
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.planning.bill import make_bill
from reshard.planning.catalog import Catalog, Held, IndexedFile, Shard, tensor_of_shards
from reshard.planning.shares import Share
from reshard.planning.target import Choices, Target
from reshard.planning.tasks import tasks
from reshard.storage.machine import uncollected

RANKS, TENSORS, ROWS, COLUMNS = 1024, 1191, 4200, 64


def catalog() -> Catalog:
    """A million chunks, as 1,024 ranks of FSDP leave them: rows do not divide, five a rank and none for the last."""

    names = [f"rank_{rank}.distcp" for rank in range(RANKS)]
    files = tuple(IndexedFile(name, name, 1 << 40, 0, r, "torch", Contents({})) for r, name in enumerate(names))
    rows, columns = -(-ROWS // RANKS), COLUMNS
    spec = TensorSpec("bfloat16", (ROWS, columns))
    tensors = {}
    for number in range(TENSORS):
        shards = []
        for rank in range(-(-ROWS // rows)):
            start, stop = rank * rows, min((rank + 1) * rows, ROWS)
            nbytes = (stop - start) * columns * spec.itemsize
            held = Held(rank, (Extent(number * rows * columns * spec.itemsize, nbytes),))
            shards.append(Shard(Box((start, 0), (stop, columns)), (held,), (rank,)))
        name = f"model.layers.{number // 10}.w{number % 10}.weight"
        tensors[name] = tensor_of_shards(name, spec, shards)
    return Catalog(files, tensors, {}, {})


def measure(what: str) -> dict[str, float]:
    """From the catalog to the plan, the bill and the tasks; in this process."""

    began = time.process_time()
    with uncollected():
        source = catalog()
        strategy = Strategy((dict.fromkeys(source.tensors, Sharding((8,), ((0,), ()))),), 8, "")
        kind = ranks_or_full(strategy, format_named("safetensors"))
        share = Share(3, 8) if what == "share" else None
        plan = make_plan(source, Target(kind, share=share), Choices())
        bill = make_bill(plan, 2, 8 << 20)
        moves = sum(len(task.moves) for task in tasks(plan, together="in any order"))
    seconds, peak = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    chunks = sum(len(list(tensor.shards)) for tensor in source.tensors.values())
    read = bill.read_nbytes / bill.needed_nbytes
    return {
        "seconds": seconds,
        "peak": peak,
        "json": len(plan.to_json()),
        "chunks": chunks,
        "moves": moves,
        "read": read,
    }


def row() -> str:
    """The line of scale.py's table; processor time, for no header is read."""
    bill, share = (_measured(what) for what in ("bill", "share"))
    cells = ["FSDP → 8", f"{RANKS:,}", f"{TENSORS:,} of {bill['chunks']:,} chunks"]
    cells += [f"{bill['seconds']:.1f} s", _mib(bill["peak"]), _mib(bill["json"]), f"{bill['read']:.2f} ×"]
    cells += [f"{share['seconds']:.1f} s", _mib(share["peak"]), _mib(share["json"]), ""]
    return f"| {' | '.join(cells)} |"


def _measured(what: str) -> dict[str, float]:
    """In a process of its own."""
    done = subprocess.run([sys.executable, __file__, what], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _mib(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):,.1f} MiB"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])) if sys.argv[1:] else row())
