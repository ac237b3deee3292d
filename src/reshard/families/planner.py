"""Source catalog and target → plan, with the proof that every target byte has exactly one source."""

from __future__ import annotations

from msgspec.structs import replace

from reshard.errors import PlanError
from reshard.families.probe import agreements, probe
from reshard.moving.task_inputs import files_of
from reshard.planning.catalog import Catalog
from reshard.planning.decide import decide
from reshard.planning.identity import identity_of, parts_of_identity
from reshard.planning.plan import Plan
from reshard.planning.scales import Wishes, refuse_parted
from reshard.planning.target import Choices, Draft, Target
from reshard.storage.machine import uncollected


@uncollected()
def planned(source: Catalog, target: Target, choices: Choices) -> Plan:
    """As ``make_plan``, with what only bytes can tell: a strategy that contradicts them, and whether ranks agree where
    no strategy says so. Raises InputError.
    """
    rules = choices.rules
    idle = rules.idle((*source.tensors, *source.texts))
    source = replace(source, warnings=(*source.warnings, *probe(source), *idle))
    agreed = agreements(source, (t for t in source.compared() if rules.takes(t.name, weight=t.weight)))
    return make_plan(source, target, replace(choices, agreed=agreed))


def make_plan(source: Catalog, target: Target, choices: Choices) -> Plan:
    """Raises PlanError listing every target byte that has no agreed source."""
    decisions = decide(source, target.strategy, choices.rules, choices.missing, choices.agreed, choices.lora)
    if not decisions.kept:
        idle = choices.rules.idle((*source.tensors, *source.texts))
        raise PlanError("\n".join(("no tensor is left to write", *idle)), hint="check --include and --exclude")
    summed = choices.lora.changed if choices.lora and not choices.lora.made else frozenset()
    told = refuse_parted(source.tensors, decisions.kept, Wishes(target.dtype, target.strategy, summed))
    draft = Draft(source, target, choices, replace(decisions, warnings=(*decisions.warnings, *told)))
    files = target.kind.files(draft)
    made_of = parts_of_identity(source, target, choices, decisions.kept)
    plan = Plan(
        files_of(source),
        tuple(draft.layouts),
        (),
        tuple(draft.forms),
        files.planned,
        decisions.left_out,
        tuple(draft.warnings),
        target.world,
        files.total,
        identity_of(made_of),
        made_of,
        target.part,
        files.closing,
        files.named_by,
        target.shared_block_nbytes,
        files.modes,
    )
    draft.assembler.prove_covered(plan)
    return draft.assembler.fill(plan)
