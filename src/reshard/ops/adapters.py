"""Adapters opened and joined with their base: one catalog of both, and what becomes of its weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite

import xxhash
from msgspec import Struct
from msgspec.structs import replace

from reshard.errors import CheckpointError, PlanError, UsageError, listed
from reshard.families.open_checkpoint import open_source
from reshard.families.probe import agreements
from reshard.families.source import Source
from reshard.formats.registry import format_of
from reshard.index import ZEROS
from reshard.ops.scaling import AlphaRank, LoraConfig, Unscaled
from reshard.planning.catalog import Catalog, Held, IndexedFile, Loose, Tensor
from reshard.planning.lora import merge_into
from reshard.planning.lora_experts import saved_as
from reshard.planning.lora_names import is_beside, is_whole, lora_name, model_name, seems_lora
from reshard.planning.lora_replaced import both_ends, changes_an_end, head_of
from reshard.planning.lora_values import Adapter, Combination, How, LoraMerge, Model
from reshard.storage.storage import join
from reshard.storage.storages import content_of, opened, storage_of

_CONFIGS = ("adapter_config.json", "lora_train_meta.json", "mindformers_adapter_config.json")
"""PEFT's, and what verl and MindFormers' PyNative trainer write beside the files of their ranks."""
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_DOUBLED = "a head that is the embedding once more, which they are tied to be"
_BLOCK_NBYTES = 8 << 20


class AdapterAt(Struct, frozen=True):
    """An adapter as the user names it.

    Attributes:
        path: its file or folder; "" for one in the base itself.
        weight: by what all that it adds counts besides its scaling.
        initial: the file or folder of the adapter that its training began with, where that was taken out of the base.
    """

    path: str
    config: LoraConfig
    weight: float = 1.0
    initial: str = ""

    def __post_init__(self) -> None:
        if not isfinite(self.weight):
            raise UsageError(f"the weight of {self.path} is {self.weight}")


class Joined(Struct, frozen=True):
    """The catalog of base and adapters, and what is made of it."""

    source: Catalog
    merge: LoraMerge


def own_config(adapter: str) -> str:
    """What says how an adapter counts, in its folder or beside its file; "" without."""
    folder = adapter if format_of(adapter) is None else adapter.rpartition("/")[0] or "."
    there = (join(folder, name) for name in _CONFIGS) if adapter else ()
    return next((own for own in there if storage_of(own).entry(own) is not None), "")


def joined(base: Catalog, adapters: Sequence[AdapterAt], how: How) -> Joined:
    """Open the adapters and find out what becomes of the base's weights. Raises InputError, UsageError."""
    _check_initial(adapters)
    _check_weights(adapters, how.combination)
    apart, inside = _apart(base)
    if inside and any(each.path for each in adapters):
        raise PlanError(
            "the base has LoRA weights in it:\n" + listed(list(inside)), hint="leave --adapter out, and merge it after"
        )
    joining = _Joining(base, apart, inside)
    whose = [f"adapter {n}'s " if len(adapters) > 1 else "" for n in range(1, len(adapters) + 1)]
    opened = [joining.adapter(*each) for each in zip(adapters, whose, strict=True)]
    doubled = joining.doubled_head(apart, opened, how.model)
    apart = {name: tensor for name, tensor in apart.items() if name != doubled}
    merge = replace(merge_into(apart, opened, how), inside=bool(inside))
    tensors = {**merge.tensors, **joining.used(merge)}
    source = replace(
        base,
        files=tuple(joining.files),
        tensors=tensors,
        told_by=joining.told_by,
        warnings=tuple(joining.warnings),
        dropped={**base.dropped, **({_DOUBLED: (doubled,)} if doubled else {})},
        places=(*base.places, *filter(None, (path for each in adapters for path in (each.path, each.initial)))),
        expected=tuple(dict.fromkeys(map(model_name, base.expected))),
    )
    return _compared(source, merge)


def _check_initial(adapters: Sequence[AdapterAt]) -> None:
    if not any(each.initial for each in adapters):
        return
    if len(adapters) > 1:
        raise UsageError("--initial is of one adapter, and several are given", hint="merge that one first, alone")
    if adapters[0].weight != 1:
        raise UsageError(
            f"--weights {adapters[0].weight:g} with --initial: what was taken out of the base counts whole",
            hint="merge it whole: leave --weights out",
        )


