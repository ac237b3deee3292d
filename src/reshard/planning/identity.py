"""What names a conversion: everything that decides about the bytes of the target, and nothing else.

Runs of one identity may fill one target together, on machines that each have their own copy of the source. So weight
files count by their paths below the source, lengths and times of change, and small files that decided something, as
strategies and configurations, by what is in them. Neither the ranks that a run makes nor how it makes them counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec
import xxhash

from reshard.layout.stages import Strategy
from reshard.planning.catalog import STRATEGY, Catalog
from reshard.planning.decide import Kept
from reshard.planning.lora_values import LoraMerge
from reshard.planning.names import NameRules
from reshard.planning.plan import SCHEMA
from reshard.planning.shared import COPIED
from reshard.planning.target import Choices, Kind, Target

_AT_ONCE = 256
KIND_OF_TARGET = "kind of target"
NOTES = "schema of the notes"
"""The part that says by which release's rules the others were made."""


def identity_of(made_of: dict[str, str]) -> str:
    return hash_of(made_of)


def parts_of_identity(source: Catalog, target: Target, choices: Choices, kept: Sequence[Kept]) -> dict[str, str]:
    """Part by part: values, or hashes of what is long. ``kept`` are what reaches the target."""
    rules = choices.rules
    told_by = dict(source.told_by)
    target_strategy = hash_of_strategy(target.strategy) if target.strategy else ""
    files = [(f.name.encode("utf-8", "surrogateescape"), f.rank, f.nbytes, f.mtime_ns) for f in source.files]
    return {
        NOTES: str(SCHEMA),
        "sources": hash_of(sorted(files)),
        "strategies": hash_of([told_by.pop(STRATEGY, ""), target_strategy]),
        **{_unicode(name): content for name, content in sorted(told_by.items())},
        "family": source.family,
        "tensors taken": _hash_of_taken(rules, kept),
        "LoRA scaling": f"{_scalings(choices.lora)}; {hash_of(_merged(choices.lora))}" if choices.lora else "",
        KIND_OF_TARGET: target.kind.name,
        **dict(_said(target.kind)),
        "dtype": target.dtype,
        **({"shared blocks of": str(target.shared_block_nbytes)} if target.shared_block_nbytes > COPIED else {}),
    }


def _hash_of_taken(rules: NameRules, kept: Sequence[Kept]) -> str:
    """As ``hash_of`` of rules and what is told of each tensor, of which there are many: never of all at once."""
    digest = xxhash.xxh3_128(b"[" + msgspec.json.encode(rules))
    before = b",["
    for first in range(0, len(kept), _AT_ONCE):
        told = msgspec.json.encode(list(map(_told, kept[first : first + _AT_ONCE])))
        digest.update(before + told[1:-1])
        before = b","
    digest.update(b"]]")
    return digest.hexdigest()


def _told(kept: Kept) -> tuple[object, ...]:
    """A tensor of the target: whatever decided on it, runs that disagree do not fill one target."""
    tensor = kept.tensor
    return ascii(kept.name), ascii(tensor.name), tensor.spec, tensor.cast_to


def _said(kind: Kind) -> Iterator[tuple[str, str]]:
    """All that a kind of target was made of; its strategy counts by what it says."""
    for name in kind.__struct_fields__:
        value = getattr(kind, name)
        if name == "format":
            yield name, value.name
            yield "--crc", hash_of(repr(value))
        elif name != "strategy":
            yield name.replace("_", " "), str(value)


def _merged(lora: LoraMerge) -> list[object]:
    """What is added to each weight, put into it or stands in its place."""
    terms = (
        (name, [(t.scaling, t.form, [f.name for f in t.factors]) for t in s.terms]) for name, s in lora.sums.items()
    )
    times = [(name, t.scales.of.name, t.scales.block) for name, t in lora.tensors.items() if t.scales]
    magnitudes = ((name, s.magnitude.name) for name, s in lora.sums.items() if s.magnitude)
    rows = ((name, new.rows.name, new.at) for name, new in lora.rows.items())
    return [sorted(terms), sorted(times), sorted(magnitudes), sorted(rows), sorted(lora.replaced), lora.allow_nan]


def _scalings(lora: LoraMerge) -> str:
    """By what products count, and of how many, for people."""
    counted = Counter(term.scaling for each in lora.sums.values() for term in each.terms)
    return ", ".join(f"{scaling:g} of {n:,}" for scaling, n in sorted(counted.items()))


def _unicode(name: str) -> str:
    """A name of any file, as JSON can hold it."""
    return name.encode("utf-8", "backslashreplace").decode()


def hash_of_strategy(strategy: Strategy) -> str:
    """Of what it says, whatever file says it."""
    return hash_of((strategy.devices, [sorted(stage.items()) for stage in strategy.stages]))


def hash_of_file(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)


def hash_of(content: object) -> str:
    """Of any value, by what it holds."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(content))
