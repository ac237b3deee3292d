"""Adapters merged into a base: which of their tensors are added to which weights, and which replace some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from reshard.errors import PlanError, listed
from reshard.planning.catalog import Tensor
from reshard.planning.lora_hints import Hints
from reshard.planning.lora_layers import Layers
from reshard.planning.lora_names import (
    LoraPart,
    foreign_style,
    is_beside,
    is_original,
    is_repeated,
    is_whole,
    lora_name,
    model_name,
    whole_module,
)
from reshard.planning.lora_replaced import Replacing, is_copy
from reshard.planning.lora_sums import LoraSums
from reshard.planning.lora_values import COUNTS_WHOLE, Adapter, How, LoraMerge, NewRows

_NO_LORA = "an adapter elsewhere: reshard lora merge --adapter; where there is none: reshard merge, reshard convert"
_FOREIGN = "save it as PEFT does (lora_A, lora_B): diffusers and the tools of its trainer convert it"
_ADDED = "LoRA weights, added to their base"
_ORIGINALS = "originals that PEFT keeps beside what replaces them"
_REPEATED = "what the adapter has twice, under two names"
_TIED = "the head's weight, which is the embedding's"
_MULTIPLIED = "what (IA)³ multiplied weights by"
_RESIDUES = "copies of what the training had left of the base"
_FIRST = "factors that the adapter began with, taken away"


def merge_into(base: Mapping[str, Tensor], adapters: Sequence[Adapter], how: How) -> LoraMerge:
    """Find the weight of every tensor of every adapter. Raises PlanError that lists all that do not fit."""
    merging = _Merging(base, how)
    for adapter in adapters:
        merging.replace(adapter)
    for adapter in adapters:
        merging.add(adapter)
    return merging.merge()


class _Merging:
    """What adapters add and replace, as it is found."""

    def __init__(self, base: Mapping[str, Tensor], how: How) -> None:
        self._replacing = Replacing(base, how)
        self._hints = Hints(self._replacing.tensors)
        self._how = how
        self._sums = LoraSums()
        self._rows: dict[str, NewRows] = {}
        self._multiplied: set[str] = set()
        self._used: dict[str, str] = {}
        self._faults: list[str] = []
        self._warnings: dict[str, None] = {}

    def replace(self, adapter: Adapter) -> None:
        """Take what an adapter holds whole, before anything is added to it."""
        for name, tensor in adapter.tensors.items():
            if lora_name(name) is not None:
                continue
            if is_original(name) or is_beside(name):
                self._used[tensor.name] = _ORIGINALS
            elif is_repeated(name, adapter.tensors):
                self._used[tensor.name] = _REPEATED
            elif adapter.initial and is_copy(name) and not name.endswith(".bias"):
                self._used[tensor.name] = _RESIDUES
            elif adapter.weight != 1 and _saved_module(name, adapter):
                self._faults.append(f"{name} {COUNTS_WHOLE}")
            elif style := foreign_style(name):
                self._faults.append(f"{name}: an adapter tensor {style}")
                self._hints.way_on = _FOREIGN
            else:
                wanted = adapter.rules.rename(model_name(name))
                if adapter.keeps_tied and self._replacing.is_tied(wanted):
                    self._used[tensor.name] = _TIED
                    self._replacing.stays_tied = True
                elif fault := self._replacing.replace(wanted, name, tensor, _saved_module(name, adapter)):
                    self._faults.append(fault + self._hints.near(wanted))

    def add(self, adapter: Adapter) -> None:
        """Take what an adapter adds, and rows."""
        initial, faults = by_module(adapter.initial)
        modules, more = by_module(adapter.tensors)
        self._faults += [*faults, *more]
        of_layers = {model_name(module): parts for module, parts in initial.items()}
        layers = Layers(adapter, modules, of_layers, self._replacing, self._hints)
        self._sums.begin()
        for module, parts in modules.items():
            self._faults += layers.add(module, parts, self._sums)
        for part, tensor in (each for parts in modules.values() for each in parts.items()):
            self._used[tensor.name] = _MULTIPLIED if part == "times" else _ADDED
        self._used.update((t.name, _FIRST) for t in adapter.initial.values())
        for name in layers.rows.keys() & self._rows.keys():
            self._faults.append(f"{name}: two adapters have rows of it")
        self._rows |= layers.rows
        self._multiplied.update(layers.multiplied)
        self._warnings |= dict.fromkeys((*layers.warnings, *self._lacking(adapter, modules)))

    def _lacking(self, adapter: Adapter, modules: Iterable[str]) -> Iterator[str]:
        """A word on what the configuration says that an adapter has: one that was cut short is merged as far as it
        goes, as in PEFT.
        """
        ends = tuple(f".{target}" for target in adapter.rules.targets)
        whole = (model_name(name).rpartition(".")[0] for name in adapter.tensors if is_whole(name))
        known = {adapter.rules.rename(layer) for layer in (*map(model_name, modules), *whole)}
        layers = (name.removesuffix(".weight") for name in self._replacing.tensors if name.endswith(".weight"))
        lacking = [name for name in layers if name not in known and f".{name}".endswith(ends)] if ends else []
        if lacking:
            more = f" and {len(lacking) - 1:,} more" if lacking[1:] else ""
            yield f"no factors of {lacking[0]}{more}, which target_modules names: is the adapter whole?"
        there = [part for part in adapter.rules.saved if any(f".{part}" in name for name in adapter.tensors)]
        of_base = [part for part in adapter.rules.saved if any(f"{part}." in name for name in self._replacing.tensors)]
        if set(of_base) - set(there) or (adapter.rules.saved and not there):  # PEFT says more names than a model has
            yield "the adapter lacks something of modules_to_save: is it whole?"
        if adapter.rules.tokens and not any(".trainable_tokens" in name for name in adapter.tensors):
            yield "the adapter lacks something of trainable_token_indices: is it whole?"

    def merge(self) -> LoraMerge:
        """Raises PlanError."""
        sums, more = self._sums.made(self._how.combination)
        both = [f"{name}: an adapter adds to it and replaces rows of it" for name in sums.keys() & self._rows.keys()]
        changed = sums.keys() | self._rows.keys()
        both += [f"{name}: an adapter multiplies it and another changes it" for name in self._multiplied & changed]
        faults = [*self._faults, *more, *both, *self._hints.undecided(), *self._replacing.ends()]
        if faults:
            hint = self._hints.way_on or "is it the adapter of this model, and whole?"
            raise PlanError("the adapter does not fit:\n" + listed(faults), hint=hint)
        if not (sums or self._rows or self._multiplied or self._replacing.replaced):
            raise PlanError("no LoRA tensors", hint=_NO_LORA)
        return LoraMerge(
            self._replacing.tensors,
            sums,
            self._rows,
            self._used,
            self._replacing.instead,
            self._replacing.copies,
            self._replacing.config,
            (*self._replacing.warnings, *self._warnings),
            self._how.allow_nan,
        )


def _saved_module(name: str, adapter: Adapter) -> str:
    """The layer trained whole that a tensor is of; files of PEFT's call it as the model does. "" for none."""
    return whole_module(name) or next((module for module in adapter.rules.saved if f"{module}." in name), "")


def by_module(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[LoraPart, Tensor]], list[str]]:
    """The parts of each layer, and faults."""
    modules: dict[str, dict[LoraPart, Tensor]] = {}
    faults = []
    for name, tensor in tensors.items():
        found = lora_name(name)
        if found is None:
            continue
        if found.kind in modules.setdefault(found.module, {}):
            what = f"factor {found.kind[-1].upper()}" if found.kind in ("a", "b") else found.kind
            faults.append(f"{name}: a second {what} of {found.module}")
        modules[found.module][found.kind] = tensor
    return modules, faults