def _check_weights(adapters: Sequence[AdapterAt], combination: Combination) -> None:
    """What has no factors counts whole. Of several PEFT makes one that keeps the first's use_rslora, so that their sum
    counts √rank times.
    """
    for each in adapters:
        if each.weight != 1 and isinstance(each.config.scaling, Unscaled):
            raise UsageError(
                f"--weights {each.weight:g} of {each.path}, and peft_type is {each.config.scaling.kind}",
                hint="it counts whole: leave its weight at 1",
            )
    weighted = combination == "linear" or any(each.weight != 1 for each in adapters)
    scaling = adapters[0].config.scaling if adapters else None
    if len(adapters) > 1 and weighted and isinstance(scaling, AlphaRank) and scaling.rslora:
        raise UsageError(
            "several adapters by weights, and the first says use_rslora: PEFT would count their sum by √rank besides",
            hint="merge them one after another, each by its --weights",
        )


def _compared(source: Catalog, merge: LoraMerge) -> Joined:
    """Copies of an adapter that are the base's own, by their bytes, replace nothing; of others it is told."""
    same = agreements(source, merge.copies)
    own = {tensor.name: tensor for tensor in merge.copies if same[tensor.name]}
    other = [name for name, agrees in same.items() if not agrees]
    tensors = {
        name: replace(_first_holders(own[name]), scales=t.scales) if name in own else t
        for name, t in source.tensors.items()
    }
    told = (
        (f"copies that the adapter has of the base, which are others and are used, as in PEFT:\n{listed(other)}",)
        if other
        else ()
    )
    merge = replace(merge, replaced=tuple(name for name in merge.replaced if name not in own))
    return Joined(replace(source, tensors=tensors, warnings=(*source.warnings, *merge.warnings, *told)), merge)


def _first_holders(tensor: Tensor) -> Tensor:
    shards = tuple(replace(shard, held=shard.held[:1]) for shard in tensor.shards)
    return replace(tensor, shards=Loose(shards))


