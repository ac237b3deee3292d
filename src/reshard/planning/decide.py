"""What happens to each name: who knows it decides (docs/explanation/who-knows-a-name.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Literal

from msgspec import Struct

from reshard.errors import PlanError, ReshardError, listed, named_ranks
from reshard.layout.stages import Strategy, layout_of_full
from reshard.layout.tensor import Layout, Sharding
from reshard.planning.catalog import Catalog, Tensor
from reshard.planning.lora_values import LoraMerge
from reshard.planning.names import NameRules, call, is_lora, is_state, layer_pattern, weight_of_state
from reshard.planning.other_names import refuse_other_names
from reshard.planning.plan import LeftOut

Missing = Literal["error", "drop"]


class Kept(Struct, frozen=True):
    """A tensor that reaches the target.

    Attributes:
        name: what the target calls it.
        layouts: for each target stage that gets it, how it is cut there.
        varied: the ranks disagree on its one value; each target rank takes it from its own source rank.
    """

    tensor: Tensor
    name: str
    layouts: Mapping[int, Layout]
    varied: bool = False


class Decisions(Struct, frozen=True):
    kept: tuple[Kept, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]


def decide(
    source: Catalog,
    target: Strategy | None,
    rules: NameRules,
    missing: Missing,
    agreed: Mapping[str, bool],
    lora: LoraMerge | None = None,
) -> Decisions:
    """Say of every name whether and how it reaches the target.

    Args:
        target: None for one full checkpoint.
        agreed: for each of ``source.compared()``, whether all ranks hold the same bytes.
        lora: what is added to weights; its factors and all optimizer states stay behind.

    Raises:
        PlanError: listing every name that nothing may be decided about.
    """
    maker = _Decider(source, target, missing, agreed)
    if lora:
        maker.begin_merge(lora)
    taken: dict[str, str] = {}
    for name, tensor in source.tensors.items():
        if reason := rules.why_not(name, weight=tensor.weight):
            maker.leave_out("dropped", reason, name)
            taken[rules.renamed(name)] = name
            continue
        renamed = rules.renamed(name)
        if lora and (name in lora.used or (is_state(name) and not tensor.weight)):
            maker.leave_out("dropped", lora.used.get(name, "optimizer states of the training"), name)
            taken[renamed] = name
            continue
        call(taken, renamed, name)
        maker.place(tensor, renamed)
    called = {kept.name: kept.tensor.name for kept in maker.kept}
    for name in filter(rules.takes, source.texts):
        call(called, rules.renamed(name), name)
    maker.account_for_absent(taken, rules)
    refuse_other_names(taken, dict.fromkeys(filter(rules.takes, maker.target_names)))
    if maker.faults:
        raise PlanError(
            "nobody can know what these should be:\n" + listed(maker.faults),
            hint=f"{maker.advice}--missing drop leaves such tensors out",
        )
    left = tuple(LeftOut(fate, reason, tuple(n)) for (fate, reason), n in maker.left_out.items())
    return Decisions(tuple(maker.kept), left, tuple(maker.warnings))


class _Decider:
    def __init__(self, source: Catalog, target: Strategy | None, missing: Missing, agreed: Mapping[str, bool]) -> None:
        self.source = source
        self.target = target
        self.missing = missing
        self.agreed = agreed
        self.target_stages: dict[str, list[int]] = {}
        for stage, entries in enumerate(target.stages if target else ()):
            for name in entries:
                self.target_stages.setdefault(name, []).append(stage)
        self.target_names = self.target_stages.keys()
        self.kept: list[Kept] = []
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.left_out: dict[tuple[Literal["dropped", "absent"], str], list[str]] = {
            ("dropped", reason): [*names] for reason, names in source.dropped.items()
        }

    def begin_merge(self, lora: LoraMerge) -> None:
        """Decide about what an adapter has in place of the base's, and refuse factors that ranks disagree on."""
        disagree = [name for name in lora.used if not self.agreed.get(name, True)]
        self.faults += [f"{name}: {self._disagreeing}" for name in disagree]
        for name in lora.replaced:
            self.leave_out("dropped", "weights of the base, in whose place the adapter's stand", name)

    @cached_property
    def target_patterns(self) -> set[str]:
        return set(map(layer_pattern, self.target_names))

    @property
    def advice(self) -> str:
        """Which strategy to look at, where there is one."""
        if self.source.by_strategy and self.target:
            return "check both strategies; "
        return "check the strategy; " if self.source.by_strategy or self.target else ""

    @property
    def _disagreeing(self) -> str:
        return "no strategy knows it and its ranks disagree" if self.source.by_strategy else "its ranks disagree"

    def leave_out(self, fate: Literal["dropped", "absent"], reason: str, name: str) -> None:
        self.left_out.setdefault((fate, reason), []).append(name)

    def refuse(self, fate: Literal["dropped", "absent"], fault: str, name: str) -> None:
        """A fault, or with ``--missing drop`` a name left out for that reason."""
        if self.missing == "drop":
            self.leave_out(fate, fault, name)
        else:
            self.faults.append(f"{name}: {fault}")

    def place(self, tensor: Tensor, name: str) -> None:
        """Decide about a tensor that the source holds."""
        if self.target is not None and name not in self.target_names:
            if tensor.known:
                if is_state(name):
                    self.leave_out("dropped", "optimizer states that the target's strategy does not have", name)
                else:
                    by_strategy = self.source.by_strategy
                    fault = "only the source's strategy has it" if by_strategy else "only the source has it"
                    self.refuse("dropped", fault, name)
                return
            if not tensor.compared and self._drops_unknown(name):
                return
        varied = tensor.compared and not self.agreed[tensor.name]
        if varied and prod(tensor.spec.shape) != 1:
            self.refuse("dropped", self._disagreeing, name)
            return
        try:
            self.kept.append(Kept(tensor, name, self._layouts(tensor, name), varied))
        except ReshardError as error:
            self.faults.append(f"{name}: {error.message}")
            return
        if varied:
            self.warnings.append(f"{name}: ranks hold different values; each target rank takes its source rank's")

    def _drops_unknown(self, name: str) -> bool:
        """Whether a tensor of a full source, unknown to the target, stays behind."""
        if is_state(name) and weight_of_state(name) in self.target_names:
            self.leave_out("dropped", "optimizer states that the target's strategy does not have", name)
            return True
        if layer_pattern(name) != name and layer_pattern(name) in self.target_patterns:
            self.refuse("dropped", "the target's strategy knows it for other layers only: it lacks a stage", name)
            return True
        return False

    def _layouts(self, tensor: Tensor, name: str) -> dict[int, Layout]:
        shape = tensor.spec.shape
        if self.target is None:
            return {0: layout_of_full(Sharding.whole(1, len(shape)), shape)}
        stages = self.target_stages.get(name)
        if stages:
            return {s: layout_of_full(self.target.stages[s][name], shape) for s in stages}
        whole = layout_of_full(Sharding.whole(self.target.devices, len(shape)), shape)
        return dict.fromkeys(range(len(self.target.stages)), whole)

    def account_for_absent(self, taken: Mapping[str, str], rules: NameRules) -> None:
        """Decide about names that the source cannot give, and those that a strategy has and no source file holds."""
        for name, why in self.source.withheld.items():
            if rules.takes(name):
                self.refuse("dropped", why, rules.renamed(name))
        for name in self._expected(rules):
            if name in taken:
                continue
            if is_state(name):
                self.leave_out("absent", "optimizer states and gradients that a strategy lists and no file holds", name)
            elif is_lora(name):
                self.leave_out("absent", "LoRA weights that the source does not hold", name)
            else:
                self.refuse("absent", self._held_by_none(), name)

    def _held_by_none(self) -> str:
        present = {f.rank for f in self.source.files}
        absent = [r for r in range(self.source.ranks.world) if r not in present]
        if absent:
            return f"no source file holds it, and there is none of {named_ranks(absent)}"
        return "no source file holds it"

    def _expected(self, rules: NameRules) -> Iterator[str]:
        if self.target is not None:
            names = dict.fromkeys(name for stage in self.target.stages for name in stage)
            yield from (name for name in names if rules.takes(name))
        else:
            yield from (rules.renamed(name) for name in self.source.expected if rules.takes(name))
