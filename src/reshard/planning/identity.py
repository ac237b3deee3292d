"""What names a conversion: everything that decides about the bytes of the target, and nothing else.

Runs of one identity may fill one target together, on machines that each have their own copy of the source. So files
count by their paths below the source, lengths and times of change, and neither the ranks that a run makes nor how it
makes them counts.
"""

from __future__ import annotations

import msgspec
import xxhash

from reshard.layout.stages import Strategy
from reshard.planning.catalog import Catalog
from reshard.planning.plan import SCHEMA
from reshard.planning.target import Choices, Target


def identity_of(made_of: dict[str, str]) -> str:
    return _hash([SCHEMA, made_of])


def parts_of_identity(source: Catalog, target: Target, choices: Choices) -> dict[str, str]:
    """Part by part: values, or hashes of what is long."""
    rules, pairs = choices.rules, choices.lora.pairs if choices.lora else {}
    files = [(f.name.encode("utf-8", "surrogateescape"), f.rank, f.nbytes, f.mtime_ns) for f in source.files]
    return {
        "sources": _hash(sorted(files)),
        "source cut by": _hash(sorted(source.told_by.items())),
        "target's strategy": hash_of_strategy(target.strategy) if target.strategy else "",
        "tensors taken": _hash([rules.include, rules.exclude, rules.rename, rules.weights_only]),
        "LoRA scaling": _hash(sorted((n, p.a.name, p.b.name, p.scaling, p.transposed) for n, p in pairs.items())),
        "prefix": target.prefix,
        "file name": target.single,
        "format": target.format.name,
        "--crc": _hash(repr(target.format)),
        "dtype": target.dtype,
        "size of parts": str((target.parts.max_nbytes, target.parts.names)) if target.parts else "",
        "dropped redundancy": str(target.drop_redundancy),
    }


def hash_of_strategy(strategy: Strategy) -> str:
    """Of what it says, whatever file says it."""
    return _hash((strategy.devices, [sorted(stage.items()) for stage in strategy.stages]))


def _hash(content: object) -> str:
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(content))
