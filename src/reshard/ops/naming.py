"""A source under the names of another convention: model files are found, and repetitions compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from reshard.errors import CheckpointError, InputError, PlanError, UsageError, listed
from reshard.families.probe import agreements
from reshard.families.registry import listing
from reshard.layout.stages import Strategy
from reshard.layout.tensor import Sharding
from reshard.names.dequantised import dequantised
from reshard.names.model import ModelFile, model_of_args, read_model
from reshard.names.regroup import Models, Regrouped, regrouped, whose_names
from reshard.names.wishes import HUB, Excluded, Naming
from reshard.planning.catalog import Catalog, Loose, Shard, Tensor
from reshard.planning.names import NameRules, call
from reshard.planning.scales import refuse_parted_by
from reshard.storage.storage import join
from reshard.storage.storages import content_of, storage_of

CONFIG = "config.json"
_YAML = (".yaml", ".yml")
_MOST_NBYTES = 1 << 20


def renamed(
    source: Catalog, naming: Naming, files: Models, rules: NameRules, strategy: Strategy | None = None
) -> Regrouped:
    """The source, without what the rules leave out, as the target's convention has it.

    Args:
        files: what is known of the model, as ``models`` finds it.
        strategy: the target's.

    Raises:
        InputError: what is unknown, missing or contradictory; repetitions that differ.
    """
    if naming.dequantize:
        tensors, dropped = dequantised(source.tensors, files.src, rules.takes)
        source = replace(source, tensors=tensors, dropped={**source.dropped, **dropped})
    others = naming.dst not in ("", HUB) and (naming.src or whose_names(source)) != naming.dst
    refuse_parted_by(rules, source.tensors, naming.dst if others else "")
    source, excluded = _by_rules(source, rules)
    if source.args:
        files = replace(files, src=(model_of_args(source.args), *files.src))
    made = regrouped(source, naming, files, excluded, _rows_of(strategy))
    _refuse_different(made)
    return made


def _by_rules(source: Catalog, rules: NameRules) -> tuple[Catalog, Excluded]:
    """The catalog with those tensors alone that the rules take, under the names that they give."""
    kept: dict[str, Tensor] = {}
    called: dict[str, str] = {}
    out: dict[str, list[str]] = {}
    for name, tensor in source.tensors.items():
        if why := rules.why_not(name, weight=tensor.weight):
            out.setdefault(why, []).append(name)
        else:
            call(called, rules.renamed(name), name)
            kept[rules.renamed(name)] = replace(tensor, name=rules.renamed(name))
    dropped = {**source.dropped, **{why: (*source.dropped.get(why, ()), *names) for why, names in out.items()}}
    if not kept:
        raise PlanError("no tensor is left to write", hint="check --include and --exclude; or leave --weights-only out")
    excluded = frozenset(rules.renamed(name) for names in out.values() for name in names)
    for name in filter(rules.takes, source.texts):
        call(called, rules.renamed(name), name)
    texts = {rules.renamed(name): by_rank for name, by_rank in source.texts.items() if rules.takes(name)}
    withheld = {name: why for name, why in source.withheld.items() if rules.takes(name)}
    return replace(source, tensors=kept, dropped=dropped, texts=texts, withheld=withheld), Excluded(excluded, rules)


def models(path: str, naming: Naming, said: Mapping[str, Any] = MappingProxyType({})) -> Models:
    """The model files that were named, and those beside the source: a configuration, the YAML of a run.

    Args:
        said: what configurations of the source say by now.
    """
    both = [_read(naming.model)] if naming.model else []
    src = [_read(naming.src_model)] if naming.src_model else []
    dst = [_read(naming.dst_model)] if naming.dst_model else []
    beside = beside_of(path)
    if beside and not any(file.hub for file in (*both, *src)):
        src.append(_read(beside))
    if not any(not file.hub for file in (*both, *src)):
        src += _run_beside(path)
    src, both = ([replace(f, values={**f.values, **said}) if f.hub else f for f in own] for own in (src, both))
    given = [*src, *both, *dst]
    return Models(_own_first(given, src, hub=naming.src in ("", HUB)), _own_first(given, dst, hub=naming.dst == HUB))


def _own_first(given: list[ModelFile], own: list[ModelFile], *, hub: bool) -> tuple[ModelFile, ...]:
    """The files of a side: those that are its own alone, then those of its kind."""
    return tuple(sorted(given, key=lambda file: (file not in own, file.hub is not hub)))


def beside_of(path: str) -> str:
    """The configuration of Hugging Face beside a source; "" where none lies there."""
    found = join(_folder_of(path), CONFIG)
    return found if storage_of(found).entry(found) is not None else ""


def _folder_of(path: str) -> str:
    return path if listing(path).folder else path.rpartition("/")[0] or "."


def _run_beside(path: str) -> list[ModelFile]:
    """The YAML of a MindFormers run beside a source, where one lies there and all that do say the same of the model."""
    folder = _folder_of(path)
    found = []
    for entry in listing(folder).entries:
        if not entry.folder and entry.name.endswith(_YAML) and entry.nbytes < _MOST_NBYTES:
            with suppress(InputError):  # a YAML of something else
                found.append(_read(join(folder, entry.name)))
    said = {repr((file.models, sorted(file.values.items()))) for file in found}
    return found[:1] if len(said) == 1 else []


def _read(path: str) -> ModelFile:
    """Of a folder of Hugging Face's the configuration in it."""
    there = storage_of(path).entry(path)
    if there is not None and there.folder:
        path = join(path, CONFIG)
        there = storage_of(path).entry(path)
    if there is None:
        raise UsageError("no such model file", path, "give a config.json, or the YAML of a MindFormers run")
    return read_model(content_of(path), path)


