"""Steps that compute: what a block needs beside its base, and the block made of both."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from reshard.layout.box import Box
from reshard.moving.elements import Array, Buffer, round_to, shaped
from reshard.moving.lora import add_lora, check_finite, factor_boxes
from reshard.planning.plan import Assembly, LoraAdd, Move, Piece, Scaled

Beside = Sequence[tuple[Move, Buffer]]
"""Readings of what stands beside the base, and what they gave."""


def beside_of(step: LoraAdd | Scaled, box: Box) -> tuple[Move, ...]:
    """The readings that a block needs besides its base."""
    boxes = factor_boxes(step, box) if isinstance(step, LoraAdd) else (scale_box(step, box),)
    return tuple(Move("", of, of.dtype, (Piece(0, part, ()),)) for of, part in zip(step.beside, boxes, strict=True))


def made_block(move: Move, box: Box, made: memoryview, base: memoryview, beside: Beside) -> Array | None:
    """Set ``made`` to the block ``box``, in the move's dtype, of its base and what was read besides. Gives what did not
    fit, as ``round_to``.
    """
    step = move.step
    before, after = shaped(base, step.base.dtype, box), shaped(made, move.dtype, box)
    others = [shaped(content, part.dtype, part.targets[0].box) for part, content in beside]
    match step:
        case LoraAdd():
            a, b = others
            kinds = add_lora(step, after, before, a, b)
            if kinds is not None:
                check_finite(move.name, step, box, (before, a, b), after)
            return kinds
        case Scaled():
            return scale(step, after, before, others[0], box)
        case Assembly():
            raise AssertionError("a copy computes nothing")


def scale_box(step: Scaled, box: Box) -> Box:
    """The scales that a block needs."""
    return Box(
        tuple(start // n for start, n in zip(box.start, step.block, strict=True)),
        tuple(-(-stop // n) for stop, n in zip(box.stop, step.block, strict=True)),
    )


_CHUNK = 262144


def scale(step: Scaled, made: Array, of: Array, scales: Array, box: Box) -> Array | None:
    """Set ``made`` to ``of * scales``, computed in fp32 and rounded to its dtype once. ``box`` is where they lie. Gives
    what did not fit, as ``round_to``.
    """
    held, wide = scale_box(step, box), scales.astype(np.float32)
    for dim, n in enumerate(step.block[1:], 1):
        wide = np.repeat(wide, n, dim)
        skipped = box.start[dim] - held.start[dim] * n
        wide = wide[(slice(None),) * dim + (slice(skipped, skipped + box.shape[dim]),)]
    kinds: Array | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        if not box.shape:
            return round_to(made, of.astype(np.float32) * wide, computed=True)
        rows = max(_CHUNK // max(prod(box.shape[1:]), 1), 1)
        of_row = np.arange(box.start[0], box.stop[0]) // step.block[0] - held.start[0]
        for start in range(0, box.shape[0], rows):
            part = slice(start, start + rows)
            odd = round_to(made[part], of[part].astype(np.float32) * wide[of_row[part]], computed=True)
            if odd is not None:
                kinds = np.zeros(made.shape, np.uint8) if kinds is None else kinds
                kinds[part] = odd
    return kinds