def _apart(base: Catalog) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the model, and those of an adapter in it."""
    model: dict[str, Tensor] = {}
    inside: dict[str, Tensor] = {}
    for name, tensor in base.tensors.items():
        of_adapter = seems_lora(name) or is_whole(name) or is_beside(name) or lora_name(name) is not None
        (inside if of_adapter else model)[name] = tensor
    called = Counter(map(model_name, model))
    if twice := [name for name in model if called[model_name(name)] > 1]:
        raise CheckpointError("names that are one by what the model calls them:\n" + listed(twice))
    return model, inside


def model_of(base: Catalog, told: Sequence[str] = ()) -> Model:
    """What the configuration beside the base says of its head, or else the first of those that the user ``told``."""
    beside = join(base.files[0].path.rpartition("/")[0] or ".", "config.json")
    found = (path for path in (beside, *told) if path.endswith(".json") and storage_of(path).entry(path) is not None)
    config = next(found, "")
    if not config:
        return Model()
    try:
        said = json.loads(content_of(config))
    except (ValueError, RecursionError):
        return Model()
    inner = said.get("text_config") if isinstance(said, dict) else None
    parts = [each for each in (said, inner) if isinstance(each, dict)]
    tied = [each["tie_word_embeddings"] for each in parts if isinstance(each.get("tie_word_embeddings"), bool)]
    classes = said.get("architectures") if isinstance(said, dict) else None
    first = classes[0] if isinstance(classes, list) and classes else ""
    return Model(str(first), any(tied) if tied else None)


class _Joining:
    """Files of the base and of adapters, counted as they are opened."""

    def __init__(self, base: Catalog, apart: Mapping[str, Tensor], inside: Mapping[str, Tensor]) -> None:
        self._base = base
        self.files: list[IndexedFile] = list(base.files)
        self.told_by = dict(base.told_by)
        self.warnings = list(base.warnings)
        self._names = {*base.tensors, *map(model_name, apart)}
        self._tensors: dict[str, Tensor] = dict(base.tensors)
        self._inside = inside

    def adapter(self, at: AdapterAt, whose: str) -> Adapter:
        """Open one; ``whose`` its files are called in what the target is made of."""
        initial = self._opened(at.initial, "initial adapter's ") if at.initial else {}
        self.told_by |= {f"{whose}{name}": content for name, content in at.config.told_by.items()}
        factors = {name: tensor for name, tensor in initial.items() if lora_name(name) is not None}
        tensors = self._opened(at.path, whose or "adapter's ") if at.path else self._inside
        return Adapter(tensors, at.config.rules(), at.weight, factors, self._are_tied(tensors))

    def doubled_head(self, apart: Mapping[str, Tensor], adapters: Sequence[Adapter], model: Model) -> str:
        """A head of the base that is its embedding once more, where an adapter changes either; "" without one."""
        named = {model_name(name): tensor for name, tensor in apart.items()}
        if model.tied is False or not any(map(changes_an_end, adapters)) or not self._are_tied(named):
            return ""
        head = head_of(named)
        if model.tied is None:
            raise PlanError(
                f"{head} is the embedding once more, and nothing tells whether what is added to one changes both",
                hint="the base's config.json has to say tie_word_embeddings: true or false",
            )
        return named[head].name

    def _are_tied(self, tensors: Mapping[str, Tensor]) -> bool:
        both = both_ends(tensors)
        return bool(both) and all(agreements(replace(self._base, files=tuple(self.files)), both).values())

    def used(self, merge: LoraMerge) -> dict[str, Tensor]:
        """The tensors of adapters that do not reach the target as they are."""
        return {name: self._tensors[name] for name in merge.used}

    def _opened(self, path: str, whose: str) -> dict[str, Tensor]:
        """An adapter's tensors by their own names; they are called otherwise where others are called so."""
        opened = open_source(Source(_weights(path)))
        before = len(self.files)
        self.files += opened.files
        self.warnings += opened.warnings
        for name, content in (*opened.told_by.items(), *((f.name, _hash_of(f.path)) for f in opened.files)):
            self.told_by[f"{whose}{name}"] = content
        tensors = {}
        for name, tensor in opened.tensors.items():
            unique = name
            while unique in self._names:
                unique = f"{path}: {unique}"
            self._names.add(unique)
            tensors[name] = self._tensors[unique] = replace(_renumbered(tensor, before), name=unique)
        return tensors


def fitting(names: Iterable[str], layers: Collection[str]) -> int:
    """How many layers of adapters have these names of tensors."""
    there = {name[:end] for name in map(model_name, names) for end in (*_dots(name), len(name))}
    return sum(layer in there or saved_as(layer) in there for layer in layers)


def _dots(name: str) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "."]


def layers_of(adapters: Sequence[AdapterAt]) -> set[str]:
    """What the base calls the layers that files of adapters have factors of, and what they have whole; none of
    one in the base itself.
    """
    found = set()
    for each in adapters:
        rename = each.config.rules().rename
        for name in open_source(Source(_weights(each.path))).tensors if each.path else ():
            factor = lora_name(name)
            found.add(rename(factor.layer if factor else model_name(name)))
    return found


def _weights(path: str) -> str:
    """The weights that PEFT reads of an adapter's folder; beside them a trainer keeps files of its own."""
    found = (join(path, name) for name in _WEIGHTS if format_of(path) is None)
    return next((file for file in found if storage_of(file).entry(file) is not None), path)


def _hash_of(path: str) -> str:
    """Of a file's content; "" of one far away, which its size and time tell apart."""
    if storage_of(path).remote:
        return ""
    digest = xxhash.xxh3_128()
    with opened(path) as file:
        for start in range(0, file.nbytes, _BLOCK_NBYTES):
            digest.update(file.read(start, min(_BLOCK_NBYTES, file.nbytes - start)))
    return digest.hexdigest()


def _renumbered(tensor: Tensor, files: int) -> Tensor:
    """The same tensor, its files counted after ``files`` others."""

    def counted_on(held: Held) -> Held:
        return held if held.file == ZEROS else replace(held, file=held.file + files)

    shards = (replace(shard, held=tuple(map(counted_on, shard.held))) for shard in tensor.shards)
    return replace(tensor, shards=Loose(tuple(shards)), known=True)
