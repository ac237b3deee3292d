"""A Hugging Face folder as ``load_checkpoint``: its weights under the job's names, fused as its YAML says."""

from __future__ import annotations

from collections.abc import Collection

from msgspec.structs import replace

from reshard.auto.contradiction import FullShapes
from reshard.auto.job_source import JobSource
from reshard.families.open_checkpoint import open_source
from reshard.layout.stages import Strategy
from reshard.names.naming import convention_of
from reshard.names.wishes import HUB, MINDFORMERS, Naming
from reshard.planning.catalog import Catalog
from reshard.planning.names import NameRules


def names_wanted(theirs: Collection[str], strategy: Strategy | None, model: FullShapes) -> str:
    """The convention of the job's names, where ``theirs`` are Hugging Face's; "" where nothing is to be renamed."""
    ours = {name for stage in strategy.stages for name in stage} if strategy else {*model.shapes}
    if not ours or all(name in ours for name in theirs):
        return ""
    return convention_of(ours, MINDFORMERS) if convention_of(theirs) == HUB else ""


def opened(source: JobSource, strategy: Strategy | None, model: FullShapes) -> Catalog:
    """The source as the job calls its tensors.

    Raises InputError for what cannot become the model's: unknown, missing or contradictory.
    """
    catalog = open_source(source.source)
    cut = source.family or source.found.distributed
    wanted = "" if cut else names_wanted(catalog.tensors, strategy, model)
    if not wanted:
        return catalog
    from reshard.ops.naming import models, renamed

    naming = Naming(dst=wanted, release=model.release)
    files = models(source.source.path, naming)
    if model.file is not None:
        files = replace(files, src=(*files.src, model.file), dst=(model.file, *files.dst))
    return replace(renamed(catalog, naming, files, NameRules(), strategy).catalog, own=None)