def _rows_of(strategy: Strategy | None) -> dict[str, int]:
    """Into how many parts the target cuts the rows of each tensor, optimizer parallel aside."""
    rows: dict[str, int] = {}
    for stage in strategy.stages if strategy else ():
        for name, entry in stage.items():
            cuts = (entry,) if isinstance(entry, Sharding) else entry.groupings(min(len(entry.shape), 2))
            found = {cut.parts[0] // cut.opt_parts for cut in cuts if cut.parts}
            if len(found) == 1:
                rows[name] = found.pop()
    return rows


def _refuse_different(made: Regrouped) -> None:
    """Raises CheckpointError for tensors that were taken for one and hold different bytes."""
    pairs = [pair for same in made.same for pair in _with_scales(*same) if pair[0].shards != pair[1].shards]
    together = [_held_by_both(one, other) for one, other in pairs]
    agreed = agreements(made.catalog, together)
    differ = [
        f"{one.name} and {other.name}"
        for (one, other), both in zip(pairs, together, strict=True)
        if not agreed[both.name]
    ]
    if differ:
        raise CheckpointError(
            "tensors that should be one hold different values:\n" + listed(differ),
            hint="--tied keep, where the target has a place for both",
        )


def _with_scales(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The two, and what their codes are multiplied by: equal codes are other numbers by other scales."""
    yield one, other
    if one.scales and other.scales:
        yield one.scales.of, other.scales.of


def _held_by_both(one: Tensor, other: Tensor) -> Tensor:
    """A tensor that both hold, for comparison. Raises CheckpointError where they are not cut alike."""
    shards = {shard.box: shard for shard in one.shards}
    blocks = {each.scales.block if each.scales else None for each in (one, other)}
    both = []
    for shard in other.shards:
        same = shards.get(shard.box)
        if same is None or one.spec != other.spec or len(blocks) > 1:
            raise CheckpointError(
                f"{one.name} {one.spec} and {other.name} {other.spec} should be one, and are cut or kept differently"
            )
        both.append(Shard(shard.box, (*same.held[:1], *shard.held[:1])))
    return Tensor(f"{one.name} and {other.name}", one.spec, Loose(tuple(both)))
