"""Which pipeline stage runs which layer, as MindFormers shares them out (its LayerSetting)."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.errors import StrategyError

Offset = int | Sequence[int] | Sequence[Sequence[int]]


def stages_of_layers(
    layers: int, stages: int, offset: object = 0, chunks: int = 1, *, zero_bubble_v: bool = False
) -> tuple[int, ...]:
    """The stage of each layer.

    Args:
        offset: layers that a stage has beyond the average ``layers // (stages * chunks)``: one number for all, a list
            with one a stage, or for each chunk such a list. Negative ones take away.
        chunks: runs of layers that each stage has (``pp_interleave_num``); 1 without interleaving.
        zero_bubble_v: the second of two chunks goes through the stages backwards.

    Raises:
        StrategyError: the offset has another shape, or the layers do not come out even.

    >>> stages_of_layers(5, 2, [0, 1])
    (0, 0, 1, 1, 1)
    >>> stages_of_layers(6, 2, [[1, 0], [0, 1]], chunks=2, zero_bubble_v=True)
    (0, 0, 1, 1, 1, 0)
    """
    if zero_bubble_v and chunks != 2:
        raise StrategyError(f"zero_bubble_v with pp_interleave_num {chunks}, it needs 2")
    rows = _rows(offset, stages, chunks)
    average = layers // (stages * chunks)
    counts = [[average + extra for extra in row] for row in rows]
    if zero_bubble_v:
        counts[1].reverse()
    if sum(map(sum, counts)) != layers or any(n < 0 for row in counts for n in row):
        raise StrategyError(
            f"{layers} layers do not come out even on {stages} stages × {chunks} with offset {offset!r}",
            hint="the offset's sum has to be num_layers modulo pipeline_stage × pp_interleave_num",
        )
    found: list[int] = []
    for chunk, row in enumerate(counts):
        for place, count in enumerate(row):
            backwards = zero_bubble_v and chunk == 1
            found += [stages - 1 - place if backwards else place] * count
    return tuple(found)


def _rows(offset: object, stages: int, chunks: int) -> list[list[int]]:
    """The offset of each chunk and stage."""
    if type(offset) is int:
        return [[offset] * stages] * chunks
    if isinstance(offset, list | tuple):
        rows = [list(offset)] * chunks if all(type(n) is int for n in offset) else [list(r) for r in _lists(offset)]
        if len(rows) == 1:
            rows *= chunks
        fits = len(rows) == chunks and all(len(row) == stages for row in rows)
        if fits and all(type(n) is int for row in rows for n in row):
            return rows
    raise StrategyError(
        f"offset {offset!r}, expected a number, {stages} numbers, or {chunks} lists of {stages} numbers",
        hint="model_config.offset, pp_interleave_num and parallel_config.pipeline_stage have to agree",
    )


def _lists(offset: Sequence[object]) -> list[Sequence[int]]:
    return [row if isinstance(row, list | tuple) else () for row in offset]
