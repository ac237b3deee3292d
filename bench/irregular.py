"""The plan of a source that no layout describes: a million chunks of 1,024 ranks, from catalog to tasks.

    python bench/irregular.py

The whole target of eight ranks, and one of eight shares of it, each in a process of its own. ``write_dcp`` makes such a
source as a folder of PyTorch's, for scale.py: its last row reads the ``.metadata``, too.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from reshard.families.planner import make_plan
from reshard.families.rank_targets import ranks_or_full
from reshard.formats.dcp_written import WrittenChunk, metadata_bytes
from reshard.formats.distcp import Distcp
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


SPEC = TensorSpec("bfloat16", (ROWS, COLUMNS))
ROWS_A_RANK = -(-ROWS // RANKS)


def names() -> list[str]:
    return [f"model.layers.{number // 10}.w{number % 10}.weight" for number in range(TENSORS)]


def starts() -> range:
    """The first row of each rank that holds some."""
    return range(0, ROWS, ROWS_A_RANK)


def catalog() -> Catalog:
    """A million chunks, as 1,024 ranks of FSDP leave them: rows do not divide, five a rank and none for the last."""

    paths = [f"rank_{rank}.distcp" for rank in range(RANKS)]
    files = tuple(IndexedFile(path, path, 1 << 40, 0, r, "torch", Contents({})) for r, path in enumerate(paths))
    nbytes = ROWS_A_RANK * COLUMNS * SPEC.itemsize
    tensors = {}
    for number, name in enumerate(names()):
        extents = (Extent(number * nbytes, nbytes),)
        boxes = (Box((start, 0), (start + ROWS_A_RANK, COLUMNS)) for start in starts())
        shards = [Shard(box, (Held(rank, extents),), (rank,)) for rank, box in enumerate(boxes)]
        tensors[name] = tensor_of_shards(name, SPEC, shards)
    return Catalog(files, tensors, {}, {})


def write_dcp(path: Path) -> Path:
    """The same chunks, zeros all of them, as PyTorch saves them."""
    path.mkdir(parents=True)
    shape = (ROWS_A_RANK, COLUMNS)
    frame = Distcp().frame({"w": TensorSpec(SPEC.dtype, shape)}, {}, {})
    item = bytearray(frame.nbytes)
    for start, piece in frame.pieces:
        item[start : start + len(piece)] = piece
    for rank in range(len(starts())):
        (path / f"__{rank}_0.distcp").write_bytes(bytes(item) * TENSORS)
    places = [Extent(number * frame.nbytes, frame.nbytes) for number in range(TENSORS)]
    chunks = {
        name: (SPEC, [WrittenChunk((start, 0), shape, f"__{r}_0.distcp", place) for r, start in enumerate(starts())])
        for name, place in zip(names(), places, strict=True)
    }
    (path / ".metadata").write_bytes(metadata_bytes(chunks, {}))
    return path


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
    if sys.argv[1:2] == ["dcp"]:
        write_dcp(Path(sys.argv[2]))
    else:
        print(json.dumps(measure(sys.argv[1])) if sys.argv[1:] else row())
