"""``convert_reversed.py``: as the MindFormers documentation calls ``unified_safetensors.py``."""

from __future__ import annotations

from collections.abc import Sequence

from reshard.compat.console import program
from reshard.compat.unified_safetensors import CALLED, unify


def _run(argv: Sequence[str]) -> None:
    unify("convert_reversed", argv, merge_in_place=True)


main = program(_run, CALLED)
