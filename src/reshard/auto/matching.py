"""Whether the weights lie already as the job will load them: then there is nothing to do."""

from __future__ import annotations

from msgspec import Struct

from reshard.auto.job_strategy import JobStrategy, compared
from reshard.errors import CheckpointError, counted
from reshard.families.found import Found
from reshard.families.headers import index_files
from reshard.formats.registry import format_of
from reshard.index import TensorSpec
from reshard.layout.stages import Strategy
from reshard.planning.names import is_state


class Here(Struct, frozen=True):
    """What this machine sees of the source: on machines without a shared disk each may have its own ranks only."""

    found: Found
    strategy: Strategy | None
    rank: int
    per_node: int


def match(here: Here, job: JobStrategy, wanted_format: str) -> str:
    """How it was seen that nothing is to be done; "" where the weights must be converted."""
    found = here.found
    forms = {form.name for form in (format_of(path) for _, path in found.files) if form}
    if "torch" in forms or (wanted_format and forms != {wanted_format}):
        return ""
    if job.strategy is None:
        whole = found.whole and (here.strategy is None or not found.distributed)
        return "one full checkpoint, as the job loads it" if whole else ""
    if not found.distributed or not _ranks_are_here(here, job.strategy.world):
        return ""
    if here.strategy is None:
        return _fits(here, job)
    same = _same(here.strategy, job.strategy)
    if same:
        _check_shapes(here, job)
    return same


def _ranks_are_here(here: Here, world: int) -> bool:
    """Whether the rank folders are those of whole machines, this one among them. All that see one folder agree."""
    ranks = {rank for rank, _ in here.found.files}
    per_node = min(here.per_node, world)
    nodes = {rank // per_node for rank in ranks}
    return ranks == {r for n in nodes for r in range(n * per_node, min((n + 1) * per_node, world))} and (
        here.rank // per_node in nodes
    )


def _same(source: Strategy, target: Strategy) -> str:
    """The strategies are of one cut, and the source has all weights that the target knows."""
    if (len(source.stages), source.devices) != (len(target.stages), target.devices):
        return ""
    if compared(source, target).differing:
        return ""
    for ours, theirs in zip(source.stages, target.stages, strict=True):
        if any(name not in ours and not is_state(name) for name in theirs):
            return ""
    return "the strategy that the weights were saved with is the job's"


def _check_shapes(here: Here, job: JobStrategy) -> None:
    """Raises CheckpointError where the cut is the job's, and the model is not."""
    held, wanted = _held(here), _wanted(here, job)
    wrong = [name for name, shape in wanted.items() if name in held and held[name].shape != shape]
    if wrong:
        raise CheckpointError(
            f"the weights are cut as the job's, and are not those of its model: {wrong[0]} in rank_{here.rank} is "
            f"{_shown(held[wrong[0]])}, {list(wanted[wrong[0]])} by the YAML",
            here.found.path,
            "check vocab_size, hidden_size and the like in model_config",
        )


def _wanted(here: Here, job: JobStrategy) -> dict[str, tuple[int, ...]]:
    """Shapes that this rank's weights have by the job's strategy; none where the YAML gives no shapes."""
    assert job.strategy is not None
    stage = job.stages[here.rank // job.strategy.devices] if job.stages else {}
    return {name: layout.shard_shape for name, layout in stage.items() if not is_state(name)}


def _held(here: Here) -> dict[str, TensorSpec]:
    mine = tuple(ranked for ranked in here.found.files if ranked[0] == here.rank)
    (file,) = index_files(Found(here.found.path, mine, distributed=True))
    return {name: stored.spec for name, stored in file.contents.tensors.items()}


def _fits(here: Here, job: JobStrategy) -> str:
    """Without the source's strategy: what is in this rank's file is what the job's strategy gives this rank."""
    if not job.stages:
        return ""
    held, wanted = _held(here), _wanted(here, job)
    wrong = [name for name, shape in wanted.items() if name not in held or held[name].shape != shape]
    if not wrong:
        return f"names and shapes in rank_{here.rank} are those that the job's strategy gives it"
    raise CheckpointError(
        f"{counted(len(here.found.files), 'rank folder')} and no strategy: they are not cut as the job wants them "
        f"({wrong[0]} is {_shown(held.get(wrong[0]))}, wanted {list(wanted[wrong[0]])}), nobody can know how they are",
        here.found.path,
        "set src_strategy_path_or_dir to the strategy that they were saved with",
    )


def _shown(spec: TensorSpec | None) -> str:
    return "absent" if spec is None else str(list(spec.shape))
